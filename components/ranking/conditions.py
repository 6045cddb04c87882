"""The same rankings under several conditions: from each target's metrics to each user's, to values with intervals.

    <protocol>               every target of the test part, history filtered: the numbers to quote
    <protocol>.unfiltered    the same, with the user's own history left in the ranking
    <protocol>.unknown_time  asked right after the last known event instead of at the target's time, which tells a model
                             when the user came back; of many targets an even choice
    <protocol>.untied        only targets whose time no other event of the user has: the order of the others is chance
    <protocol>.first|last    only each user's first or last target (time_split): on ML-100K this decides who wins
    <protocol>.valid         the validation part: what the gate looks at

Every metric is averaged per user, then over users, so that a few heavy users do not speak for all.
Shapes: T targets, U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.metrics import average_by_user, bootstrap_interval, measure
from components.ranking.blocks import Ranking
from components.ranking.targets import Targets

SEED = 1  # of every bootstrap: the same users are resampled for each model and condition

Value = dict[str, float]  # value, low, high
Table = dict[str, dict[str, dict[str, Value]]]  # condition -> model -> metric


@dataclass(frozen=True)
class Judged:
    """One part's targets, how every scorer ranked them, and the metrics of that."""

    targets: Targets
    rankings: Mapping[str, Ranking]
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

    def around(self, values_UM: Tensor) -> list[Value]:
        """Give the mean over users of each of the M columns its interval."""
        low_M, high_M = bootstrap_interval(values_UM, samples=self.samples, confidence=self.confidence, seed=SEED)
        rows = torch.stack([values_UM.mean(0), low_M, high_M], dim=1).tolist()
        return [dict(zip(("value", "low", "high"), (round(number, 6) for number in row), strict=True)) for row in rows]


def measure_part(targets: Targets, rankings: Mapping[str, Ranking], cutoffs: Sequence[int]) -> Judged:
    """Turn `rank_catalogue`'s answer into metrics."""
    return Judged(
        targets,
        rankings,
        filtered={name: measure(ranking["filtered"], cutoffs) for name, ranking in rankings.items()},
        unfiltered={name: measure(ranking["unfiltered"], cutoffs) for name, ranking in rankings.items()},
    )


def average(targets: Targets, values: Mapping[str, Tensor], which: np.ndarray | None = None) -> Condition:
    """Average over each user's targets, or over those at `which` (T,) bool."""
    mask = np.ones(len(targets), dtype=bool) if which is None else which
    user_of_T, chosen = torch.from_numpy(targets.users[mask]), torch.from_numpy(mask)
    averaged = {name: average_by_user(values_TM[chosen], user_of_T) for name, values_TM in values.items()}
    users = next(iter(averaged.values()))[0]
    return Condition(users.numpy(), {name: values_UM for name, (_, values_UM) in averaged.items()})


def build_conditions(
    protocol: str, valid: Judged, test: Judged, unknown_time: Judged, is_tied: np.ndarray
) -> dict[str, Condition]:
    """Average the judged parts under every condition of the protocol.

    `is_tied` (T,) bool of the test part's targets; where all are, there is no condition `untied`.
    """
    conditions = {
        protocol: average(test.targets, test.filtered),
        f"{protocol}.unfiltered": average(test.targets, test.unfiltered),
        f"{protocol}.unknown_time": average(unknown_time.targets, unknown_time.filtered),
    }
    if not is_tied.all():
        conditions[f"{protocol}.untied"] = average(test.targets, test.filtered, ~is_tied)
    if protocol == "time_split":  # leave-one-out has one target a user
        is_first = np.diff(test.targets.users, prepend=-1) != 0
        conditions[f"{protocol}.first"] = average(test.targets, test.filtered, is_first)
        conditions[f"{protocol}.last"] = average(test.targets, test.filtered, np.append(is_first[1:], True))
    conditions[f"{protocol}.valid"] = average(valid.targets, valid.filtered)
    return conditions


def tabulate(conditions: Mapping[str, Condition], metrics: Sequence[str], interval: Interval) -> Table:
    """Give every condition, model and metric its value and interval."""
    return {name: summarize(condition, metrics, interval) for name, condition in conditions.items()}


def summarize(condition: Condition, metrics: Sequence[str], interval: Interval) -> dict[str, dict[str, Value]]:
    """Give every model and metric of one condition its value and interval."""
    # All models at once: their users are the same, and so are the resamples, which take most of the time.
    values = iter(interval.around(torch.cat(list(condition.values.values()), dim=1)))
    return {model: {metric: next(values) for metric in metrics} for model in condition.values}
