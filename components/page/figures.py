"""Which plot shows what: series and labels from the results; components/page/plots.py draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.page.comparisons import Comparison
from components.page.plots import Series, draw_curves, draw_intervals
from components.page.view import Page
from components.page.wording import COLOURS, CONDITIONS, PROTOCOLS, SLICES, metric_name

OUTCOMES = {  # of a difference -> (label, colour)
    "ahead": ("ahead", "accepted"),
    "undecided": ("cannot be told", "inconclusive"),
    "behind": ("behind", "refused"),
}


def draw_plots(page: Page) -> dict[str, str]:
    """Draw every plot that the results allow: name -> SVG."""
    plots = {"differences": _draw_differences(page), "conditions": _draw_conditions(page)}
    plots |= {f"slices_{key}": _draw_slices(page, key) for key in SLICES if page.lead.facts["slices"].get(key)}
    plots |= {f"learning_{protocol}": _draw_learning(page, protocol) for protocol in page.protocols}
    cutoffs = sorted(int(name.removeprefix("hr@")) for name in _headline(page) if name.startswith("hr@"))
    if len(cutoffs) > 1:
        plots["hit_rate"] = _draw_hit_rates(page, cutoffs)
    return plots


def _draw_differences(page: Page) -> str:
    """Draw the packaged model minus every other, coloured by what its interval says."""
    pairs = [page.compare("", other) for other in page.models[1:]]
    series = [
        _spread(label, colour, [(row, pair) for row, pair in enumerate(pairs) if pair.outcome == outcome])
        for outcome, (label, colour) in OUTCOMES.items()
        if any(pair.outcome == outcome for pair in pairs)
    ]
    rows, lead = [page.name(pair.other) for pair in pairs], page.name(page.lead.model)
    name = metric_name(page.metric)
    title = f"{name} of {lead} minus that of every other model, test part"
    return draw_intervals("differences", rows, series, xlabel=f"{lead} minus it, {name}", title=title, dodge=False)


def _draw_conditions(page: Page) -> str:
    """Draw the packaged model minus the best baseline of each condition, and minus the other trained models."""
    best = [page.against_best_baseline(suffix) for suffix in page.conditions]
    series = [_spread("minus the best baseline", COLOURS["popularity"], enumerate(best))]
    series += [
        _spread(
            f"minus {page.name(other)}",
            COLOURS[other],
            ((row, page.compare(suffix, other)) for row, suffix in enumerate(page.conditions)),
        )
        for other in page.trained[1:]
    ]
    rows = [CONDITIONS[suffix][0] for suffix in page.conditions]
    name = metric_name(page.metric)
    title = f"{name} of {page.name(page.lead.model)} minus that of others, by condition"
    return draw_intervals("conditions", rows, series, xlabel=f"difference in {name}", title=title)


def _draw_slices(page: Page, key: str) -> str:
    """Draw the headline metric by slice, for the trained models and the best baseline of the headline."""
    slices = page.lead.facts["slices"][key]
    series = [
        _series(page, model, ((row, one["models"][model]) for row, one in enumerate(page.slices(key, model))))
        for model in [*page.trained, page.against_best_baseline("").other]
    ]
    rows = [f"{name_slice(one)}\n{one['users']:,} users" for one in slices]
    name = metric_name(page.metric)
    return draw_intervals(f"slices_{key}", rows, series, xlabel=name, title=f"{name}. {SLICES[key][0]}, test part")


def _draw_learning(page: Page, protocol: str) -> str:
    series = []
    for model in page.trained:
        epochs = page.results[protocol, model].checkpoint["epochs"]
        points = ((epoch["epoch"], dict.fromkeys(("value", "low", "high"), epoch["valid_ndcg@10"])) for epoch in epochs)
        series.append(_series(page, model, points, protocol))
    valid = page.metrics[f"{protocol}.valid"]
    levels = {name: valid[name]["ndcg@10"]["value"] for name in page.baselines if "ndcg@10" in valid[name]}
    best = sorted(levels, key=levels.__getitem__)[-1:]
    return draw_curves(
        f"learning_{protocol}",
        series,
        xlabel="epoch",
        ylabel="NDCG@10 on validation",
        title=f"NDCG@10 on the validation part after each epoch, {PROTOCOLS[protocol]}",
        levels=[(page.name(name, protocol), COLOURS.get(name, "series-2"), levels[name]) for name in best],
    )


def _draw_hit_rates(page: Page, cutoffs: list[int]) -> str:
    series = [
        _series(page, model, ((k, page.metrics[page.lead.protocol][model][f"hr@{k}"]) for k in cutoffs))
        for model in page.models
    ]
    return draw_curves(
        "hit_rate", series, xlabel="k", ylabel="HR@k on test", title="Hit rate among the first k", ticks=cutoffs
    )


def name_slice(one: Mapping[str, Any]) -> str:
    """Return a slice's name with ranges as they are printed.

    >>> name_slice({"name": "10-29"})
    '10–29'
    """  # noqa: RUF002
    return str(one["name"]).replace("-", "–")  # noqa: RUF001


def _headline(page: Page) -> Mapping[str, Any]:
    return page.metrics[page.lead.protocol][page.lead.model]


def _series(
    page: Page, model: str, points: Iterable[tuple[float, Mapping[str, float]]], protocol: str | None = None
) -> Series:
    """Build a model's series from (x, {value, low, high})."""
    xs, cells = zip(*points, strict=True)
    columns = ([cell[column] for cell in cells] for column in ("value", "low", "high"))
    return Series(page.name(model, protocol), COLOURS.get(model, "series-2"), list(xs), *columns)


def _spread(label: str, colour: str, points: Iterable[tuple[int, Comparison]]) -> Series:
    """Build a series of differences."""
    rows, pairs = zip(*points, strict=True)
    return Series(
        label, colour, list(rows), *([getattr(pair, key) for pair in pairs] for key in ("difference", "low", "high"))
    )
