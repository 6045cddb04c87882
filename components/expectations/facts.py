"""What is counted of a log after the quarantine: month by month, and added up without looking at a row again.

    facts = add_up([count_events(month) for month in months])    # as count_events() of all of them
    measure(facts, num_rows)                                     # {"num_users": 943, "tied_share": .81, ...}

Adding up is exact because an event lies in the month of its time: no two months share a second, so none shares a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from components.expectations.repeats import find_repeats


@dataclass(frozen=True)
class Facts:
    """users, items, months (of the times, from 1970-01 on): sorted distinct int64; actions: how often each."""

    num_events: int
    num_tied: int  # events at the same second as another event of their user
    users: np.ndarray
    items: np.ndarray
    months: np.ndarray
    first: int | None
    last: int | None
    actions: dict[str, int]


def count_events(kept: pd.DataFrame) -> Facts:
    """Count `kept`: columns user_id, item_id, timestamp and action (categorical), without nulls."""
    times = kept["timestamp"].to_numpy("int64")
    actions = kept["action"].value_counts()
    return Facts(
        num_events=len(kept),
        num_tied=int(find_repeats(kept, ["user_id", "timestamp"], keep=False).sum()),
        users=_distinct(kept["user_id"]),
        items=_distinct(kept["item_id"]),
        months=np.unique(times.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)),
        first=int(times.min()) if len(times) else None,
        last=int(times.max()) if len(times) else None,
        actions={str(name): int(count) for name, count in actions.items() if count},
    )


def add_up(months: Sequence[Facts]) -> Facts:
    """Return the facts of all months together."""
    actions: Counter[str] = Counter()
    for month in months:
        actions.update(month.actions)
    return Facts(
        num_events=sum(month.num_events for month in months),
        num_tied=sum(month.num_tied for month in months),
        users=_union([month.users for month in months]),
        items=_union([month.items for month in months]),
        months=_union([month.months for month in months]),
        first=min((month.first for month in months if month.first is not None), default=None),
        last=max((month.last for month in months if month.last is not None), default=None),
        actions=dict(actions),
    )


def measure(facts: Facts, num_rows: int) -> dict[str, float]:
    """Return what the suite `log` judges; `num_rows` counts the rows before the quarantine."""
    return {
        "bad_fraction": (num_rows - facts.num_events) / max(num_rows, 1),
        "num_events": facts.num_events,
        "num_users": len(facts.users),
        "num_items": len(facts.items),
        "tied_share": facts.num_tied / facts.num_events if facts.num_events else 0.0,
    }


def _distinct(ids: pd.Series) -> np.ndarray:
    return np.unique(ids.to_numpy("int64"))


def _union(ids: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *ids]))
