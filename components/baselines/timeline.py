"""What is known of every item at a moment: features from the events strictly before it, and from nothing else.

    popularity        log(1 + n)            n: the item's events so far
    popularity_<h>d   log(1/8 + n_h)        n_h = sum over them of 2^(-(t - t_e) / h): half-lives of h days
    freshness         log(1 + t - last)     hours since its last event
    age               log(1 + t - first)    hours since its first event
    seen              [n > 0]               an item without an event yet has freshness and age 0

Exact to the second, in any order of questions: the events before t are counted from the nearest snapshot, and there is
one every X events, so a question costs O(X) and all snapshots together as much memory as the log. The n-th event of
an item keeps its n_h, so a decayed count is one look-up and one factor instead of a sum. ML-1M: 0.4 ms a question.
Shapes: E events of known items, X catalogue size, F features, H half-lives, S snapshots.
"""

from __future__ import annotations

import numpy as np

from components.dataset import Sequences

HALF_LIVES = (1, 7, 30, 180)  # days
FEATURES = ("popularity", *(f"popularity_{days}d" for days in HALF_LIVES), "freshness", "age", "seen")
_SMOOTHING = 1 / 8  # of a decayed count: an item that nobody touches any more ends at -2, not at minus infinity
_SECONDS_PER_HOUR, _SECONDS_PER_DAY = 3_600, 86_400
_LEAST_STRIDE = 1_024  # events between snapshots: a tiny catalogue needs no snapshot every other event


class Timeline:
    """A log that answers what was known of each item at some second."""

    def __init__(self, items: np.ndarray, timestamps: np.ndarray, num_items: int) -> None:
        """Index (E,) items and timestamps of any order; items of -1 count for nothing."""
        items, timestamps = items[items >= 0], timestamps[items >= 0]
        by_time = np.argsort(timestamps, kind="stable")
        self._items_E, self._times_E = items[by_time], timestamps[by_time]
        self._stride = max(num_items, _LEAST_STRIDE)
        self._snapshots_SX = _take_snapshots(self._items_E, self._stride, num_items)
        counts_X = np.bincount(items, minlength=num_items)
        self._firsts_X = np.cumsum(counts_X) - counts_X  # where an item's events begin in the order below
        by_item = np.argsort(self._items_E, kind="stable")
        decayed_HE = _decay_counts(self._items_E[by_item], self._times_E[by_item])
        # One event more than there is, for the items that have none.
        self._item_times_E = np.append(self._times_E[by_item], 0)
        self._decayed_HE = np.pad(decayed_HE, ((0, 0), (0, 1)))

    def count_before(self, time: int) -> np.ndarray:
        """Return (X,) int64: events of each item strictly before `time`."""
        stop = int(np.searchsorted(self._times_E, time))
        snapshot = stop // self._stride
        later = self._items_E[snapshot * self._stride : stop]
        counts: np.ndarray = self._snapshots_SX[snapshot] + np.bincount(later, minlength=len(self._firsts_X))
        return counts

    def features_at(self, time: int) -> np.ndarray:
        """Return (F, X) float32: the rows of FEATURES at `time`, in seconds."""
        counts = self.count_before(time)
        seen = counts > 0
        last = self._firsts_X + np.maximum(counts, 1) - 1
        since_last = np.where(seen, time - self._item_times_E[last], 0)
        since_first = np.where(seen, time - self._item_times_E[self._firsts_X], 0)
        decayed_HX = self._decayed_HE[:, last] * seen * _decay(since_last)
        rows = (1 + counts, *(_SMOOTHING + decayed_HX), *(1 + s / _SECONDS_PER_HOUR for s in (since_last, since_first)))
        logs = np.log(np.stack(rows, dtype=np.float32, casting="same_kind"))
        return np.concatenate([logs, seen[None]], dtype=np.float32)


def build_timeline(sequences: Sequences) -> Timeline:
    """Return the timeline of the whole log, held-out events too: the time of a question hides what is not yet known."""
    return Timeline(sequences.items, sequences.timestamps, sequences.num_items)


def _take_snapshots(items: np.ndarray, stride: int, num_items: int) -> np.ndarray:
    """(S, X) int32: how often each item occurs among the first 0, stride, 2 stride, ... events."""
    snapshots_SX = np.zeros((len(items) // stride + 1, num_items), dtype=np.int32)
    for number, snapshot_X in enumerate(snapshots_SX[1:]):
        counts_X = np.bincount(items[number * stride : (number + 1) * stride], minlength=num_items)
        snapshot_X[:] = snapshots_SX[number] + counts_X
    return snapshots_SX


def _decay_counts(items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(H, E) float32: each event's n_h at its own time, itself included; events ordered by item, then time.

    By doubling: once every event has the sum over itself and the s - 1 events before it, adding the decayed sum of the
    s-th event before it makes that 2 s events. So log2(E) passes do, and no number grows beyond the count itself.
    """
    sums_HE = np.ones((len(HALF_LIVES), len(items)), dtype=np.float32)
    step = 1
    while (later := step + np.flatnonzero(items[step:] == items[:-step])).size:
        gaps = times[later] - times[later - step]
        sums_HE[:, later] += sums_HE[:, later - step] * _decay(gaps)
        step *= 2
    return sums_HE


def _decay(seconds: np.ndarray) -> np.ndarray:
    """(N,) seconds -> (H, N) float32: 2^(-seconds / half-life)."""
    rates_H1 = -np.log(2) / (np.array(HALF_LIVES)[:, None] * _SECONDS_PER_DAY)
    factors_HN: np.ndarray = np.exp((rates_H1 * seconds).astype(np.float32))
    return factors_HN
