"""Sequences on disk and batches in memory: what `sequences` writes, training and evaluation read.

    artifacts/sequences/<protocol>/events.arrow    item (int32), timestamp (int64); users concatenated; memory-mapped
    artifacts/sequences/<protocol>/users.arrow     user_id, start, valid_start, test_start, end (row numbers, int64)
    artifacts/sequences/<protocol>/catalogue.parquet   row r = item with index r: item_id, key, title, genres, count
    artifacts/sequences/<protocol>/split.json      split times, counts, cold and tie shares, data hash

`item` is the row in the catalogue, which holds exactly the items of the training part; -1 is an item unknown to it.
Shapes: L events of a batch, B sequences, U users, E events of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.errors import StateError
from components.files import read_json


@dataclass(frozen=True)
class Sequences:
    """One protocol's log: all users' events in (timestamp, source row) order, cut into train, validation and test.

    User u's events are rows starts[u]:ends[u]; train ends at valid_starts[u], validation at test_starts[u].
    """

    items: np.ndarray  # (E,) int32, catalogue row or -1
    timestamps: np.ndarray  # (E,) int64 seconds
    user_ids: np.ndarray  # (U,) int64
    starts: np.ndarray  # (U,) int64
    valid_starts: np.ndarray
    test_starts: np.ndarray
    ends: np.ndarray
    split: dict[str, Any]  # split.json

    @property
    def num_items(self) -> int:
        """X, the size of the catalogue."""
        return int(self.split["num_items"])


@dataclass(frozen=True)
class Batch:
    """Histories of B users, concatenated. Row i predicts what happens at next_timestamps[i]."""

    items: Tensor  # (L,) int64
    timestamps: Tensor  # (L,) int64
    next_timestamps: Tensor  # (L,) int64: the next event's time; in the last row the request's
    offsets: Tensor  # (B+1,) int64

    def to(self, device: torch.device | str) -> Batch:
        """Move all tensors to `device`."""
        return Batch(*(t.to(device) for t in (self.items, self.timestamps, self.next_timestamps, self.offsets)))


def make_batch(
    histories: Sequence[tuple[np.ndarray, np.ndarray]], request_times: Sequence[int], *, max_len: int
) -> Batch:
    """Batch histories of (items, timestamps), oldest event first; keeps the last `max_len` known items of each.

    Items of -1 are dropped first. A history may end up empty.
    """
    items, times, nexts, lengths = [], [], [], []
    for (history_items, history_times), request_time in zip(histories, request_times, strict=True):
        known = np.asarray(history_items) >= 0
        item = np.asarray(history_items)[known][-max_len:]
        when = np.asarray(history_times)[known][-max_len:]
        items.append(item)
        times.append(when)
        nexts.append(np.append(when[1:], request_time) if len(when) else when)
        lengths.append(len(item))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Batch(_long(items), _long(times), _long(nexts), torch.from_numpy(offsets))


def iterate_in_blocks(total: int, block: int) -> Iterator[slice]:
    """Cut range(total) into slices of at most `block`."""
    for start in range(0, total, block):
        yield slice(start, min(start + block, total))


def load_sequences(folder: Path) -> Sequences:
    """Memory-map one protocol's sequences; raises StateError where they are missing."""
    import pyarrow as pa  # not on the bare GPU machine

    if not (folder / "split.json").exists():
        raise StateError("no sequences", where=str(folder), todo="Run `dvc repro sequences`")

    def column(file: str, name: str) -> np.ndarray:
        table = pa.ipc.open_file(pa.memory_map(str(folder / file))).read_all()
        values: np.ndarray = table[name].combine_chunks().to_numpy()
        return values

    users = {name: column("users.arrow", name) for name in ("user_id", "start", "valid_start", "test_start", "end")}
    return Sequences(
        items=column("events.arrow", "item"),
        timestamps=column("events.arrow", "timestamp"),
        user_ids=users["user_id"],
        starts=users["start"],
        valid_starts=users["valid_start"],
        test_starts=users["test_start"],
        ends=users["end"],
        split=read_json(folder / "split.json"),
    )


def _long(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.long)
