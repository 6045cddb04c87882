"""The backtest as one picture: quality over time, who served, what was kept out, what a frozen model loses.

Drawn twice, for a wide page and for a phone, since text that is read at 390 px is too large at 900.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.backtesting.story import Story, conclude, share_unknown
from components.page.plots import COLOURS, FAINT, HEX, INK, finish, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# role -> label, colour of the house, line width, opacity of its band. The deployed and the frozen model share most of
# what chance does to them, so their bands say little of the difference: that is the middle panel.
LINES = {
    "deployed": ("deployed champion", "series-0", 2.4, 0.14),
    "frozen": ("first champion, frozen", "series-1", 1.8, 0.07),
    "popularity_recent": ("recent popularity", "series-2", 1.4, 0.14),
}
WIDE, NARROW = (9.0, 6.0), (4.5, 6.8)  # inches


def draw_story(story: Story, *, wide: bool) -> str:
    """Return the plot as SVG; see components/page/plots.py for its colours."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=WIDE if wide else NARROW, layout=ConstrainedLayoutEngine(h_pad=0.1))
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3.2, 1.5, 1))
    top, middle, bottom = (style_axes(axes) for axes in panels)
    for axes in panels:
        axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    nights = [night for night in story["nights"] if night["future"] is not None]
    _draw_quality(top, nights)
    _draw_decisions(top, nights)
    _draw_loss(middle, nights)
    _draw_unknown(bottom, nights)
    _label((top, middle, bottom), nights, story["metric"], wide=wide)
    name = "backtest-wide" if wide else "backtest-narrow"
    title = f"{story['metric']} over the days after each night, {story['plan']['from']} to {story['plan']['to']}"
    return finish(figure, top, name, title, " ".join([*conclude(story), *_read_out(nights)]), columns=3 if wide else 1)


def _draw_quality(axes: Axes, nights: Sequence[Any]) -> None:
    """One line a role with its band, the area between deployed and frozen, what a challenger kept out was worth."""
    for role, (label, colour, width, opacity) in LINES.items():
        days, found = _find(nights, role)
        lows, highs, values = ([one[key] for one in found] for key in ("low", "high", "value"))
        axes.fill_between(days, lows, highs, color=HEX[colour], alpha=opacity, linewidth=0)
        [line] = axes.plot(days, values, f"{COLOURS[colour][1]}-", color=HEX[colour], linewidth=width, label=label)
        line.set(markersize=4.5, zorder=3 + width)
    (days, deployed), (_, frozen) = _find(nights, "deployed"), _find(nights, "frozen")
    low, high = ([one["value"] for one in side] for side in (frozen, deployed))
    shade = axes.fill_between(days, low, high, color=HEX["series-1"], alpha=0.35, linewidth=0)
    shade.set(label="what the frozen one loses", zorder=2)
    days, found = _find([night for night in nights if night["verdict"] != "passed"], "newest")
    if days:
        values = [one["value"] for one in found]
        axes.plot(days, values, "x", color=HEX["refused"], markersize=6, zorder=8, label="worth of one kept out")
    axes.set_ylim(bottom=0)


def _find(nights: Sequence[Any], role: str) -> tuple[list[float], list[dict[str, float]]]:
    """Return the middles of the windows in which there is such a model, and its values there."""
    held = [night for night in nights if role in night["future"]["values"]]
    return [_middle(night) for night in held], [night["future"]["values"][role] for night in held]


def _draw_decisions(axes: Axes, nights: Sequence[Any]) -> None:
    """A dashed line down from a triangle where the champion changed, a cross where a challenger was kept out."""
    promoted = [_day(night["date"]) for night in nights if night["verdict"] == "passed"]
    kept_out = [_day(night["date"]) for night in nights if night["verdict"] != "passed"]
    for day in promoted:
        axes.axvline(day, color=HEX["accepted"], linewidth=1.0, linestyle=(0, (2, 3)), zorder=1)
    kinds = ((promoted, "v", "accepted", "new champion"), (kept_out, "X", "refused", "challenger kept out"))
    for days, marker, colour, label in kinds:
        if days:
            [marks] = axes.plot(days, [1.0] * len(days), marker, color=HEX[colour], markersize=8, label=label)
            marks.set(clip_on=False, transform=axes.get_xaxis_transform(), zorder=9)


def _draw_loss(axes: Axes, nights: Sequence[Any]) -> None:
    """Deployed - frozen, paired by user, with its interval: what the nights are worth."""
    held = [night for night in nights if night["future"]["loss"] is not None]
    days, losses = [_middle(night) for night in held], [night["future"]["loss"] for night in held]
    lows, highs, values = ([one[key] for one in losses] for key in ("low", "high", "difference"))
    axes.fill_between(days, [0.0] * len(days), values, color=HEX["series-1"], alpha=0.35, linewidth=0)
    axes.vlines(days, lows, highs, color=HEX["series-0"], linewidth=2)
    axes.plot(days, values, "o", color=HEX["series-0"], markersize=4.5)
    axes.axhline(0, color=INK, linewidth=0.8)


def _draw_unknown(axes: Axes, nights: Sequence[Any]) -> None:
    """The share of targets that are items which each model does not know, new ones of these days included."""
    for role in ("frozen", "deployed"):
        _, colour, width, _ = LINES[role]
        days, _ = _find(nights, role)
        held = [night["future"] for night in nights if role in night["future"]["values"]]
        shares = [100 * share_unknown(future, role) for future in held]
        axes.plot(days, shares, f"{COLOURS[colour][1]}-", color=HEX[colour], linewidth=width, markersize=3.5)
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.0))


def _label(panels: Sequence[Axes], nights: Sequence[Any], metric: str, *, wide: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    words = (metric.upper(), "deployed\n- frozen", "unknown\nitems, %")
    for axes, label, bins in zip(panels, words, (6, 4, 3), strict=True):
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=bins))
        axes.spines["bottom"].set_visible(axes is panels[-1])
    first, last = (dt.date.fromisoformat(text) for text in (nights[0]["date"], nights[-1]["until"]))
    months = list_months(first, last, at_most=8 if wide else 4)
    labels = [f"{month:%b}\n{month:%Y}" for month in months]
    panels[-1].set_xticks([_day(str(month)) for month in months], labels)
    panels[-1].set_xlim(_day(str(first)) - 2, _day(str(last)))


def list_months(first: dt.date, last: dt.date, *, at_most: int) -> list[dt.date]:
    """Return the beginnings of months from `first` to `last`, or of every second, third ... of them.

    >>> [str(month) for month in list_months(dt.date(2000, 11, 20), dt.date(2001, 3, 2), at_most=2)]
    ['2000-12-01', '2001-02-01']
    """
    span = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    months = [dt.date(number // 12, number % 12 + 1, 1) for number in span]
    inside = [month for month in months if first <= month <= last]
    return inside[:: max(1, -(-len(inside) // at_most))] or [first]


def _read_out(nights: Sequence[Any]) -> list[str]:
    return [
        f"{night['date']}, {night['verdict']}: "
        + ", ".join(f"{role} {value['value']:.4f}" for role, value in night["future"]["values"].items())
        + "."
        for night in nights
    ]


def _day(text: str) -> float:
    """Return the day's number, from 1970 on."""
    return float((dt.date.fromisoformat(text) - dt.date(1970, 1, 1)).days)


def _middle(night: Any) -> float:  # noqa: ANN401 - a night of JSON
    """Return the middle of the days that were scored: a point there stands for all of them."""
    return (_day(night["date"]) + _day(night["until"])) / 2
