"""Challenger, champion and baselines on one window: the numbers that the rule looks at, as JSON.

    contest = meet(cell, challenger, champion, catalogue, min_users=30)      # contenders: name and checkpoint folder

Both rank the same targets of the same users by the evaluator's own code; an item that one does not know, it misses.
Shapes: T targets, M metrics, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.baselines import BASELINES
from components.catalogue import Catalogue
from components.challenging.window import count_window, open_window
from components.checkpoint import load_model
from components.comparison.contenders import Contender
from components.comparison.entrants import Entrant, load_entrant
from components.comparison.judging import count_misses, fit_named_baselines
from components.dataset import Sequences
from components.ranking.conditions import SEED, Judged, average, summarize
from components.ranking.judging import Cell, judge_part
from components.ranking.paired import Paired, compare_users
from components.ranking.slices import cut_slices

CHALLENGER, CHAMPION = "challenger", "champion"


def meet(
    cell: Cell, challenger: Contender, champion: Contender | None, here: Catalogue, *, min_users: int
) -> dict[str, Any]:
    """Score all on the newest events that neither has seen; fewer than `min_users` users are not looked at.

    The first model of all has no champion to beat: it is judged beside the baselines, however few the users. `here` is
    the catalogue of the cell's sequences.

    Raises:
        StateError: a checkpoint is damaged.
    """
    seen = None if champion is None else load_model(_folder(champion))[1]["split"]
    window = open_window(cell.sequences, seen)
    contest = _describe(cell, window, has_champion=champion is not None)
    if window is None or (champion is not None and contest["window"]["users"] < min_users):
        return contest
    entrants = {
        role: load_entrant(one.name, _folder(one), window, here)
        for role, one in ((CHALLENGER, challenger), (CHAMPION, champion))
        if one is not None
    }
    window_cell = replace(cell, sequences=window)
    judged = _judge(window_cell, entrants)
    shares = {role: entrant.describe(judged.targets).unknown_share for role, entrant in entrants.items()}
    compared = _compare(window_cell, judged, has_champion=champion is not None)
    return contest | {"unknown_share": shares} | compared


def _describe(cell: Cell, window: Sequences | None, *, has_champion: bool) -> dict[str, Any]:
    """Return a contest of which nothing is measured yet."""
    return {
        "metric": cell.settings.headline_metric,
        "window": {"from": None, "to": None, "users": 0, "targets": 0} if window is None else count_window(window),
        "has_champion": has_champion,
        "unknown_share": {},
        "values": {},
        "paired": None,
        "baselines": {},
        "slices": [],
    }


def _folder(contender: Contender) -> Path:
    if contender.folder is None:
        raise ValueError(f"{contender.name} is a baseline, which takes part anyway")
    return contender.folder


def _judge(cell: Cell, entrants: Mapping[str, Entrant]) -> Judged:
    everything = np.ones(cell.sequences.num_items, dtype=bool)
    scorers = fit_named_baselines(cell, BASELINES)
    everybody = {**entrants, **{name: Entrant(name, scorers[name], everything) for name in BASELINES}}
    judged = judge_part(cell, "test", {name: entrant.scorer for name, entrant in everybody.items()})
    return count_misses(judged, everybody)


def _compare(cell: Cell, judged: Judged, *, has_champion: bool) -> dict[str, Any]:
    column = [cell.headline]
    condition = average(judged.targets, {name: values_TM[:, column] for name, values_TM in judged.filtered.items()})
    values = {name: values_UM[:, 0] for name, values_UM in condition.values.items()}

    def compare(other: str) -> Paired:
        how = cell.interval
        own_U, other_U = values[CHALLENGER], values[other]
        return compare_users(own_U, other_U, samples=how.samples, confidence=how.confidence, seed=SEED)

    summary = summarize(condition, ["it"], cell.interval)
    return {
        "values": {name: metrics["it"] for name, metrics in summary.items()},
        "paired": asdict(compare(CHAMPION)) if has_champion else None,
        "baselines": {name: asdict(compare(name)) for name in BASELINES},
        "slices": _compare_slices(cell, judged) if has_champion else [],
    }


def _compare_slices(cell: Cell, judged: Judged) -> list[dict[str, Any]]:
    """Give challenger - champion for every slice that has targets."""
    found, how = [], cell.interval
    both = {name: judged.filtered[name][:, [cell.headline]] for name in (CHALLENGER, CHAMPION)}
    for kind, slices in cut_slices(cell.sequences, judged.targets).items():
        for name, which_T in slices:
            sides = average(judged.targets, both, which_T).values
            own_U, other_U = (sides[side][:, 0] for side in (CHALLENGER, CHAMPION))
            paired = compare_users(own_U, other_U, samples=how.samples, confidence=how.confidence, seed=SEED)
            facts = {"difference": paired.difference, "low": paired.low, "high": paired.high}
            found.append({"kind": kind, "name": name, "users": paired.num_users, "targets": int(which_T.sum())} | facts)
    return found
