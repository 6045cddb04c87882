"""The data docs: one static page around the result tables that Great Expectations renders.

Its own site builder is not used, because its pages load Bootstrap, jQuery, Vega and their logo from six hosts, show an
empty index without them, and hold the time of the run. Here the tables are its own and the page around them is
`data_docs.j2`: no script, no request, the same bytes for the same results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.expectations.runner import render_table, version
from components.expectations.verdict import Verdict

PAGE = "data_docs.j2"
SECTIONS = {
    "log": ("The log as a whole", "Judged after the quarantine. One that fails stops the pipeline."),
    "rows": ("Every row", "A row that fails is quarantined, and the pipeline goes on without it."),
    "types": ("Columns", "Judged on every partition file."),
}


def write_page(folder: Path, verdict: Verdict, quarantine: Path) -> None:
    """Write folder/index.html; `quarantine` is the file it names for the bad rows."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # a log's actions are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(PAGE).render(
        verdict=verdict,
        success=not verdict.complaints,
        numbers=_numbers(verdict),
        sections=_sections(verdict),
        reasons=[(reason, count, verdict.examples[reason]) for reason, count in verdict.reasons.items()],
        quarantine=quarantine.as_posix(),
        version=version(),
    )
    (folder / "index.html").write_text(html + "\n", encoding="utf-8")


def _numbers(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the headline: (name, number)."""
    numbers = {"rows": verdict.num_rows, "quarantined": verdict.quarantine.num_rows}
    if verdict.profile:
        numbers |= {name: verdict.profile[f"num_{name}"] for name in ("users", "items", "months")}
    return [(name, f"{number:,}") for name, number in numbers.items()]


def _sections(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the suites that ran, each with its rendered table."""
    sections = []
    for suite, (title, text) in SECTIONS.items():
        judgements = [judgement for judgement in verdict.judgements if judgement.suite == suite]
        if judgements:
            sections.append({"suite": suite, "title": title, "text": text, "table": render_table(suite, judgements)})
    return sections
