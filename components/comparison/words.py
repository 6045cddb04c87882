"""The answer in sentences, and as JSON: what was found, how often was compared, and what it is true of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from components.comparison.answer import FEW_SEEDS, Comparison, Row, Side
from components.console import percent
from components.ranking.paired import FEW_USERS


def describe(comparison: Comparison) -> dict[str, Any]:
    """Return what `--json` writes."""
    return {
        "protocol": comparison.protocol,
        "part": "test",
        "sides": {name: asdict(side) | {"num_seeds": side.num_seeds} for name, side in comparison.sides.items()},
        "rows": [_flatten(row) for row in comparison.rows],
        "words": conclude(comparison),
    }


def conclude(comparison: Comparison) -> list[str]:
    """Say in sentences what was found, the headline first."""
    rows, sides = comparison.rows, comparison.sides
    return [_decide(rows[0]), _count(rows), *_describe_seeds(rows[0].metric, sides), *_warn_of_mixtures(sides)]


def _flatten(row: Row) -> dict[str, Any]:
    own = {"condition": row.condition, "metric": row.metric, "a": row.a, "b": row.b}
    return own | asdict(row.paired) | {"better": row.paired.better}


def _decide(row: Row) -> str:
    paired = row.paired
    found = (
        f"A - B is {paired.difference:+.4f} in {row.metric} on {row.condition}, {percent(paired.confidence)} interval "
        f"[{paired.low:+.4f}, {paired.high:+.4f}], sign-flip p {paired.p_value:.3f}, {paired.num_users:,} users"
    )
    if paired.better is not None:
        return f"{paired.better.upper()} is better: {found}."
    why = "the interval holds 0"
    if not paired.low <= 0 <= paired.high:
        why = f"with fewer than {FEW_USERS} users the interval is too narrow, and the sign-flip test does not agree"
    return f"A and B cannot be told apart: {found}; {why}."


def _count(rows: Sequence[Row]) -> str:
    chance = len(rows) * (1 - rows[0].paired.confidence)
    return (
        f"{len(rows)} comparisons are printed; the one to quote is the first, {rows[0].metric} on {rows[0].condition}. "
        f"Of {len(rows)} between equal models {chance:.1f} would look clear by chance."
    )


def _describe_seeds(metric: str, sides: Mapping[str, Side]) -> list[str]:
    said = [
        f"{name}: {side.num_seeds} seeds, {metric} {min(side.values):.4f} to {max(side.values):.4f}, "
        f"standard deviation {np.std(side.values, ddof=1):.4f}; the interval is over users and does not contain it."
        for name, side in sides.items()
        if len(side.values) > 1
    ]
    if not all(side.is_method for side in sides.values()):
        counts = ", ".join(f"{side.num_seeds} of {name}" for name, side in sides.items() if side.num_seeds)
        said.append(
            f"Seeds: {counts}. This compares these checkpoints, not the methods: that takes {FEW_SEEDS} seeds a side "
            "or more, their names separated by commas."
        )
    return said


def _warn_of_mixtures(sides: Mapping[str, Side]) -> list[str]:
    return [
        f"Warning: the models of {name} differ in more than the seed: {', '.join(side.differences)}."
        for name, side in sides.items()
        if side.differences
    ]
