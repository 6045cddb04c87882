"""reports/monitoring.html: one file, no network, no script, in the style of the report (components/page)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.page.content import format_number
from components.page.plots import Series, draw_curves, draw_intervals

TEMPLATE = Path(__file__).with_name("monitoring.html.j2")
STYLE = Path(__file__).parent.parent / "page"

MEASURES = {
    "unknown_item_share": (
        "Unknown items",
        "events given to the model whose item it does not know; then: in the test part",
    ),
    "history_length_psi": ("History length", "PSI of events before a request; then: what chance gives"),
    "item_popularity_psi": ("Item popularity", "PSI of what users had last, by training's popularity; then: chance"),
    "action_shift": ("Action mix", "total variation between the log's newest months and the promoted log"),
    "hit_rate": ("Hit rate", "the user's next event is among the first ten; then: HR@10 of the test part"),
}


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page for what reports/monitoring.json holds."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATE.parent, STYLE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "moment": _moment}
    plots = {name: Markup(svg) for name, svg in draw_plots(found).items()}  # noqa: S704 - made by components/page/plots.py
    return environment.get_template(TEMPLATE.name).render(**found, measured=MEASURES, plots=plots)


def draw_plots(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots that there are numbers for, as SVG."""
    plots = {}
    for name, title in (("history_length", "History lengths"), ("item_popularity", "Popularity of the last item")):
        if found[name] is not None and sum(found[name]["now"]):
            plots[name] = _draw_shares(name, title, found[name])
    if found["calibration"]:
        plots["calibration"] = _draw_calibration(found["calibration"])
    return plots


def _draw_shares(name: str, title: str, histograms: Mapping[str, Any]) -> str:
    """Draw the share of each bin, now and then."""
    bins, rows = histograms["bins"], list(range(len(histograms["bins"])))
    series = []
    for when, label, colour in (("now", "the service saw", "series-0"), ("then", "training", "series-2")):
        total = max(sum(histograms[when]), 1)
        shares = [count / total for count in histograms[when]]
        series.append(Series(label, colour, rows, shares, shares, shares))
    return draw_intervals(name, bins, series, xlabel="share", title=title)


def _draw_calibration(tenths: list[dict[str, float]]) -> str:
    rates = [one["hit_rate"] for one in tenths]
    series = [Series("items shown", "series-0", list(range(1, len(rates) + 1)), rates, rates, rates)]
    mean = sum(rates) / len(rates)
    return draw_curves(
        "calibration",
        series,
        xlabel="tenth of the scores, ascending",
        ylabel="share that was hit",
        title="Share of shown items that their users then had, by score",
        levels=[("mean", "series-2", mean)],
    )


def _moment(seconds: int | None) -> str:
    return "-" if seconds is None else f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%-d %B %Y, %H:%M} UTC"
