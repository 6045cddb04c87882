"""What evaluation left behind, read back: the files of every cell of the models x protocols matrix, checked and merged.

Files: docs/architecture.md, `artifacts/evaluation/<protocol>/<model>/` and `artifacts/checkpoints/<protocol>/<model>/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import SettingsError, StateError
from components.files import read_json
from components.settings import Settings

Metrics = dict[str, dict[str, dict[str, dict[str, float]]]]  # condition -> model -> metric -> value, low, high


@dataclass(frozen=True)
class Result:
    """One cell: what training and evaluation wrote about one model on one protocol."""

    model: str
    protocol: str
    metrics: Metrics
    gate: dict[str, Any]
    facts: dict[str, Any]
    examples: list[dict[str, Any]]
    checkpoint: dict[str, Any]
    folder: Path


def read_results(settings: Settings, artifacts: Path) -> dict[tuple[str, str], Result]:
    """Read the cells that params.yaml names, keyed (protocol, model); what an older run left beside them is ignored.

    Raises:
        SettingsError: the headline or the packaged model is none of the cells.
        StateError: a cell has not been trained or evaluated.
    """
    _check_choice("report.headline_protocol", settings.report.headline_protocol, "protocols", settings.protocols)
    _check_choice("package.model", settings.package.model, "models", settings.models)
    return {
        (protocol, model): _read_result(protocol, model, artifacts)
        for protocol in settings.protocols
        for model in settings.models
    }


def merge_metrics(results: Mapping[tuple[str, str], Result]) -> Metrics:
    """Put all cells into one table; models share the baselines, so their cells must agree on them.

    Raises:
        StateError: two cells have different numbers for the same baseline.
    """
    merged: Metrics = {}
    for result in results.values():
        for condition, models in result.metrics.items():
            for model, values in models.items():
                if merged.setdefault(condition, {}).setdefault(model, values) != values:
                    raise StateError(
                        f"{model} on {condition} differs between the models' evaluations",
                        where=f"artifacts/evaluation/{result.protocol}/{result.model}",
                        expected="all models judged on the same targets",
                        todo="Run `dvc repro`",
                    )
    return merged


def sort_metrics(names: Iterable[str]) -> list[str]:
    """Order metric names for reading; JSON files have them by letter.

    >>> sort_metrics(["hr@10", "mrr", "ndcg@200", "ndcg@50"])
    ['ndcg@50', 'ndcg@200', 'hr@10', 'mrr']
    """
    kinds = ["ndcg", "hr", "mrr"]

    def place(name: str) -> tuple[int, int]:
        kind, _, k = name.partition("@")
        return kinds.index(kind), int(k or 0)

    return sorted(names, key=place)


def find_hit_rate(headline: str, names: Sequence[str]) -> str:
    """Return the hit rate that stands beside the headline metric: with the same k, else the first.

    >>> find_hit_rate("ndcg@10", ["hr@5", "hr@10"]), find_hit_rate("mrr", ["hr@5", "hr@10"])
    ('hr@10', 'hr@5')
    """
    wanted = f"hr@{headline.partition('@')[2]}"
    return wanted if wanted in names else next(name for name in names if name.startswith("hr@"))


def read_written(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a JSON file that an earlier step writes; raises StateError where it did not."""
    if not path.exists():
        raise StateError("is missing", where=str(path), todo="Run `dvc repro`")
    return read_json(path)


def _read_result(protocol: str, model: str, artifacts: Path) -> Result:
    folder = artifacts / "evaluation" / protocol / model
    return Result(
        model=model,
        protocol=protocol,
        folder=folder,
        **{name: read_written(folder / f"{name}.json") for name in ("metrics", "gate", "facts", "examples")},
        checkpoint=read_written(artifacts / "checkpoints" / protocol / model / "checkpoint.json"),
    )


def _check_choice(key: str, chosen: str, list_key: str, choices: tuple[str, ...]) -> None:
    if chosen not in choices:
        raise SettingsError(
            f"{key} is not among {list_key}",
            where="params.yaml",
            observed=chosen,
            expected=" or ".join(choices),
            todo=f"Add it to {list_key}, or choose another",
        )
