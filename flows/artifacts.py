"""What Prefect's UI shows of a run: tables and links made from the files in reports/ and artifacts/.

A stage that was up to date publishes too, so that every flow run shows the numbers it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from components.challenging.words import check_rows
from components.decisions import read_decisions
from components.files import read_json

REPORTS = Path("reports")
REGISTRY = Path("registry")
ARTIFACTS = Path("artifacts")


def publish(stage: str) -> None:
    """Publish what a stage reports, where it reports anything and the file is there."""
    for file, publisher in _PUBLISHERS.get(stage, {}).items():
        if file.exists():
            publisher(file)


def publish_table(key: str, rows: list[dict[str, Any]], description: str = "") -> None:
    """Publish rows as a table artifact."""
    create_table_artifact(rows, key=key, description=description)


def metric_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return one row per condition and model, one column per metric, each value with its interval.

    >>> metric_rows({"time_split": {"hstu": {"ndcg@10": {"value": 0.1, "low": 0.09, "high": 0.11}}}})
    [{'condition': 'time_split', 'model': 'hstu', 'ndcg@10': '0.1000 [0.0900, 0.1100]'}]
    """
    return [
        {"condition": condition, "model": model}
        | {name: f"{m['value']:.4f} [{m['low']:.4f}, {m['high']:.4f}]" for name, m in values.items()}
        for condition, models in metrics.items()
        for model, values in models.items()
    ]


def _publish_metrics(file: Path) -> None:
    publish_table("metrics", metric_rows(read_json(file)), "Full-catalogue ranking, each metric with its interval.")


def _publish_gate(file: Path) -> None:
    gate = read_json(file)
    reasons = "".join(f"\n* {reason}" for reason in gate["reasons"])
    where = f"{gate['part']} part of {gate['protocol']}, {gate['num_users']:,} users"
    create_markdown_artifact(f"**{gate['verdict']}** ({where})\n{reasons}", key="gate")


def _publish_validation(file: Path) -> None:
    rows = [{name: row[name] for name in ("success", "claim", "observed")} for row in read_json(file)["expectations"]]
    publish_table("validation", rows, "What the log was expected to look like.")


def _publish_package(file: Path) -> None:
    rows = [{"what": name, "value": str(value)} for name, value in read_json(file).items() if name != "metrics"]
    publish_table("package", rows, "The Bento and what it was made from.")


def _publish_decision(file: Path) -> None:
    newest = read_decisions(file.parent)[-1]
    champion = newest["champion"]["tag"] if newest["champion"] else "none"
    reasons = "".join(f"\n* {reason}" for reason in newest["reasons"])
    about = f"**{newest['tag']} {newest['what']}** ({newest['time']}), champion: {champion}"
    checks = (newest.get("challenge") or {}).get("checks", [])
    create_markdown_artifact(f"{about}\n{reasons}\n{check_table(checks)}", key="decision")


def check_table(checks: list[dict[str, Any]]) -> str:
    """Return the checks of a challenge as a Markdown table; nothing where there was none.

    >>> check_table([])
    ''
    """
    rows = [("check", "observed", "limit", ""), ("---", "---", "---", "---"), *check_rows(checks)]
    return "\n".join(["", *(f"| {' | '.join(row)} |" for row in rows)]) if checks else ""


def _publish_challenge(file: Path) -> None:
    answer = read_json(file)
    rows = [
        dict(zip(("check", "observed", "limit", "outcome"), row, strict=True)) for row in check_rows(answer["checks"])
    ]
    publish_table("challenge", rows, f"{answer['candidate']['tag']}: {answer['verdict']}")


def _publish_monitoring(file: Path) -> None:
    found = read_json(file)
    names = ("name", "value", "reference", "limit", "is_past", "why")
    rows = [{name: str(one[name]) for name in names} for one in found["measures"]]
    publish_table("monitoring", rows, f"{found['requests']['read']:,} requests to {found['champion']['tag']}.")
    outcome = f"past the limit: {', '.join(found['past'])}" if found["past"] else "nothing is past its limit"
    create_markdown_artifact(f"**{outcome}**", key="drift")


def publish_scores(file: Path) -> None:
    """Publish the manifest of a folder of scores."""
    rows = [{"what": name, "value": str(value)} for name, value in read_json(file).items()]
    publish_table("scores", rows, f"The top k of every user: {file.parent}.")


def _link(key: str) -> Callable[[Path], None]:
    def publisher(file: Path) -> None:
        create_link_artifact(file.resolve().as_uri(), link_text=str(file), key=key)

    return publisher


_PUBLISHERS: dict[str, dict[Path, Callable[[Path], None]]] = {
    "validate": {
        REPORTS / "validation.json": _publish_validation,
        REPORTS / "data_docs" / "index.html": _link("data-docs"),
    },
    "report": {
        REPORTS / "metrics.json": _publish_metrics,
        REPORTS / "gate.json": _publish_gate,
        REPORTS / "report.html": _link("report"),
    },
    "package": {ARTIFACTS / "package.json": _publish_package},
    "challenge": {REPORTS / "challenge.json": _publish_challenge},
    "monitor": {
        REPORTS / "monitoring.json": _publish_monitoring,
        REPORTS / "monitoring.html": _link("monitoring-report"),
    },
    "promote": {REGISTRY / "decisions.jsonl": _publish_decision},
}
