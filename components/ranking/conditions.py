"""The same rankings under several conditions: from each target's metrics to each user's, to values with intervals.

    <protocol>              every target of the test part, history filtered: the numbers to quote
    <protocol>.unfiltered   the same, with the user's own history left in the ranking
    <protocol>.first|last   only each user's first or last target (time_split): on ML-100K the choice decides the winner
    <protocol>.valid        the validation part: what the gate looks at

Every metric is averaged per user, then over users, so that a few heavy users do not speak for all.
Shapes: T targets, U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.metrics import Ranks, average_by_user, bootstrap_interval, measure
from components.ranking.targets import Targets

SEED = 1  # of every bootstrap: the same users are resampled for each model and condition
HISTORY_LENGTHS = (1, 10, 30, 100, 300)  # lower edges of the slices

Table = dict[str, dict[str, dict[str, dict[str, float]]]]  # condition -> model -> metric -> value, low, high


@dataclass(frozen=True)
class Judged:
    """One part's targets, and every scorer's metrics on them."""

    targets: Targets
    filtered: dict[str, Tensor]  # scorer -> (T, M)
    unfiltered: dict[str, Tensor]


@dataclass(frozen=True)
class Condition:
    """Metrics per user of several models, for the same users."""

    users: np.ndarray  # (U,) int64, user numbers of the log
    values: dict[str, Tensor]  # model -> (U, M)


@dataclass(frozen=True)
class Interval:
    """How intervals are made."""

    samples: int
    confidence: float

    def around(self, values_UM: Tensor) -> tuple[Tensor, Tensor]:
        """Return (low_M, high_M)."""
        return bootstrap_interval(values_UM, samples=self.samples, confidence=self.confidence, seed=SEED)


def measure_part(targets: Targets, ranks: Mapping[str, Mapping[str, Ranks]], cutoffs: Sequence[int]) -> Judged:
    """Turn `rank_catalogue`'s answer into metrics."""
    kinds = {
        kind: {name: measure(found[kind], cutoffs) for name, found in ranks.items()}
        for kind in ("filtered", "unfiltered")
    }
    return Judged(targets, kinds["filtered"], kinds["unfiltered"])


def average(targets: Targets, values: Mapping[str, Tensor], which: np.ndarray | None = None) -> Condition:
    """Average over each user's targets, or over those at `which` (T,) bool."""
    mask = np.ones(len(targets), dtype=bool) if which is None else which
    user_of_T, chosen = torch.from_numpy(targets.users[mask]), torch.from_numpy(mask)
    averaged = {name: average_by_user(values_TM[chosen], user_of_T) for name, values_TM in values.items()}
    users = next(iter(averaged.values()))[0]
    return Condition(users.numpy(), {name: values_UM for name, (_, values_UM) in averaged.items()})


def build_conditions(protocol: str, valid: Judged, test: Judged) -> dict[str, Condition]:
    """Average the judged parts under every condition of the protocol."""
    conditions = {
        protocol: average(test.targets, test.filtered),
        f"{protocol}.unfiltered": average(test.targets, test.unfiltered),
        f"{protocol}.valid": average(valid.targets, valid.filtered),
    }
    if protocol == "time_split":  # leave-one-out has one target a user
        is_first = np.diff(test.targets.users, prepend=-1) != 0
        conditions[f"{protocol}.first"] = average(test.targets, test.filtered, is_first)
        conditions[f"{protocol}.last"] = average(test.targets, test.filtered, np.append(is_first[1:], True))
    return conditions


def tabulate(conditions: Mapping[str, Condition], metrics: Sequence[str], interval: Interval) -> Table:
    """Give every condition, model and metric its value and interval."""
    return {
        name: {model: _with_interval(values_UM, metrics, interval) for model, values_UM in condition.values.items()}
        for name, condition in conditions.items()
    }


def slice_by_history(judged: Judged, metric: int, interval: Interval) -> list[dict[str, Any]]:
    """Give one metric (column `metric`) separately for targets with short and long histories."""
    slices = []
    edges = [*HISTORY_LENGTHS, np.iinfo(np.int64).max]
    for low, high in pairwise(edges):
        which = (judged.targets.history_lengths >= low) & (judged.targets.history_lengths < high)
        if which.any():
            condition = average(judged.targets, judged.filtered, which)
            models = {
                name: _with_interval(values_UM[:, [metric]], ["metric"], interval)["metric"]
                for name, values_UM in condition.values.items()
            }
            name = f"{low}-{high - 1}" if high < edges[-1] else f"{low}+"
            facts = {"history": name, "users": len(condition.users), "targets": int(which.sum())}
            slices.append(facts | {"models": models})
    return slices


def _with_interval(values_UM: Tensor, metrics: Sequence[str], interval: Interval) -> dict[str, dict[str, float]]:
    low_M, high_M = interval.around(values_UM)
    rows = torch.stack([values_UM.mean(0), low_M, high_M], dim=1).tolist()
    return {
        metric: dict(zip(("value", "low", "high"), (round(number, 6) for number in row), strict=True))
        for metric, row in zip(metrics, rows, strict=True)
    }
