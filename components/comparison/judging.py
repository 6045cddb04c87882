"""Both sides through the evaluator: the same targets of the test part, every condition that it has there.

Validation is left out: each checkpoint's epoch was chosen on it, on more or fewer tries. Shapes: T targets, M metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from components.baselines import fit_baselines
from components.comparison.entrants import Entrant
from components.ranking.blocks import Scorer
from components.ranking.conditions import Condition, Judged, build_conditions
from components.ranking.judging import Cell, choose, judge_part, judge_unknown_time
from components.ranking.targets import Targets, find_tied


def judge_entrants(cell: Cell, entrants: Mapping[str, Entrant]) -> tuple[Targets, dict[str, Condition]]:
    """Rank the test part by all entrants; return its targets, and metrics per user under every condition of it.

    Raises:
        StateError: no held-out event has a history.
    """
    scorers = {name: entrant.scorer for name, entrant in entrants.items()}
    test = judge_part(cell, "test", scorers)
    unknown_time = judge_unknown_time(cell, scorers, test)
    test, unknown_time = count_misses(test, entrants), count_misses(unknown_time, entrants)
    is_tied = find_tied(cell.sequences, test.targets.rows)
    conditions = build_conditions(cell.protocol, test, test, unknown_time, is_tied)
    del conditions[f"{cell.protocol}.valid"]  # it was built of the test part, for want of another
    return test.targets, conditions


def fit_named_baselines(cell: Cell, names: Iterable[str]) -> dict[str, Scorer]:
    """Fit the baselines `names` for the test part; their parameters are chosen on validation, as in `evaluate`."""
    wanted = set(names)
    if not wanted:
        return {}
    fitted = fit_baselines(cell.sequences, "test", choose(cell))
    return {name: fitted[name] for name in wanted}


def count_misses(judged: Judged, entrants: Mapping[str, Entrant]) -> Judged:
    """Give nothing for a target that an entrant does not know, wherever the ties of unscored items would place it."""

    def without_misses(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        misses = {name: torch.from_numpy(entrants[name].misses(judged.targets)) for name in values}
        return {name: values_TM.masked_fill(misses[name][:, None], 0.0) for name, values_TM in values.items()}

    return replace(judged, filtered=without_misses(judged.filtered), unfiltered=without_misses(judged.unfiltered))
