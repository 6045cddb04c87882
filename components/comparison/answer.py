"""What comes out: two metrics under every condition, side by side.

One number is the headline; the others explain it. Several seeds of a side are averaged for each user before the sides
are compared, and their spread stands beside the interval, which does not contain it.
Shapes: U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.ranking.conditions import SEED, Condition, Interval
from components.ranking.paired import Paired, compare_users

FEW_SEEDS = 3  # fewer say nothing of how much seeds differ
_NOT_OF_THE_METHOD = {"seed", "num_threads", "backend"}


@dataclass(frozen=True)
class Model:
    """What is known of one model of a side; a baseline has no settings."""

    name: str  # as it was asked for
    model: str
    settings: Mapping[str, Any]
    data_hash: str | None
    train_end: int | None  # seconds; after a refit T2
    unknown_share: float  # of the targets in the catalogue: items that it does not know, misses for it
    notes: tuple[str, ...] = ()
    is_refit: bool = False  # trained on validation too


@dataclass(frozen=True)
class Side:
    """One model, or several seeds of one, and the headline number of each."""

    models: tuple[Model, ...]
    values: tuple[float, ...]

    @property
    def num_seeds(self) -> int:
        """How many seeds; 0 for a baseline, which needs none."""
        return len({model.settings.get("seed") for model in self.models if model.settings})

    @property
    def is_method(self) -> bool:
        """Whether the side speaks for a method and not only for its checkpoints."""
        return self.num_seeds == 0 or self.num_seeds >= FEW_SEEDS

    @property
    def differences(self) -> list[str]:
        """What, other than the seed, the models differ in: settings, the model itself, the log it was trained on."""
        methods = [{**model.settings, "model": model.model, "log": model.data_hash} for model in self.models]
        keys = sorted({key for method in methods for key in method} - _NOT_OF_THE_METHOD)
        return [key for key in keys if any(method.get(key) != methods[0].get(key) for method in methods)]


@dataclass(frozen=True)
class Row:
    """One metric under one condition: both sides' means over users, and the comparison."""

    condition: str
    metric: str
    a: float
    b: float
    paired: Paired


@dataclass(frozen=True)
class Comparison:
    """The whole answer; the first row is the headline."""

    protocol: str
    sides: Mapping[str, Side]  # A and B
    rows: Sequence[Row]


def choose_metrics(headline: str, metrics: Sequence[str]) -> tuple[str, str]:
    """Return the headline metric and the other main one: HR beside NDCG at the same k, and the other way round.

    >>> choose_metrics("ndcg@10", ["hr@10", "ndcg@10", "mrr"]), choose_metrics("mrr", ["hr@5", "ndcg@5", "mrr"])
    (('ndcg@10', 'hr@10'), ('mrr', 'ndcg@5'))
    """
    kind, _, k = headline.partition("@")
    ndcg = next(metric for metric in metrics if metric.startswith("ndcg"))
    return headline, {"ndcg": f"hr@{k}", "hr": f"ndcg@{k}"}.get(kind, ndcg)


def compare_conditions(
    conditions: Mapping[str, Condition], a: Sequence[str], b: Sequence[str], metrics: Mapping[str, int], how: Interval
) -> list[Row]:
    """Compare the mean of the models `a` with that of the models `b`; `metrics`: name -> column of (U, M)."""
    rows = []
    for metric, column in metrics.items():
        for name, condition in conditions.items():
            a_U, b_U = (average_seeds(condition, side)[:, column] for side in (a, b))
            paired = compare_users(a_U, b_U, samples=how.samples, confidence=how.confidence, seed=SEED)
            rows.append(Row(name, metric, round(a_U.mean().item(), 6), round(b_U.mean().item(), 6), paired))
    return rows


def average_seeds(condition: Condition, names: Sequence[str]) -> Tensor:
    """Return (U, M): each user's metrics, averaged over the models `names`."""
    return torch.stack([condition.values[name] for name in names]).mean(0)
