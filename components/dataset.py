"""Sequences on disk and batches in memory: what `sequences` writes, training and evaluation read.

    artifacts/sequences/<protocol>/events.arrow    item (int32), timestamp (int64); users concatenated; memory-mapped
    artifacts/sequences/<protocol>/users.arrow     user_id, start, valid_start, test_start, end (row numbers, int64)
    artifacts/sequences/<protocol>/catalogue.parquet   row r = item with index r: item_id, key, title, genres, count,
                                                       first_seen, last_seen
    artifacts/sequences/<protocol>/split.json      split times, counts, cold and tie shares, data hash

`item` is the row in the catalogue, which holds exactly the items of the training part; -1 is an item unknown to it.
Training reads rows of the training part only, so what happens later cannot move a single byte of a training batch.
Shapes: L events of a batch, B sequences, U users, E events of the log, W training windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.files import read_json, reading

_TODO = "Run `dvc repro sequences`"
# Of random numbers within an epoch, apart from the trainer's 1: order, places, lengths and times of the windows.
# What draws from one stream leaves the others as they are.
_STREAMS = ((), (2,), (3,), (4,))


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
    return Batch(_join(items), _join(times), _join(nexts), _to_long(np.cumsum([0, *lengths])))


def join_validation(sequences: Sequences) -> Sequences:
    """Return the sequences with the validation part as the end of train, and no validation.

    The catalogue stays that of train; events of items it lacks are left out, as they are from every history.
    """
    is_known = sequences.items >= 0
    known_before = np.concatenate([[0], np.cumsum(is_known)])
    test_starts = known_before[sequences.test_starts]
    return replace(
        sequences,
        items=sequences.items[is_known],
        timestamps=sequences.timestamps[is_known],
        starts=known_before[sequences.starts],
        valid_starts=test_starts,
        test_starts=test_starts,
        ends=known_before[sequences.ends],
    )


def find_training_windows(sequences: Sequences, max_len: int, random: np.random.Generator | None = None) -> np.ndarray:
    """Return each user's training window: (W, 2) int64, first and one-past-last input row, at most `max_len` inputs.

    Row i of a window predicts row i + 1 of the log. A history longer than `max_len` gives its last `max_len` inputs:
    windows over all of it double the work and did worse (docs/decisions/0006-last-window.md). With `random` they
    begin anywhere, uniformly.
    """
    stops = sequences.valid_starts - 1
    has_target = stops > sequences.starts
    starts, stops = sequences.starts[has_target], stops[has_target]
    spare = np.maximum(stops - starts - max_len, 0)
    firsts = starts + (spare if random is None else random.integers(spare, endpoint=True))
    return np.stack([firsts, np.minimum(firsts + max_len, stops)], axis=1)


def shorten_windows(windows: np.ndarray, max_len: int, alpha: float, random: np.random.Generator) -> np.ndarray:
    """Cut windows of n > N^(alpha/2) inputs to the latest N^(alpha/2), except with probability N^alpha / n^2.

    Stochastic length of HSTU's paper (arXiv 2402.17152), with N = `max_len`. The paper samples the kept events
    from thousands, more of the recent ones; with N = 200 a gapless part did no worse, and its rows still predict what
    really came next. ML-100K, leave-one-out, alpha 1.6, 16 epochs, two seeds, validation NDCG@10: .112; a sample, each
    event predicting the next kept one, .109; never cut .117.
    """
    lengths = windows[:, 1] - windows[:, 0]
    is_cut = random.random(len(windows)) * lengths**2 >= max_len**alpha  # never where n <= N^(alpha/2)
    shortest = math.floor(max_len ** (alpha / 2))
    return np.stack([np.where(is_cut, windows[:, 1] - shortest, windows[:, 0]), windows[:, 1]], axis=1)


def iterate_training_batches(
    sequences: Sequences,
    *,
    max_len: int,
    batch_size: int,
    seed: int,
    epoch: int,
    windows: str = "last",
    stochastic_length: float | None = None,
    request_time_dropout: float = 0.0,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield (batch, targets) over all training windows once; targets is (L,) int64, the catalogue row to predict.

    Order, windows and times are a pure function of (seed, epoch). Windows are not sorted by length: attention is
    jagged, so a mixed batch wastes nothing. The last three arguments are those of TrainSettings.
    """
    order, places, lengths, times = (np.random.default_rng([seed, epoch, *stream]) for stream in _STREAMS)
    chosen = find_training_windows(sequences, max_len, places if windows == "random" else None)
    if stochastic_length is not None:
        chosen = shorten_windows(chosen, max_len, stochastic_length, lengths)
    chosen = chosen[order.permutation(len(chosen))]
    for block in iterate_in_blocks(len(chosen), batch_size):
        batch, targets = gather_batch(sequences, chosen[block])
        yield hide_request_times(batch, request_time_dropout, times) if request_time_dropout else batch, targets


