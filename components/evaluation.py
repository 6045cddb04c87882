"""Judge one model honestly: the whole catalogue ranked for every held-out event, beside baselines, with intervals.

    python -m components evaluate --model hstu --protocol time_split

Writes artifacts/evaluation/<protocol>/<model>/ (docs/architecture.md has the formats). In components/ranking/: what is
a target and its history (targets), who ranks it (judging) and how (blocks, tiles, tops), what is averaged over what
(conditions, slices, beyond), the verdict (gate), what looks wrong (alarms), what is printed (summary).
Shapes: U users, M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.console import log
from components.dataset import load_sequences
from components.files import reading, replacing_folder, write_json
from components.ranking.conditions import SEED, Condition, build_conditions, tabulate
from components.ranking.examples import make_examples
from components.ranking.facts import count_parts, describe_baselines, list_alarms, look_closer
from components.ranking.gate import Gate, judge
from components.ranking.judging import Cell, choose, gather_scorers, judge_part, judge_unknown_time, load_scorer
from components.ranking.summary import print_summary
from components.ranking.targets import find_tied
from components.recommender import Recommender
from components.settings import EvaluateSettings


def evaluate(
    settings: EvaluateSettings, model: str, protocol: str, *, sequences: Path, checkpoint: Path, out: Path
) -> None:
    """Write metrics.json, gate.json, facts.json, per_user.parquet and examples.json to `out`, atomically.

    Raises:
        StateError: sequences or checkpoint are missing or do not belong together, or nothing can be judged.
        SettingsError: the headline metric is none of those that the cutoffs give.
    """
    cell = Cell(settings, model, protocol, load_sequences(sequences))
    selected, training = load_scorer(cell, checkpoint, "valid")
    served, _ = load_scorer(cell, checkpoint, "test")
    chosen = choose(cell)
    valid = judge_part(cell, "valid", gather_scorers(cell, "valid", selected, chosen))
    scorers = gather_scorers(cell, "test", served, chosen)
    test = judge_part(cell, "test", scorers)
    unknown_time = judge_unknown_time(cell, scorers, test)

    is_tied = find_tied(cell.sequences, test.targets.rows)
    conditions = build_conditions(protocol, valid, test, unknown_time, is_tied)
    table = tabulate(conditions, cell.metrics, cell.interval)
    gate = _judge_gate(cell, conditions[f"{protocol}.valid"])
    facts = count_parts(cell, valid, test, unknown_time) | describe_baselines(chosen)
    facts |= look_closer(cell, test, _read_genres(sequences))
    facts["alarms"] = list_alarms(cell, conditions, facts, training)
    examples = make_examples(test.targets, Recommender.load(checkpoint), cell.sequences.user_ids, settings.num_examples)

    with replacing_folder(out) as folder:
        write_json(folder / "metrics.json", table)
        write_json(folder / "gate.json", asdict(gate))
        write_json(folder / "facts.json", facts)
        write_json(folder / "examples.json", examples)
        pq.write_table(_per_user(cell, conditions), folder / "per_user.parquet", compression="zstd")
    print_summary(cell, table, gate, facts)
    log.info("evaluation written to %s; next: python -m components report", out)


def _read_genres(sequences: Path) -> list[str | None]:
    file = sequences / "catalogue.parquet"
    with reading(file, todo="Run `dvc repro sequences`"):
        genres: list[str | None] = pq.read_table(file, columns=["genres"])["genres"].to_pylist()
    return genres


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
