"""What data/manifest.json counts, and the hash that stands for a log: for whoever writes into `data/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.files import hash_files, write_json
from components.interactions import list_months, list_part, read_month

_TABLES = ("interactions", "items.parquet", "user_keys.parquet", "item_keys.parquet")


@dataclass(frozen=True)
class Counts:
    """What a log holds; users and items are those with events."""

    events: int
    users: int
    items: int
    months: int


def count_log(folder: Path) -> Counts:
    """Count what `folder` holds, one month in memory."""
    users, items, events = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    months = list_months(folder)
    for files in months.values():
        month = read_month(files, ("user_id", "item_id"))
        users, items = np.union1d(users, month["user_id"]), np.union1d(items, month["item_id"])
        events += month.num_rows
    return Counts(events, len(users), len(items), len(months))


def measure_part(folder: Path, part: str) -> dict[str, int | None]:
    """Return rows, first and last time (seconds) of a source file's parts; null where they have no row."""
    times = [pq.read_table(file, columns=["timestamp"])["timestamp"] for file in list_part(folder, part)]
    ends = [pc.min_max(time).as_py() for time in times]
    return {
        "rows": sum(map(len, times)),
        "first": min((end["min"] for end in ends), default=None),
        "last": max((end["max"] for end in ends), default=None),
    }


def write_manifest(folder: Path, source: Mapping[str, Any], counts: Counts, notes: Sequence[str]) -> dict[str, Any]:
    """Write folder/manifest.json with the hash of the log that lies there; return it."""
    data_hash = hash_files(folder / name for name in _TABLES if (folder / name).exists())
    manifest = {**source, "counts": asdict(counts), "notes": list(notes), "data_hash": data_hash}
    write_json(folder / "manifest.json", manifest)
    return manifest
