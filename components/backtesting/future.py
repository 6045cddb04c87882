"""The days after a night, which nobody could know: what the deployed model, a frozen one, popularity are worth there.

The catalogue is all that had happened before; a model misses what its training did not know. Popularity knows all
of it: it needs no training. Shapes: E events, U users, X items, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from components.baselines.popularity import PopularityScorer, fit_popularity
from components.catalogue import Catalogue, read_catalogue
from components.challenging.window import count_window
from components.comparison.entrants import Entrant, load_entrant
from components.comparison.judging import count_misses
from components.dataset import Sequences
from components.event_log import Log, build_catalogue, number_items
from components.ranking.conditions import SEED, average, summarize
from components.ranking.judging import Cell, judge_part
from components.ranking.paired import compare_users
from components.settings import EvaluateSettings

POPULARITY = "popularity_recent"


def open_future(
    events: Log, data: Path, split: Mapping[str, Any], start: int, stop: int
) -> tuple[Sequences, Catalogue]:
    """Return sequences whose test part is start <= time < stop, over a catalogue of all items before `start`."""
    is_past = events.timestamps < start
    table = build_catalogue(events.item_ids[is_past], events.timestamps[is_past], data)
    starts, test_starts, ends = events.starts, _count(events, start), _count(events, stop)
    times = {"train_end": start, "valid_end": start, "num_items": table.num_rows}
    sequences = Sequences(
        items=number_items(events.item_ids, table["item_id"].to_numpy()),
        timestamps=events.timestamps,
        user_ids=events.user_ids,
        starts=starts,
        valid_starts=starts + test_starts,
        test_starts=starts + test_starts,
        ends=starts + ends,
        split=dict(split) | times,
    )
    return sequences, read_catalogue(table, key_type=split["key_type"])


def score_future(
    settings: EvaluateSettings, future: Sequences, here: Catalogue, models: Mapping[str, Path], days: int
) -> dict[str, Any] | None:
    """Score `models` (role -> checkpoint) and popularity of the last `days` on `future`'s test part.

    Returns the value of each with its interval, the share of targets that are new items of these days, beside it that
    of earlier ones which each model does not know, and deployed - frozen, paired by user; None where nobody has a
    target.
    """
    window = count_window(future)
    if not window["users"]:
        return None
    cell = Cell(settings, "backtest", "time_split", future)
    popularity = PopularityScorer(fit_popularity(future, "test", days=days))
    everything = np.ones(future.num_items, dtype=bool)
    # Keyed by folder: a model that has two roles is ranked once.
    entrants = {str(folder): load_entrant(str(folder), folder, future, here) for folder in set(models.values())}
    entrants[POPULARITY] = Entrant(POPULARITY, popularity, everything)
    judged = judge_part(cell, "test", {key: entrant.scorer for key, entrant in entrants.items()})
    judged = count_misses(judged, entrants)
    columns = {key: values_TM[:, [cell.headline]] for key, values_TM in judged.filtered.items()}
    condition = average(judged.targets, columns)
    found = {key: value["it"] for key, value in summarize(condition, ["it"], cell.interval).items()}
    roles = {role: str(folder) for role, folder in models.items()} | {POPULARITY: POPULARITY}
    return {
        "window": window,
        "values": {role: found[key] for role, key in roles.items()},
        "unknown_share": {role: entrants[key].describe(judged.targets).unknown_share for role, key in roles.items()},
        "new_share": float((judged.targets.items < 0).mean()),
        "loss": _compare(cell, {role: condition.values[key][:, 0] for role, key in roles.items()}),
    }


def _compare(cell: Cell, values: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return deployed - frozen, paired by user; None without a champion."""
    if "deployed" not in values:
        return None
    how = cell.interval
    paired = compare_users(
        values["deployed"], values["frozen"], samples=how.samples, confidence=how.confidence, seed=SEED
    )
    return asdict(paired)


def _count(events: Log, time: int) -> np.ndarray:
    """Return (U,): how many of each user's events lie before `time`."""
    before = np.concatenate([[0], np.cumsum(events.timestamps < time)])
    counts: np.ndarray = before[events.ends] - before[events.starts]
    return counts
