"""Who and what a model is good for: the headline metric of the test part, cut by history, item and user.

history          known events before the target
item_age         days since anybody's first event with the target's item, at the target's time; never negative: the
                 target is an event too. A log that begins late makes items look younger than they are.
item_popularity  tenth of all training events that the item belongs to, items ordered by their number of them: 1 are the
                 few items that make up the first tenth. By share, not by rank: by rank the first two tenths would have
                 57% of ML-1M's targets. Items with equally many events stay together.
activity         known events before the target per day with any. Not the events of the last month: half of ML-1M's test
                 users have none of these, since most rate all at once and stay away.

Items that train never saw are a slice of their own where items are cut: `cold`, a miss for every model.
Shapes: T targets, U users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from components.baselines.popularity import SECONDS_PER_DAY, fit_popularity
from components.dataset import Sequences
from components.ranking.conditions import Interval, Judged, average, summarize
from components.ranking.targets import Targets

HISTORY_LENGTHS = (1, 10, 30, 100, 300)  # lower edges, events
ITEM_AGES = (0, 30, 90, 180, 365)  # days
ACTIVITIES = (1, 3, 10, 30, 100)  # events a day
NUM_TENTHS = 10

Slice = tuple[str, np.ndarray]  # name, (T,) bool


def slice_test(
    sequences: Sequences, judged: Judged, metric: int, interval: Interval
) -> dict[str, list[dict[str, Any]]]:
    """Give column `metric` for every slice that has targets: kind -> [{name, users, targets, models}]."""
    return {
        kind: [_describe(name, which, judged, metric, interval) for name, which in slices]
        for kind, slices in cut_slices(sequences, judged.targets).items()
    }


def cut_slices(sequences: Sequences, targets: Targets) -> dict[str, list[Slice]]:
    """Cut targets into the slices of every kind; those without a target are left out."""
    is_cold = targets.items < 0
    tenths = find_tenths(fit_popularity(sequences, "valid"))[targets.items]
    kinds = {
        "history": _cut(targets.history_lengths, HISTORY_LENGTHS),
        "item_age": _set_apart(is_cold, _cut(find_item_ages(sequences, targets), ITEM_AGES, unit=" d")),
        "item_popularity": _set_apart(is_cold, ((str(n), tenths == n) for n in range(1, NUM_TENTHS + 1))),
        "activity": _cut(find_activities(targets), ACTIVITIES, unit=" a day"),
    }
    return {kind: [one for one in slices if one[1].any()] for kind, slices in kinds.items()}


def find_item_ages(sequences: Sequences, targets: Targets) -> np.ndarray:
    """Return (T,) float64 days from the first event of the target's item, anybody's, to the target; 0 if unknown."""
    first_seen = np.full(sequences.num_items, np.iinfo(np.int64).max)
    is_known = sequences.items >= 0
    np.minimum.at(first_seen, sequences.items[is_known], sequences.timestamps[is_known])
    times = sequences.timestamps[targets.rows]
    ages: np.ndarray = (times - first_seen[targets.items]) / SECONDS_PER_DAY
    return np.where(targets.items < 0, 0.0, ages)


def find_tenths(counts: np.ndarray) -> np.ndarray:
    """Return (X,) int64 from 1: the tenth of all events in which an item's own begin, most frequent items first.

    >>> find_tenths(np.array([1, 6, 1, 2]))
    array([9, 1, 9, 7])
    """
    distinct, places, sizes = np.unique(-counts, return_inverse=True, return_counts=True)
    events = -distinct * sizes
    before = np.cumsum(events) - events  # events of items with more of them
    tenths: np.ndarray = 1 + NUM_TENTHS * before[places] // max(events.sum(), 1)
    return tenths.clip(max=NUM_TENTHS)


def find_activities(targets: Targets) -> np.ndarray:
    """Return (T,) float64: known events before the target per day (UTC) with any of them."""
    days = targets.known_timestamps // SECONDS_PER_DAY
    new_days = np.cumsum(np.diff(days, prepend=-1) != 0)  # of one user, whose days ascend, the differences count
    num_days = new_days[targets.positions - 1] - new_days[targets.firsts] + 1
    activities: np.ndarray = targets.history_lengths / num_days
    return activities


def _cut(values: np.ndarray, edges: Sequence[int], unit: str = "") -> Iterator[Slice]:
    """Cut (T,) values from each edge to the next; the last slice is open."""
    for low, high in pairwise(edges):
        name = f"{low}-{high - 1}" if not unit else f"{low}-{high}{unit}"
        yield name, (values >= low) & (values < high)
    yield f"{edges[-1]}+{unit}", values >= edges[-1]


def _set_apart(is_cold: np.ndarray, slices: Iterator[Slice]) -> Iterator[Slice]:
    for name, which in slices:
        yield name, which & ~is_cold
    yield "cold", is_cold


def _describe(name: str, which: np.ndarray, judged: Judged, metric: int, interval: Interval) -> dict[str, Any]:
    headline = {model: values_TM[:, [metric]] for model, values_TM in judged.filtered.items()}
    condition = average(judged.targets, headline, which)
    models = {model: values["it"] for model, values in summarize(condition, ["it"], interval).items()}
    return {"name": name, "users": len(condition.users), "targets": int(which.sum()), "models": models}
