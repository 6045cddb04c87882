"""Is one model better than another, or cannot that be told? Both ranked on the same held-out events, paired by user.

    python -m components compare A B
    python -m components compare hstuflow:latest artifacts/checkpoints/time_split/hstu --json comparison.json
    python -m components compare seed-1,seed-2,seed-3 item_item

A and B are checkpoint folders, Bento tags, git revisions, DVC experiments or baselines; commas separate seeds
(components/comparison/contenders.py). Nothing that an earlier evaluation wrote is read: both sides go through today's
evaluator on the test part of today's artifacts/sequences/<protocol>. A model that has seen any of it is refused
(fairness.py); one with another catalogue is judged through item ids (translation.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components.catalogue import load_catalogue
from components.comparison.answer import Comparison, Side, choose_metrics, compare_conditions
from components.comparison.contenders import find_side
from components.comparison.entrants import Entrant, load_entrant
from components.comparison.judging import fit_named_baselines, judge_entrants
from components.comparison.printing import print_comparison
from components.comparison.words import describe
from components.console import log
from components.dataset import load_sequences
from components.files import write_json
from components.ranking.judging import Cell
from components.settings import EvaluateSettings


def compare(
    settings: EvaluateSettings, a: str, b: str, *, protocol: str, artifacts: Path, out: Path | None = None
) -> Comparison:
    """Print the paired table of A and B on the test part of `protocol`; also write it to `out`, as JSON.

    Raises:
        InputError: a name means nothing here, or a model has seen events that are held out.
        SettingsError: the headline metric is none of those that the cutoffs give.
        StateError: sequences, a checkpoint, a stored Bento or DVC's copy of a revision is missing or damaged.
    """
    cell = Cell(settings, "A and B", protocol, load_sequences(artifacts / "sequences" / protocol))
    headline = cell.headline
    entrants = _gather(cell, {"A": a, "B": b}, artifacts)
    targets, conditions = judge_entrants(cell, entrants["A"] | entrants["B"])
    metrics = {metric: cell.metrics.index(metric) for metric in choose_metrics(settings.headline_metric, cell.metrics)}
    rows = compare_conditions(conditions, list(entrants["A"]), list(entrants["B"]), metrics, cell.interval)
    values = {key: values_UM[:, headline].mean().item() for key, values_UM in conditions[protocol].values.items()}
    sides = {
        side: Side(
            models=tuple(entrant.describe(targets) for entrant in found.values()),
            values=tuple(round(values[key], 6) for key in found),
        )
        for side, found in entrants.items()
    }
    comparison = Comparison(protocol, sides, rows)
    print_comparison(comparison)
    if out is not None:
        write_json(out, describe(comparison))
        log.info("comparison written to %s", out)
    return comparison


def _gather(cell: Cell, named: Mapping[str, str], artifacts: Path) -> dict[str, dict[str, Entrant]]:
    """Load both sides, A -> A1, A2, ... -> entrant; a name of its own for each, since both may name the same model."""
    folder = artifacts / "sequences" / cell.protocol
    here = load_catalogue(folder, key_type=cell.sequences.split["key_type"])
    with tempfile.TemporaryDirectory(prefix="hstuflow-compare-") as scratch:
        found = {
            f"{side}{number}": contender
            for side, names in named.items()
            for number, contender in enumerate(
                find_side(names, checkpoints=artifacts / "checkpoints" / cell.protocol, scratch=Path(scratch)), start=1
            )
        }
        entrants = {
            key: load_entrant(contender.name, contender.folder, cell.sequences, here)
            for key, contender in found.items()
            if contender.folder is not None
        }
    baselines = {key: contender.name for key, contender in found.items() if contender.folder is None}
    scorers = fit_named_baselines(cell, baselines.values())
    everything = np.ones(cell.sequences.num_items, dtype=bool)
    entrants |= {key: Entrant(name, scorers[name], everything) for key, name in baselines.items()}
    return {side: {key: entrants[key] for key in found if key.startswith(side)} for side in named}
