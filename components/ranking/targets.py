"""What is to be predicted: every held-out event that has a history, and the history it may be predicted from.

A target's history is everything earlier of the same user, the held-out window's earlier events included; ties are
ordered by source row. Events of items that train never saw (-1) are left out of histories, but stay targets: misses.
Shapes: E events of the log, K of them with known items, T targets, W encoder windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from components.dataset import Sequences, rows_of_ranges


@dataclass(frozen=True)
class Targets:
    """T held-out events, ordered by user, then time. Histories are rows firsts[t]:positions[t] of the known events."""

    rows: np.ndarray  # (T,) int64, the event's row in the log
    users: np.ndarray  # (T,) int64, the user's number in the log
    items: np.ndarray  # (T,) int64, catalogue row or -1
    firsts: np.ndarray  # (T,) int64, the user's first known event
    positions: np.ndarray  # (T,) int64, one past the last known event before the target
    known_items: np.ndarray  # (K,) int64, all events of known items
    known_timestamps: np.ndarray  # (K,) int64 seconds

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def history_lengths(self) -> np.ndarray:
        """(T,) known events before the target, at least 1."""
        lengths: np.ndarray = self.positions - self.firsts
        return lengths

    def take(self, which: np.ndarray) -> Targets:
        """Keep only the targets at `which`, a bool mask or numbers."""
        return replace(
            self,
            rows=self.rows[which],
            users=self.users[which],
            items=self.items[which],
            firsts=self.firsts[which],
            positions=self.positions[which],
        )


def find_targets(sequences: Sequences, part: str) -> Targets:
    """Find the targets of `part`, 'valid' or 'test'."""
    is_valid = part == "valid"
    starts = sequences.valid_starts if is_valid else sequences.test_starts
    lengths = (sequences.test_starts if is_valid else sequences.ends) - starts
    rows = rows_of_ranges(starts, lengths)
    users = np.repeat(np.arange(len(starts)), lengths)
    is_known = sequences.items >= 0
    known_before = np.concatenate([[0], np.cumsum(is_known)])
    targets = Targets(
        rows=rows,
        users=users,
        items=sequences.items[rows].astype(np.int64),
        firsts=known_before[sequences.starts[users]],
        positions=known_before[rows],
        known_items=sequences.items[is_known].astype(np.int64),
        known_timestamps=sequences.timestamps[is_known],
    )
    return targets.take(targets.history_lengths > 0)


def find_tied(sequences: Sequences, rows: np.ndarray) -> np.ndarray:
    """Return (T,) bool: the event at this row of the log shares its time with another event of the same user."""
    tied = np.zeros(len(sequences.timestamps) + 1, dtype=bool)  # tied[e]: event e has the time of event e - 1
    tied[1:-1] = np.diff(sequences.timestamps) == 0
    tied[sequences.starts] = False
    found: np.ndarray = tied[rows] | tied[rows + 1]
    return found


def find_repeats(targets: Targets) -> np.ndarray:
    """Return (T,) bool: the target's item is known and already in its history."""
    histories = zip(targets.items, targets.firsts, targets.positions, strict=True)
    return np.array(
        [bool((targets.known_items[first:stop] == item).any()) for item, first, stop in histories], dtype=bool
    )


def find_encoder_windows(targets: Targets, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the known events into the windows that the model must see; return them (W, 2) and each target's window (T,).

    Window w is rows windows[w, 0]:windows[w, 1]; target t is answered by row positions[t] - 1. Row i of a causal model
    depends on nothing after event i but the time of event i + 1, which is the target's own. So all targets of a user
    whose histories fit into `max_len` share one window; each longer history gets its own, the last `max_len` events.
    """
    starts = np.maximum(targets.firsts, targets.positions - max_len)
    unique_starts, window_of_target = np.unique(starts, return_inverse=True)
    stops = np.zeros_like(unique_starts)
    np.maximum.at(stops, window_of_target, targets.positions)
    return np.stack([unique_starts, stops], axis=1), window_of_target
