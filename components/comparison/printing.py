"""The comparison as a person reads it: who, two tables, sentences, the next command. All of it on stdout."""

from __future__ import annotations

import sys
from itertools import groupby

import numpy as np

from components.comparison.answer import Comparison, Model, Row, Side
from components.comparison.words import conclude
from components.console import percent, print_table


def print_comparison(comparison: Comparison) -> None:
    """Print both sides, a table for each metric, what may be said, and what to do next."""
    for name, side in comparison.sides.items():
        for line in _introduce(side):
            _print(f"{name}  {line}")
    for metric, rows in groupby(comparison.rows, key=lambda row: row.metric):
        _print("")
        _print_rows(f"{metric} on the test part, mean over users", list(rows))
    _print("")
    for sentence in conclude(comparison):
        _print(sentence)
    _print(f"next  {_next_step(comparison)}")


def _introduce(side: Side) -> list[str]:
    lines = []
    for model in side.models:
        lines += [f"{model.name}: {_describe(model)}", *(f"  {note}" for note in model.notes)]
        if model.unknown_share:
            lines.append(f"  {model.unknown_share:.1%} of the targets are items that it does not know: misses")
    return lines


def _describe(model: Model) -> str:
    if not model.settings:
        return "a baseline, counted from events before the request"
    when = f"all but each user's last {'event' if model.is_refit else 'two events'}"
    if model.train_end is not None:
        when = f"events before {np.datetime64(model.train_end, 's')} UTC"
    return f"{model.model}, seed {model.settings.get('seed')}, trained on {when}, log {str(model.data_hash)[:12]}"


def _print_rows(title: str, rows: list[Row]) -> None:
    cells = [
        (
            row.condition,
            f"{row.a:.4f}",
            f"{row.b:.4f}",
            f"{row.paired.difference:+.4f}",
            f"[{row.paired.low:+.4f}, {row.paired.high:+.4f}]",
            f"{row.paired.p_value:.3f}",
            f"{row.paired.num_users:,}",
        )
        for row in rows
    ]
    interval = f"{percent(rows[0].paired.confidence)} interval"
    print_table(title, ["condition", "A", "B", "A - B", interval, "sign-flip p", "users"], cells)


def _next_step(comparison: Comparison) -> str:
    """Return the command that makes the answer stronger, or the one that shows more of it."""
    for side in comparison.sides.values():
        if not side.is_method:
            model, seed = side.models[-1].model, (side.models[-1].settings.get("seed") or 0) + 1
            return (
                f"dvc exp run --temp --name {model}-seed-{seed} --set-param train.{model}.seed={seed} "
                f"--set-param package.model={model} train@{model}-{comparison.protocol}   "
                "(its name then means that checkpoint)"
            )
    return "python -m components report   (every model beside every baseline)"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
