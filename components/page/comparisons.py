"""Paired differences between models on the same users: reports/comparisons.json.

In the headline metric: every pair under each protocol's headline condition, and the packaged model with every other
under all conditions of the headline protocol. Values per user come from the cells' per_user.parquet, p from a sign-flip
test.
Shapes: U users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from components.errors import StateError
from components.files import reading
from components.page.results import Result
from components.settings import EvaluateSettings

if TYPE_CHECKING:
    import numpy as np

SEED = 1  # of every resampling, as in the evaluations

Outcome = Literal["ahead", "behind", "undecided"]
Values = dict[tuple[str, str], tuple["np.ndarray", "np.ndarray"]]  # (condition, model) -> user ids (U,), values (U,)


@dataclass(frozen=True)
class Comparison:
    """`model` minus `other` in `metric`, mean over users, with its interval."""

    protocol: str
    condition: str
    metric: str
    model: str
    other: str
    difference: float
    low: float
    high: float
    p_value: float
    users: int
    outcome: Outcome  # of `model`


def compare_models(
    settings: EvaluateSettings, lead: Result, results: Mapping[tuple[str, str], Result], models: Sequence[str]
) -> list[Comparison]:
    """Compare `models`, the packaged one first, in the order of the module's description.

    Raises:
        StateError: per_user.parquet is missing or damaged, or two cells judged different users.
    """
    metric = str(lead.gate["metric"])
    protocols = sorted({protocol for protocol, _ in results}, key=lambda name: (name != lead.protocol, name))
    found = []
    for protocol in protocols:
        cells = [result for (of, _), result in results.items() if of == protocol]
        values = _read_values(cells, metric)
        for condition, model, other in _pairs(protocol, lead, values, models):
            sides = values[condition, model], values[condition, other]
            found.append(_compare(settings, (protocol, condition, metric, model, other), *sides))
    return found


def _pairs(protocol: str, lead: Result, values: Values, models: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (condition, model, other)."""
    yield from ((protocol, model, other) for model, other in combinations(models, 2))
    if protocol == lead.protocol:
        conditions = sorted({condition for condition, _ in values} - {protocol})
        yield from (
            (condition, lead.model, other) for condition in conditions for other in models if other != lead.model
        )


def _compare(
    settings: EvaluateSettings,
    names: tuple[str, str, str, str, str],
    of_model: tuple[np.ndarray, np.ndarray],
    of_other: tuple[np.ndarray, np.ndarray],
) -> Comparison:
    import torch

    from components.ranking.paired import compare_users

    (users, model_U), (other_users, other_U) = of_model, of_other
    if users.tolist() != other_users.tolist():
        raise StateError(
            f"{names[3]} and {names[4]} were judged on different users of {names[1]}",
            observed=f"{len(users)} and {len(other_users)} users",
            todo="Run `dvc repro`",
        )
    paired = compare_users(
        torch.tensor(model_U),
        torch.tensor(other_U),
        samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=SEED,
    )
    outcomes: dict[str | None, Outcome] = {"a": "ahead", "b": "behind", None: "undecided"}
    return Comparison(
        *names,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        p_value=paired.p_value,
        users=paired.num_users,
        outcome=outcomes[paired.better],
    )


def _read_values(cells: Sequence[Result], metric: str) -> Values:
    """Read one metric of every condition and model, users ascending; cells agree on what they share."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: Values = {}
    for cell in cells:
        path = cell.folder / "per_user.parquet"
        with reading(path, todo="Run `dvc repro`"):
            table = pq.read_table(path, columns=["condition", "model", "user_id", metric]).sort_by("user_id")
        for condition, model in set(zip(table["condition"].to_pylist(), table["model"].to_pylist(), strict=True)):
            rows = table.filter((pc.field("condition") == condition) & (pc.field("model") == model))
            found[condition, model] = (rows["user_id"].to_numpy(), rows[metric].to_numpy())
    return found
