"""From results to the report's page: what it says and in which order; components/page/report.html.j2 says how it looks.

One file, no network, no script: it opens from disk, in a mail, on a phone. jinja2 escapes the titles of the log.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.page.plots import Series, draw_curves, draw_intervals
from components.page.results import BASELINES, Metrics, Result, sort_metrics

TEMPLATE = Path(__file__).with_name("report.html.j2")

CONDITIONS = {  # suffix -> (short name, what it means)
    "": ("every event", "every held-out event with a history; history filtered"),
    ".first": ("first event", "only each user's first event of the test part that has a history"),
    ".last": ("last event", "only each user's last event of the test part"),
    ".unfiltered": ("unfiltered", "what the user already had stays in the ranking"),
    ".valid": ("validation", "the part before the test: chose the epoch, the recent window and the verdict"),
}
MODEL_NAMES = {"hstu": "HSTU", "sasrec": "SASRec", "popularity": "popularity"}
COLOURS = {"hstu": 0, "sasrec": 1, "popularity": 2, "popularity_recent": 3}
OUTCOMES = {  # verdict -> (headline, what follows)
    "accepted": ("{model} beats the best popularity baseline.", "It is packaged and promoted."),
    "inconclusive": (
        "{model} cannot be told from the best popularity baseline.",
        "It is packaged with the label inconclusive.",
    ),
    "refused": ("{model} loses to the best popularity baseline.", "It is built as a candidate and never promoted."),
}


@dataclass(frozen=True)
class Page:
    """All that the page is made of; `lead` is the packaged model on the headline protocol."""

    lead: Result
    results: Mapping[tuple[str, str], Result]
    metrics: Metrics
    validation: Mapping[str, Any]  # reports/validation.json

    @property
    def metric(self) -> str:
        """The headline metric."""
        return str(self.lead.gate["metric"])

    @property
    def models(self) -> list[str]:
        """Trained models, the packaged one first, then the baselines."""
        trained = dict.fromkeys([self.lead.model, *(model for _, model in self.results)])
        return [*trained, *BASELINES]

    def name(self, model: str, protocol: str | None = None) -> str:
        """How a model is called on the page; each protocol has its own recent window (default: the headline's)."""
        if model == "popularity_recent":
            facts = self.results[protocol or self.lead.protocol, self.lead.model].facts
            return f"popularity, last {facts['recent_days']} days"
        return MODEL_NAMES.get(model, model)


def render_page(page: Page, plots: Mapping[str, str]) -> str:
    """Return the page as HTML; `plots` are those of `draw_plots`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": metric_name, "interval": format_interval, "day": format_day}
    return environment.get_template(TEMPLATE.name).render(
        page=page,
        gate=page.lead.gate,
        facts=page.lead.facts,
        split=page.lead.checkpoint["split"],
        checkpoint=page.lead.checkpoint,
        headline=page.metrics[page.lead.protocol],
        metric_names=sort_metrics(page.metrics[page.lead.protocol][page.lead.model]),
        conditions=_condition_rows(page),
        other_protocols=[protocol for protocol in _protocols(page) if protocol != page.lead.protocol],
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704 - made by components/page/plots.py
        outcome=[text.format(model=page.name(page.lead.model)) for text in OUTCOMES[page.lead.gate["verdict"]]],
        expectations=_count_expectations(page.validation),
    )


def draw_plots(page: Page) -> dict[str, str]:
    """Draw every plot that the results allow: name -> SVG."""
    plots = {"conditions": _draw_conditions(page), "learning": _draw_learning(page)}
    if len(_hit_rates(page)) > 1:
        plots["hit_rate"] = _draw_hit_rates(page)
    if page.lead.facts["slices"]:
        plots["history"] = _draw_slices(page)
    return plots


def metric_name(metric: str) -> str:
    """Return a metric as it is written in prose.

    >>> metric_name("ndcg@10")
    'NDCG@10'
    """
    return metric.upper()


def format_interval(cell: Mapping[str, float]) -> str:
    """Return low and high without the leading zeros, so that four columns fit a phone."""
    return "–".join(f"{cell[end]:.4f}".removeprefix("0") for end in ("low", "high"))  # noqa: RUF001


def format_day(seconds: int | None) -> str:
    """Return seconds since 1970 as a UTC day and time."""
    if seconds is None:
        return "per user"
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=seconds)  # noqa: UP017
    return moment.strftime("%-d %B %Y, %H:%M UTC")


def _protocols(page: Page) -> list[str]:
    return list(dict.fromkeys(protocol for protocol, _ in page.results))


def _condition_rows(page: Page) -> list[tuple[str, str, dict[str, dict[str, dict[str, float]]]]]:
    """List (name, meaning, models) for the headline protocol's conditions other than the headline."""
    return [
        (name, meaning, page.metrics[page.lead.protocol + suffix])
        for suffix, (name, meaning) in CONDITIONS.items()
        if suffix and page.lead.protocol + suffix in page.metrics
    ]


def _count_expectations(validation: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many expectations held, and how many there are."""
    results = validation["expectations"]
    return sum(bool(result["success"]) for result in results), len(results)


def _series(page: Page, model: str, points: Iterable[tuple[float, Mapping[str, float]]]) -> Series:
    """Build a model's series from (x, {value, low, high})."""
    xs, cells = zip(*points, strict=True)
    columns = ([cell[column] for cell in cells] for column in ("value", "low", "high"))
    return Series(page.name(model), COLOURS.get(model, 1), list(xs), *columns)


def _draw_conditions(page: Page) -> str:
    present = [suffix for suffix in CONDITIONS if page.lead.protocol + suffix in page.metrics]
    series = [
        _series(
            page,
            model,
            [(row, page.metrics[page.lead.protocol + s][model][page.metric]) for row, s in enumerate(present)],
        )
        for model in page.models
    ]
    rows = [CONDITIONS[suffix][0] for suffix in present]
    name = metric_name(page.metric)
    return draw_intervals("conditions", rows, series, xlabel=name, title=f"{name} by condition and model")


def _draw_learning(page: Page) -> str:
    series = []
    for model in page.models[: -len(BASELINES)]:
        epochs = page.results[page.lead.protocol, model].checkpoint["epochs"]
        points = [(epoch["epoch"], dict.fromkeys(("value", "low", "high"), epoch["valid_ndcg@10"])) for epoch in epochs]
        series.append(_series(page, model, points))
    valid = page.metrics[f"{page.lead.protocol}.valid"]
    levels = [
        (page.name(baseline), COLOURS[baseline], valid[baseline]["ndcg@10"]["value"])
        for baseline in BASELINES
        if "ndcg@10" in valid[baseline]
    ]
    return draw_curves(
        "learning",
        series,
        xlabel="epoch",
        ylabel="NDCG@10 on validation",
        title="NDCG@10 on the validation part after each epoch",
        levels=levels,
    )


def _hit_rates(page: Page) -> list[int]:
    metrics = page.metrics[page.lead.protocol][page.lead.model]
    return sorted(int(metric.removeprefix("hr@")) for metric in metrics if metric.startswith("hr@"))


def _draw_hit_rates(page: Page) -> str:
    cutoffs, headline = _hit_rates(page), page.metrics[page.lead.protocol]
    series = [_series(page, model, [(k, headline[model][f"hr@{k}"]) for k in cutoffs]) for model in page.models]
    return draw_curves(
        "hit_rate", series, xlabel="k", ylabel="HR@k on test", title="Hit rate among the first k", ticks=cutoffs
    )


def _draw_slices(page: Page) -> str:
    """Draw the headline metric by history length, for the packaged model and the baselines."""
    slices = page.lead.facts["slices"]
    series = [
        _series(page, model, [(row, one["models"][model]) for row, one in enumerate(slices)])
        for model in (page.lead.model, *BASELINES)
    ]
    rows = [f"{one['history'].replace('-', '–')} ({one['users']} users)" for one in slices]  # noqa: RUF001
    name = metric_name(page.metric)
    return draw_intervals("history", rows, series, xlabel=name, title=f"{name} by length of the history")
