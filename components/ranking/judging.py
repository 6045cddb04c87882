"""One model on one protocol: who ranks what, and what of it is measured.

A model and the baselines rank the same targets by the same code. Baselines are fitted at the start of the window that
is judged, and their few parameters chosen on the validation part. Shapes: T targets, U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.baselines import Chosen, choose_baselines, fit_baselines
from components.checkpoint import load_model
from components.dataset import Sequences
from components.errors import SettingsError, StateError
from components.metrics import metric_names
from components.ranking.beyond import TOP
from components.ranking.blocks import ModelScorer, Ranking, Scorer, rank_catalogue
from components.ranking.conditions import Interval, Judged, average, measure_part
from components.ranking.targets import Targets, choose_evenly, find_targets
from components.settings import EvaluateSettings

# Of the targets whose request time is unknown, and of those that choose the baselines' parameters. Without its own time
# a target needs an encoder window of its own: ML-1M's 100,000 of the time split would be 16 million rows, after the 13
# million of the test part itself.
MAX_TARGETS = 20_000


@dataclass(frozen=True)
class Cell:
    """What is judged: one model on one protocol.

    Raises:
        SettingsError: the headline metric is none of those that the cutoffs give.
    """

    settings: EvaluateSettings
    model: str
    protocol: str
    sequences: Sequences

    def __post_init__(self) -> None:
        if self.settings.headline_metric not in self.metrics:
            raise SettingsError(
                "evaluate.headline_metric is not measured",
                where="params.yaml",
                observed=self.settings.headline_metric,
                expected=f"one of {', '.join(self.metrics)}",
                todo="Add its k to evaluate.cutoffs",
            )

    @property
    def interval(self) -> Interval:
        """How this cell's intervals are made."""
        return Interval(self.settings.bootstrap_samples, self.settings.confidence)

    @property
    def metrics(self) -> list[str]:
        """The M metric names, in column order."""
        return metric_names(self.settings.cutoffs)

    @property
    def headline(self) -> int:
        """The column of the headline metric."""
        return self.metrics.index(self.settings.headline_metric)


def load_scorer(cell: Cell, checkpoint: Path, part: str) -> tuple[ModelScorer, dict[str, Any]]:
    """Return the cell's model as `part` may judge it, and checkpoint.json.

    The test part judges what is served; validation, whose events a refit has seen, the model before it.

    Raises:
        StateError: the checkpoint is missing, or belongs to another model or other sequences.
    """
    model, facts = load_model(checkpoint, selected=part == "valid")
    split = cell.sequences.split
    if (facts["model"], facts["split"]) != (cell.model, split):
        raise StateError(
            "was trained on other data, split elsewhere, or is another model",
            where=str(checkpoint),
            observed=f"{facts['model']}, {_describe_split(facts['split'])}",
            expected=f"{cell.model}, {_describe_split(split)}",
            todo="Run `dvc repro`",
        )
    settings = facts["settings"]
    torch.set_num_threads(settings.get("num_threads", 1))
    uses_time = getattr(model, "knows_request_time", False) and "time" in settings["bias"]
    return ModelScorer(model, settings["max_len"], uses_request_time=uses_time), facts


def _describe_split(split: Mapping[str, Any]) -> str:
    return f"data {split['data_hash'][:8]}, {split['num_items']} items, train before {split['train_end']}"


def choose(cell: Cell) -> Chosen:
    """Choose the baselines' parameters by the headline metric, on the validation part or an even choice of it."""
    targets = _targets(cell, "valid")
    some = targets.take(choose_evenly(targets, MAX_TARGETS))

    def measure(scorers: Mapping[str, Scorer]) -> dict[str, float]:
        judged = measure_part(some, _rank(cell, scorers, some, "choosing baselines"), cell.settings.cutoffs)
        averages = average(some, judged.filtered).values
        return {name: float(values_UM[:, cell.headline].mean()) for name, values_UM in averages.items()}

    return choose_baselines(cell.sequences, measure, cell.settings.recent_days)


def gather_scorers(cell: Cell, part: str, scorer: Scorer, chosen: Chosen) -> dict[str, Scorer]:
    """Return the model's scorer under the model's name, then the baselines fitted for `part`."""
    return {cell.model: scorer, **fit_baselines(cell.sequences, part, chosen)}


def judge_part(cell: Cell, part: str, scorers: Mapping[str, Scorer]) -> Judged:
    """Rank and measure all targets of 'valid' or 'test', the latter with top lists.

    Raises:
        StateError: there is none.
    """
    targets, top = _targets(cell, part), TOP if part == "test" else 0
    return measure_part(targets, _rank(cell, scorers, targets, f"ranking {part}", top), cell.settings.cutoffs)


def judge_unknown_time(cell: Cell, scorers: Mapping[str, Scorer], test: Judged) -> Judged:
    """Rank and measure the targets of the test part, of many an even choice, as if nobody had told when they come."""
    targets = test.targets.take(choose_evenly(test.targets, MAX_TARGETS)).forget_request_times()
    return measure_part(targets, _rank(cell, scorers, targets, "ranking, unknown time"), cell.settings.cutoffs)


def _targets(cell: Cell, part: str) -> Targets:
    targets = find_targets(cell.sequences, part)
    if len(targets) == 0:
        raise StateError(
            f"no event of the {part} part has a history, so there is nothing to judge",
            where=f"artifacts/sequences/{cell.protocol}",
            todo=f"Ingest a longer log, or raise sequences.{part}_fraction in params.yaml",
        )
    return targets


def _rank(cell: Cell, scorers: Mapping[str, Scorer], targets: Targets, what: str, top: int = 0) -> dict[str, Ranking]:
    block_bytes = cell.settings.block_megabytes << 20
    return rank_catalogue(scorers, targets, cell.sequences.num_items, block_bytes=block_bytes, what=what, top=top)
