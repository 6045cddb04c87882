"""Merge all evaluations into what people and later steps read: numbers, comparisons, plots, one self-contained page.

    python -m components report      writes reports/
    python -m components summary     prints the closing table of a run

reports/gate.json is the gate of the packaged model on the headline protocol; a verdict is data, never a failed stage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.console import log, print_table
from components.errors import StateError
from components.files import read_json, replacing_file, replacing_folder, write_json
from components.page.cautions import find_alarms
from components.page.comparisons import compare_models
from components.page.content import render_page
from components.page.figures import draw_plots
from components.page.plots import standalone
from components.page.results import Result, find_hit_rate, merge_metrics, read_results, read_written, sort_metrics
from components.page.view import Page, order_models
from components.page.wording import metric_name
from components.settings import Settings

NUM_TITLES = 3
WARNINGS = {
    "refused": "warning: the model loses to the best baseline; it is built as a candidate and not promoted.",
    "inconclusive": "warning: the model cannot be told from the best baseline; it is packaged with this label.",
}


def write_report(settings: Settings, *, artifacts: Path, reports: Path) -> None:
    """Write metrics.json, gate.json, comparisons.json, plots/ and report.html to `reports`.

    Raises:
        SettingsError: the headline protocol or the packaged model is not among those evaluated.
        StateError: an evaluation is missing, or evaluations do not belong together.
    """
    results = read_results(settings, artifacts)
    lead = _find_lead(settings, results)
    metrics = merge_metrics(results)
    comparisons = compare_models(settings.evaluate, lead, results, order_models(lead, metrics))
    page = Page(lead, results, metrics, comparisons, read_written(reports / "validation.json"))
    plots = draw_plots(page)
    write_json(reports / "metrics.json", metrics)
    write_json(reports / "gate.json", lead.gate)
    write_json(reports / "comparisons.json", [asdict(one) for one in comparisons])
    with replacing_folder(reports / "plots") as folder:
        for name, svg in plots.items():
            (folder / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
    with replacing_file(reports / "report.html") as temporary:
        temporary.write_text(render_page(page, plots), encoding="utf-8")
    log.info("gate: %s; %s", lead.gate["verdict"], "; ".join(lead.gate["reasons"]))
    log.info("report written to %s", reports / "report.html")


def print_summary(settings: Settings, *, artifacts: Path, reports: Path, registry: Path = Path("registry")) -> None:
    """Print the headline table, the verdict, three recommendations, the paths and the next command to stdout.

    Raises:
        SettingsError, StateError: as `write_report`, or what it wrote is older than the evaluations.
    """
    results = read_results(settings, artifacts)
    lead = _find_lead(settings, results)
    metrics = read_written(reports / "metrics.json")
    if metrics != merge_metrics(results) or read_written(reports / "gate.json") != lead.gate:
        raise StateError(
            "is older than the evaluations, or of other settings",
            where=str(reports / "metrics.json"),
            todo="Run `python -m components report`",
        )
    _print_metrics(
        lead, metrics[lead.protocol], order_models(lead, metrics), read_written(reports / "comparisons.json")
    )
    _print_verdict(lead.gate)
    for alarm in find_alarms(results.values()):
        _print(f"warning: {alarm}")
    _print_recommendations(lead)
    _print_paths(artifacts, reports)
    champion = registry / "champion.json"
    _print(f"{'next':<10} {_next_step(artifacts, reports, champion, lead.gate['verdict'])}")


def _find_lead(settings: Settings, results: Mapping[tuple[str, str], Result]) -> Result:
    return results[settings.report.headline_protocol, settings.package.model]


def _print_metrics(
    lead: Result, models: Mapping[str, Any], order: Sequence[str], comparisons: Sequence[Mapping[str, Any]]
) -> None:
    """One row per model, the packaged one first: the headline metric, what the packaged one is ahead by, two more."""
    metric = lead.gate["metric"]
    others = [find_hit_rate(metric, sort_metrics(models[lead.model])), "mrr"]
    of = (lead.protocol, lead.model)
    ahead = {one["other"]: one for one in comparisons if (one["condition"], one["model"]) == of}
    rows = [
        [
            name,
            _show(models[name][metric]),
            _show_difference(ahead[name]) if name in ahead else "",
            *(f"{models[name][other]['value']:.4f}" for other in others),
        ]
        for name in order
    ]
    test = lead.facts["test"]
    title = f"{lead.protocol}, test part: {test['targets']:,} events of {test['users']:,} users"
    print_table(title, ["", metric_name(metric), f"{lead.model} minus it", *map(metric_name, others)], rows)


def _print_verdict(gate: Mapping[str, Any]) -> None:
    _print("")
    _print(f"{gate['verdict']}: {'; '.join(gate['reasons'])}")
    if gate["verdict"] in WARNINGS:
        _print(WARNINGS[gate["verdict"]])


def _print_recommendations(lead: Result) -> None:
    """Show one user's end of history and the first three recommendations."""
    for example in lead.examples[:1]:
        _print("")
        _print(f"for user {example['user']}, who had {', '.join(example['history'][-NUM_TITLES:])}:")
        for place, item in enumerate(example["recommended"][:NUM_TITLES], start=1):
            _print(f"  {place}. {item['title']}" + ("" if item["score"] is None else f"  ({item['score']:.2f})"))


def _print_paths(artifacts: Path, reports: Path) -> None:
    """List what was written; a Bento is listed only where there is one."""
    package = artifacts / "package.json"
    paths = {"report": str(reports / "report.html"), "data docs": str(reports / "data_docs" / "index.html")}
    if package.exists():
        paths["Bento"] = f"{artifacts / 'hstuflow.bento'}  {read_json(package)['tag']}"
    _print("")
    for name, path in paths.items():
        _print(f"{name:<10} {path}")


def _next_step(artifacts: Path, reports: Path, champion: Path, verdict: str) -> str:
    """Return what to do after this run: nothing can be served where the first candidate ever was refused."""
    if verdict != "refused":
        return "make serve"
    if champion.exists():
        return "make serve  (the champion so far)"
    step = f"open {reports / 'report.html'}"
    package = artifacts / "package.json"
    if package.exists():
        step += "; to look at the candidate anyway: "
        step += f"bentoml import {artifacts / 'hstuflow.bento'}, then bentoml serve {read_json(package)['tag']}"
    return step


def _print(line: str) -> None:
    """Write one line to stdout; what a title may hold besides text, such as terminal escapes, is replaced."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    sys.stdout.write(clean + "\n")


def _show(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}]"


def _show_difference(one: Mapping[str, float]) -> str:
    return f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
