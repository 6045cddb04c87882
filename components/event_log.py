"""The whole log in memory, in the order in which everything reads it, and its items numbered.

    events = read_log(Path("data"), Path("artifacts/quarantine.parquet"))
    catalogue = build_catalogue(events.item_ids, events.timestamps, Path("data"))
    rows = number_items(events.item_ids, catalogue["item_id"].to_numpy())

Shapes: E events, U users, X items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.errors import StateError
from components.interactions import read_interactions, read_items, read_keys


@dataclass(frozen=True)
class Log:
    """All events in (user, timestamp, source row) order; user u's are rows starts[u]:ends[u]."""

    item_ids: np.ndarray  # (E,) int64, canonical ids
    timestamps: np.ndarray  # (E,) int64 seconds
    user_ids: np.ndarray  # (U,) int64, ascending
    starts: np.ndarray  # (U,) int64
    ends: np.ndarray


def read_log(data: Path, quarantine: Path) -> Log:
    """Read `data` minus the quarantined rows and bring it into (user, timestamp, source row) order."""
    table = read_interactions(data, quarantine=quarantine, columns=("user_id", "item_id", "timestamp"))
    if table.num_rows == 0:
        raise StateError("holds no event outside the quarantine", where=str(data), todo="Run `dvc repro validate`")
    users, items, times = (table[name].to_numpy() for name in ("user_id", "item_id", "timestamp"))
    del table
    order = np.lexsort((times, users))  # stable: ties stay in source order
    users = users[order]
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    ends = np.append(starts[1:], len(users))
    return Log(items[order], times[order], users[starts], starts, ends)


def build_catalogue(train_item_ids: np.ndarray, train_timestamps: np.ndarray, data: Path) -> pa.Table:
    """List the items of train, ordered by id, with key, title, genres, count, first_seen and last_seen (seconds).

    An item without a title shows its key; without genres, null.
    """
    item_ids, rows, counts = np.unique(train_item_ids, return_inverse=True, return_counts=True)
    last_seen = np.full(len(item_ids), np.iinfo(np.int64).min)
    np.maximum.at(last_seen, rows, train_timestamps)
    first_seen = np.full(len(item_ids), np.iinfo(np.int64).max)
    np.minimum.at(first_seen, rows, train_timestamps)
    keys = read_keys(data, "item") or {}
    key = pa.array([keys.get(item, str(item)) for item in item_ids.tolist()], pa.string())
    about = read_items(data)
    about = about.take(pc.index_in(pa.array(item_ids), about["item_id"].combine_chunks()))
    return pa.table(
        {
            "item_id": pa.array(item_ids, pa.int64()),
            "key": key,
            "title": pc.coalesce(_text(about, "title"), key),
            "genres": _text(about, "genres"),
            "count": pa.array(counts, pa.int64()),
            "first_seen": pa.array(first_seen, pa.int64()),
            "last_seen": pa.array(last_seen, pa.int64()),
        }
    )


def _text(about: pa.Table, name: str) -> pa.ChunkedArray:
    """One column of the item table as strings; null where it is empty."""
    text = about[name].cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def number_items(item_ids: np.ndarray, catalogue_ids: np.ndarray) -> np.ndarray:
    """Return (E,) int32 catalogue rows; -1 for an item that train never saw. `catalogue_ids` ascend."""
    rows = np.searchsorted(catalogue_ids, item_ids).clip(max=len(catalogue_ids) - 1)
    return np.where(catalogue_ids[rows] == item_ids, rows, -1).astype(np.int32)
