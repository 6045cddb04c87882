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
    request_times: np.ndarray  # (T,) int64 seconds, when the answer is asked for: the target's own time unless replaced

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
            request_times=self.request_times[which],
        )

    def forget_request_times(self) -> Targets:
        """Ask right after the history's last known event, as a request without a time does.

        The target's own time says that the user came back then, and how long it took: more than a caller may know.
        """
        return replace(self, request_times=self.known_timestamps[self.positions - 1])

    def restore_request_times(self) -> Targets:
        """Ask at the targets' own times again; targets with known items only."""
        return replace(self, request_times=self.known_timestamps[self.positions])


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
        request_times=sequences.timestamps[rows],
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


def choose_evenly(targets: Targets, at_most: int) -> np.ndarray:
    """Return (T,) bool: one of every n targets of each user; where that is too many, some of them.

    Which one differs from user to user, by a hash of the user: a user's first target of a window is unlike the later
    ones, and has to be chosen as often as they are. With the middle one always, first targets carried .034 of the
    weight instead of .094 (ML-1M, time split, n = 5).
    """
    n = max(-(-len(targets) // at_most), 1)
    firsts, stops = (np.searchsorted(targets.users, targets.users, side=side) for side in ("left", "right"))
    number = np.arange(len(targets)) - firsts
    place, size = number % n, np.minimum(n, stops - firsts - number // n * n)  # in a group of n or fewer
    chosen = np.flatnonzero(place == (targets.users * 0x9E3779B1 >> 12) % size)
    if len(chosen) > at_most:  # very many users with few targets
        chosen = chosen[np.linspace(0, len(chosen) - 1, at_most).astype(np.int64)]
    return np.isin(np.arange(len(targets)), chosen)


def find_encoder_windows(targets: Targets, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the known events into the windows that the model must see; return them (W, 2) and each target's window (T,).

    Window w is rows windows[w, 0]:windows[w, 1]; target t, a known item, is answered by row positions[t] - 1; of both,
    later ones have later windows. Row i of a causal model depends on nothing after event i but the time of event i + 1,
    which is the target's own. So all targets of a user whose histories fit into `max_len` share one window; each longer
    history gets its own, the last `max_len` events, and so does a target that is asked for at another time.
    """
    starts = np.maximum(targets.firsts, targets.positions - max_len)
    is_alone = targets.request_times != targets.known_timestamps[targets.positions]
    begins = (np.diff(starts, prepend=-1) != 0) | is_alone
    begins[1:] |= is_alone[:-1]
    first_targets = np.flatnonzero(begins)
    stops = np.maximum.reduceat(targets.positions, first_targets) if len(starts) else starts
    return np.stack([starts[first_targets], stops], axis=1), np.cumsum(begins) - 1
