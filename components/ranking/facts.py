"""facts.json: what was judged, by which baselines, what it is good for, and what looks odd about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from components.baselines import Chosen
from components.baselines.popularity import fit_popularity
from components.dataset import Sequences
from components.ranking.alarms import find_alarms
from components.ranking.beyond import measure_beyond
from components.ranking.conditions import Condition, Judged
from components.ranking.judging import Cell
from components.ranking.slices import slice_test
from components.ranking.targets import Targets, find_repeats, find_tied

Facts = dict[str, Any]


def count_parts(cell: Cell, valid: Judged, test: Judged, unknown_time: Judged) -> Facts:
    """Say how much was judged."""
    sequences = cell.sequences
    return {
        "model": cell.model,
        "protocol": cell.protocol,
        "headline_metric": cell.settings.headline_metric,
        "num_items": sequences.num_items,
        "valid": _count(sequences, valid.targets, sequences.valid_starts, sequences.test_starts),
        "test": _count(sequences, test.targets, sequences.test_starts, sequences.ends),
        "unknown_time": {"targets": len(unknown_time.targets), "of": len(test.targets)},
    }


def describe_baselines(chosen: Chosen) -> Facts:
    """Say what validation chose for each baseline."""
    parameters = asdict(chosen)
    days = parameters.pop("recent_days")
    return {"recent_days": days, "baselines": {"popularity": {}, "popularity_recent": {"days": days}, **parameters}}


def look_closer(cell: Cell, test: Judged, genres: Sequence[str | None]) -> Facts:
    """Cut the headline metric into slices, and look at what is recommended besides whether it is right."""
    counts_X = fit_popularity(cell.sequences, "valid")
    return {
        "slices": slice_test(cell.sequences, test, cell.headline, cell.interval),
        "beyond": {
            name: measure_beyond(test.targets, ranking, counts_X, genres) for name, ranking in test.rankings.items()
        },
    }


def list_alarms(
    cell: Cell, conditions: Mapping[str, Condition], facts: Facts, checkpoint: Mapping[str, Any]
) -> list[str]:
    """Return a sentence for whatever looks too good, too bad or too lucky to be true; `checkpoint`: checkpoint.json."""
    training = {key: checkpoint[key] for key in ("epochs", "best_epoch") if key in checkpoint}
    valid, test = conditions[f"{cell.protocol}.valid"], conditions[cell.protocol]
    return find_alarms(valid, test, model=cell.model, metric=cell.headline, facts=facts | training)


def _count(sequences: Sequences, targets: Targets, starts: np.ndarray, stops: np.ndarray) -> dict[str, float]:
    """Count a part: shares are of its targets; `events` and `users_with_events` include what has no history."""
    return {
        "events": int((stops - starts).sum()),
        "users_with_events": int((stops > starts).sum()),
        "users": len(np.unique(targets.users)),
        "targets": len(targets),
        "cold_share": round(float((targets.items < 0).mean()), 6),
        "tied_share": round(float(find_tied(sequences, targets.rows).mean()), 6),
        "repeat_share": round(float(find_repeats(targets).mean()), 6),
    }
