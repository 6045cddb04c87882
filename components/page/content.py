"""From results to the report's page: what it says and in which order; components/page/report.html.j2 says how it looks.

One file, no network, no script: it opens from disk, in a mail, on a phone. jinja2 escapes the titles of the log.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.console import percent
from components.page import cautions, figures, wording
from components.page.results import find_hit_rate, sort_metrics
from components.page.view import Page

TEMPLATE = Path(__file__).with_name("report.html.j2")


def render_page(page: Page, plots: Mapping[str, str]) -> str:
    """Return the page as HTML; `plots` are those of components/page/figures.py."""
    import jinja2
    from markupsafe import Markup

    from components.ranking.paired import FEW_USERS  # needs torch, which the closing table does without

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": wording.metric_name,
        "number": format_number,
        "signed": format_signed,
        "p_value": format_p,
        "percent": percent,
        "day": format_day,
        "words": wording.list_words,
        "setting": format_setting,
        "slice": figures.name_slice,
    }
    names = sort_metrics(page.metrics[page.lead.protocol][page.lead.model])
    return environment.get_template(TEMPLATE.name).render(
        page=page,
        **_verdict(page),
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704 - made by components/page/plots.py
        wording=wording,
        few_users=FEW_USERS,
        metric_names=names,
        hit_rate=find_hit_rate(page.metric, names),
        facts=page.lead.facts,
        checkpoint=page.lead.checkpoint,
        split=page.lead.checkpoint["split"],
        expectations=_count_expectations(page.validation),
    )


def _verdict(page: Page) -> dict[str, Any]:
    """Return what the first screen is made of."""
    gate = page.lead.gate
    names = {"model": page.name(page.lead.model), "baseline": page.name(gate["baseline"])}
    return {
        "gate": gate,
        "outcome": [text.format(**names) for text in wording.OUTCOMES[gate["verdict"]]],
        "alarms": cautions.find_alarms(page.results.values()),
        "cautions": cautions.find_cautions(page),
        "other_answers": cautions.find_other_answers(page),
    }


def _count_expectations(validation: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many expectations held, and how many there are."""
    results = validation["expectations"]
    return sum(bool(result["success"]) for result in results), len(results)


def format_number(value: float) -> str:
    """Return a metric without its leading zero, so that tables fit a phone.

    >>> format_number(0.1067), format_number(1.0)
    ('.1067', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")


def format_signed(value: float) -> str:
    """Return a difference with its sign.

    >>> format_signed(0.0468), format_signed(-0.0021), format_signed(0.0)
    ('+.0468', '-.0021', '.0000')
    """
    text = f"{value:+.4f}"
    return ("" if float(text) == 0 else text[0]) + text[1:].removeprefix("0")


def format_p(p_value: float) -> str:
    """Return a p-value as it is printed.

    >>> format_p(0.0001), format_p(0.0421), format_p(1.0)
    ('<.001', '.042', '1.000')
    """
    text = f"{p_value:.3f}"
    return "<.001" if text == "0.000" else text.removeprefix("0")


def format_setting(setting: object) -> str:
    """Return what was chosen for a baseline, fitted weights with three digits.

    >>> format_setting([-0.497273, 1.0]), format_setting(10)
    ('-0.497 1', '10')
    """
    if isinstance(setting, list):
        return " ".join(format_setting(one) for one in setting)
    return f"{setting:.3g}" if isinstance(setting, float) else str(setting)


def format_day(seconds: int | None) -> str:
    """Return seconds since 1970 as a UTC day and time."""
    if seconds is None:
        return "per user"
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=seconds)  # noqa: UP017
    return moment.strftime("%-d %B %Y, %H:%M UTC")
