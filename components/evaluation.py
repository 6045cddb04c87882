"""Judge one model honestly: the whole catalogue ranked for every held-out event, beside popularity, with intervals.

    python -m components evaluate --model hstu --protocol time_split

Writes artifacts/evaluation/<protocol>/<model>/ (docs/architecture.md has the formats). In components/ranking/:
what is a target and its history (targets), filters and blocks (blocks), what is averaged over what (conditions), the
verdict (gate). Popularity is fitted at the start of the window that is judged; how many days count as recent is
chosen on the validation part. Shapes: T targets, U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.console import log, print_header, print_table
from components.dataset import Sequences, load_sequences
from components.errors import SettingsError, StateError
from components.files import replacing_folder, write_json
from components.metrics import metric_names
from components.model.popularity import fit_popularity
from components.ranking.blocks import ModelScorer, PopularityScorer, Scorer, rank_catalogue
from components.ranking.conditions import (
    SEED,
    Condition,
    Interval,
    Judged,
    Table,
    average,
    build_conditions,
    measure_part,
    slice_by_history,
    tabulate,
)
from components.ranking.examples import make_examples
from components.ranking.gate import Gate, judge
from components.ranking.targets import Targets, find_repeats, find_targets, find_tied
from components.recommender import Recommender, load_model
from components.settings import EvaluateSettings


@dataclass(frozen=True)
class Cell:
    """What is judged: one model on one protocol."""

    settings: EvaluateSettings
    model: str
    protocol: str
    sequences: Sequences

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


def evaluate(
    settings: EvaluateSettings, model: str, protocol: str, *, sequences: Path, checkpoint: Path, out: Path
) -> None:
    """Write metrics.json, gate.json, facts.json, per_user.parquet and examples.json to `out`, atomically.

    Raises:
        StateError: sequences or checkpoint are missing or do not belong together, or nothing can be judged.
        SettingsError: the headline metric is none of those that the cutoffs give.
    """
    cell = Cell(settings, model, protocol, load_sequences(sequences))
    scorer = _load_scorer(cell, checkpoint)
    valid, days = _judge_validation(cell, scorer)
    test = _judge_test(cell, scorer, days)
    conditions = build_conditions(protocol, valid, test)
    table = tabulate(conditions, cell.metrics, cell.interval)
    gate = _judge_gate(cell, conditions[f"{protocol}.valid"])
    facts = _describe(cell, valid, test, days)
    examples = make_examples(cell.sequences, test.targets, Recommender.load(checkpoint), settings.num_examples)
    with replacing_folder(out) as folder:
        write_json(folder / "metrics.json", table)
        write_json(folder / "gate.json", asdict(gate))
        write_json(folder / "facts.json", facts)
        write_json(folder / "examples.json", examples)
        pq.write_table(_per_user(cell, conditions), folder / "per_user.parquet", compression="zstd")
    _print(cell, table, gate, facts)
    log.info("evaluation written to %s; next: python -m components report", out)


def _load_scorer(cell: Cell, checkpoint: Path) -> ModelScorer:
    _check_headline(cell)
    model, facts = load_model(checkpoint)
    split = cell.sequences.split
    if (facts["model"], facts["split"]) != (cell.model, split):
        raise StateError(
            "was trained on other data, split elsewhere, or is another model",
            where=str(checkpoint),
            observed=f"{facts['model']}, {_describe_split(facts['split'])}",
            expected=f"{cell.model}, {_describe_split(split)}",
            todo="Run `dvc repro`",
        )
    torch.set_num_threads(facts["settings"].get("num_threads", 1))
    return ModelScorer(model, facts["settings"]["max_len"])


def _describe_split(split: Mapping[str, Any]) -> str:
    return f"data {split['data_hash'][:8]}, {split['num_items']} items, train before {split['train_end']}"


def _check_headline(cell: Cell) -> None:
    if cell.settings.headline_metric not in cell.metrics:
        raise SettingsError(
            "evaluate.headline_metric is not measured",
            where="params.yaml",
            observed=cell.settings.headline_metric,
            expected=f"one of {', '.join(cell.metrics)}",
            todo="Add its k to evaluate.cutoffs",
        )


def _judge_validation(cell: Cell, scorer: Scorer) -> tuple[Judged, int]:
    """Judge the validation part; also return the window of recent popularity, in days, that is best on it."""
    names = {days: f"popularity_{days}d" for days in cell.settings.recent_days}
    scorers = {name: _popularity(cell, "valid", days) for days, name in names.items()}
    judged = _judge_part(cell, "valid", {cell.model: scorer, "popularity": _popularity(cell, "valid"), **scorers})
    averages = average(judged.targets, judged.filtered).values
    best = max(names, key=lambda days: float(averages[names[days]][:, cell.headline].mean()))
    return Judged(judged.targets, *(_keep(v, cell, names[best]) for v in (judged.filtered, judged.unfiltered))), best


def _keep(values: dict[str, torch.Tensor], cell: Cell, recent: str) -> dict[str, torch.Tensor]:
    return {
        cell.model: values[cell.model],
        "popularity": values["popularity"],
        "popularity_recent": values[recent],
    }


def _judge_test(cell: Cell, scorer: Scorer, days: int) -> Judged:
    popularity, recent = _popularity(cell, "test"), _popularity(cell, "test", days)
    return _judge_part(cell, "test", {cell.model: scorer, "popularity": popularity, "popularity_recent": recent})


def _popularity(cell: Cell, part: str, days: int | None = None) -> PopularityScorer:
    return PopularityScorer(fit_popularity(cell.sequences, part, days=days))


def _judge_part(cell: Cell, part: str, scorers: Mapping[str, Scorer]) -> Judged:
    targets = find_targets(cell.sequences, part)
    if len(targets) == 0:
        raise StateError(
            f"no event of the {part} part has a history, so there is nothing to judge",
            where=f"artifacts/sequences/{cell.protocol}",
            todo=f"Ingest a longer log, or raise sequences.{part}_fraction in params.yaml",
        )
    ranks = rank_catalogue(
        scorers,
        targets,
        cell.sequences.num_items,
        block_bytes=cell.settings.block_megabytes << 20,
        what=f"ranking {part}",
    )
    return measure_part(targets, ranks, cell.settings.cutoffs)


def _judge_gate(cell: Cell, valid: Condition) -> Gate:
    headline = {name: values_UM[:, cell.headline] for name, values_UM in valid.values.items()}
    return judge(
        (cell.model, headline.pop(cell.model)),
        headline,
        metric=cell.settings.headline_metric,
        protocol=cell.protocol,
        samples=cell.settings.bootstrap_samples,
        confidence=cell.settings.confidence,
        seed=SEED,
    )


def _describe(cell: Cell, valid: Judged, test: Judged, days: int) -> dict[str, Any]:
    """Return facts.json."""
    return {
        "model": cell.model,
        "protocol": cell.protocol,
        "headline_metric": cell.settings.headline_metric,
        "recent_days": days,
        "num_items": cell.sequences.num_items,
        "valid": _count(cell.sequences, valid.targets, cell.sequences.valid_starts, cell.sequences.test_starts),
        "test": _count(cell.sequences, test.targets, cell.sequences.test_starts, cell.sequences.ends),
        "slices": slice_by_history(test, cell.headline, cell.interval),
    }


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


def _per_user(cell: Cell, conditions: Mapping[str, Condition]) -> pa.Table:
    """Return condition, model, user_id and one column per metric."""
    parts = []
    for name, condition in conditions.items():
        for model, values_UM in condition.values.items():
            num_users = len(condition.users)
            columns = {
                "condition": pa.array([name] * num_users, pa.string()),
                "model": pa.array([model] * num_users, pa.string()),
                "user_id": pa.array(cell.sequences.user_ids[condition.users]),
            }
            columns |= {metric: pa.array(values_UM[:, m].numpy()) for m, metric in enumerate(cell.metrics)}
            parts.append(pa.table(columns))
    return pa.concat_tables(parts).combine_chunks()


def _print(cell: Cell, table: Table, gate: Gate, facts: Mapping[str, Any]) -> None:
    test = facts["test"]
    print_header(
        f"{cell.model} on {cell.protocol}",
        {
            "judged": f"{test['targets']:,} targets of {test['users']:,} users with a history, "
            f"of {test['events']:,} events of {test['users_with_events']:,} users",
            "cold": f"{test['cold_share']:.1%} of the targets are items that train never saw: misses for every model",
            "tied": f"{test['tied_share']:.1%} of the targets share their time with another event of the user",
            "repeats": f"{test['repeat_share']:.1%} of the targets were in the history already; these stay rankable",
            "recent": f"popularity_recent counts {facts['recent_days']} days, the best on validation",
        },
    )
    models = table[cell.protocol]
    rows = [[metric, *(_show(models[model][metric]) for model in models)] for metric in cell.metrics]
    print_table(f"{cell.protocol}, test part, {cell.settings.confidence:.0%} intervals", ["", *models], rows)
    log.info("gate: %s; %s", gate.verdict, "; ".join(gate.reasons))


def _show(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}]"
