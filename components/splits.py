"""Where train ends and where the test begins: two ways of splitting a log.

time_split      global times T1 and T2: train < T1 <= validation < T2 <= test, the same for every user. The headline.
leave_one_out   per user: the last event is the test, the one before it validation. Comparable with the literature, but
                it leaks the future: another user's training events may be later than the test.

Both take the log sorted by (user, timestamp, source row). Shapes: E events, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.errors import StateError

MIN_EVENTS_TO_LEAVE_ONE_OUT = 3  # one each for train, validation and test


@dataclass(frozen=True)
class Split:
    """User u's events are rows starts[u]:ends[u]; train ends at valid_starts[u], validation at test_starts[u]."""

    starts: np.ndarray  # (U,) int64
    valid_starts: np.ndarray
    test_starts: np.ndarray
    ends: np.ndarray
    train_end: int | None = None  # T1, seconds; None where there is no global time
    valid_end: int | None = None  # T2

    def parts(self) -> np.ndarray:
        """Return (E,) int8: 0 train, 1 validation, 2 test."""
        edges = np.stack([self.starts, self.valid_starts, self.test_starts, self.ends])
        lengths = np.diff(edges, axis=0).T.ravel()
        return np.repeat(np.tile(np.arange(3, dtype=np.int8), len(self.starts)), lengths)


def split_by_time(
    timestamps: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, valid_fraction: float, test_fraction: float
) -> Split:
    """Split at two global times; events at a boundary's own second stay together, after it.

    Raises:
        StateError: a part would be empty, e.g. because all events happened in the same second.
    """
    train_end, valid_end = find_boundaries(timestamps, valid_fraction=valid_fraction, test_fraction=test_fraction)
    return Split(
        starts=starts,
        valid_starts=starts + _count_in_each_user(timestamps < train_end, starts, ends),
        test_starts=starts + _count_in_each_user(timestamps < valid_end, starts, ends),
        ends=ends,
        train_end=train_end,
        valid_end=valid_end,
    )


def find_boundaries(timestamps: np.ndarray, *, valid_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return (T1, T2) in seconds: `test_fraction` of all events or more lie from T2 on, `valid_fraction` from T1 to T2.

    >>> find_boundaries(np.arange(100), valid_fraction=0.1, test_fraction=0.1)
    (80, 90)
    """
    times = np.sort(timestamps)
    num_test, num_valid = (max(1, round(len(times) * share)) for share in (test_fraction, valid_fraction))
    if len(times) < num_test + num_valid + 1:
        raise _empty_part(times)
    valid_end = times[len(times) - num_test]
    first_valid = (
        np.searchsorted(times, valid_end) - num_valid
    )  # ties at T2 belong to the test, so count from T2's first
    if first_valid < 0 or times[first_valid] == times[0]:
        raise _empty_part(times)
    return int(times[first_valid]), int(valid_end)


def split_leave_one_out(starts: np.ndarray, ends: np.ndarray) -> Split:
    """Split off each user's last two events; users with fewer than three are train only.

    Raises:
        StateError: no user has three events.
    """
    enough = ends - starts >= MIN_EVENTS_TO_LEAVE_ONE_OUT
    if not enough.any():
        raise StateError(
            "leave_one_out has nothing to test",
            observed=f"no user with {MIN_EVENTS_TO_LEAVE_ONE_OUT} events",
            todo="Ingest a longer log, or remove leave_one_out from protocols in params.yaml",
        )
    return Split(starts=starts, valid_starts=ends - 2 * enough, test_starts=ends - enough, ends=ends)


def _count_in_each_user(flags: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(U,) how many of each user's rows are flagged."""
    before = np.concatenate([[0], np.cumsum(flags)])
    counts: np.ndarray = before[ends] - before[starts]
    return counts


def _empty_part(times: np.ndarray) -> StateError:
    span = f"{len(times)} events between the seconds {times[0]} and {times[-1]}" if len(times) else "no events"
    return StateError(
        "time_split would leave train, validation or test empty",
        observed=span,
        expected="events spread over time",
        todo="Check the timestamp column and its unit, or lower valid_fraction and test_fraction in params.yaml",
    )