def hide_request_times(batch: Batch, share: float, random: np.random.Generator) -> Batch:
    """Give each row with probability `share` its own event's time for the next one's: all a model knows unasked."""
    is_hidden = torch.from_numpy(random.random(len(batch.items)) < share)
    return replace(batch, next_timestamps=torch.where(is_hidden, batch.timestamps, batch.next_timestamps))


def gather_batch(sequences: Sequences, windows: np.ndarray) -> tuple[Batch, Tensor]:
    """Batch rows windows[b, 0]:windows[b, 1] of the log as inputs, each row's successor as its target."""
    lengths = windows[:, 1] - windows[:, 0]
    rows = rows_of_ranges(windows[:, 0], lengths)
    batch = Batch(
        items=_to_long(sequences.items[rows]),
        timestamps=_to_long(sequences.timestamps[rows]),
        next_timestamps=_to_long(sequences.timestamps[rows + 1]),
        offsets=_to_long(np.concatenate([[0], np.cumsum(lengths)])),
    )
    return batch, _to_long(sequences.items[rows + 1])


def rows_of_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges starts[b]:starts[b] + lengths[b].

    >>> rows_of_ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    offsets = np.cumsum(lengths) - lengths
    rows: np.ndarray = np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())
    return rows


def iterate_in_blocks(total: int, block: int) -> Iterator[slice]:
    """Cut range(total) into slices of at most `block`."""
    for start in range(0, total, block):
        yield slice(start, min(start + block, total))


def load_sequences(folder: Path) -> Sequences:
    """Memory-map one protocol's sequences; raises StateError where a file of them is missing or damaged."""
    with reading(folder / "split.json", todo=_TODO):
        split: dict[str, Any] = read_json(folder / "split.json")
    _check_catalogue(folder / "catalogue.parquet")
    user_ids, starts, valid_starts, test_starts, ends = _map_arrow(
        folder / "users.arrow", "user_id", "start", "valid_start", "test_start", "end"
    )
    items, timestamps = _map_arrow(folder / "events.arrow", "item", "timestamp")
    return Sequences(items, timestamps, user_ids, starts, valid_starts, test_starts, ends, split)


def _map_arrow(file: Path, *columns: str) -> list[np.ndarray]:
    """Columns of an Arrow file of one record batch as read-only arrays over the file itself: nothing is copied."""
    import pyarrow as pa  # not on the bare GPU machine

    with reading(file, todo=_TODO):
        batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        return [batch[name].to_numpy(zero_copy_only=True) for name in columns]


def _check_catalogue(file: Path) -> None:
    """Training copies it hours later, into the checkpoint: better to know now."""
    import pyarrow.parquet as pq  # not on the bare GPU machine

    with reading(file, todo=_TODO):
        pq.read_metadata(file)


def _to_long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _join(parts: list[np.ndarray]) -> Tensor:
    return _to_long(np.concatenate(parts) if parts else np.zeros(0))
