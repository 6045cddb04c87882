"""The backtest as one picture: quality over time, who served, what was kept out, what a frozen model loses.

Drawn twice, for a wide page and for a phone, since text that is read at 390 px is too large at 900.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.backtesting.story import Story, conclude
from components.page.plots import COLOURS, FAINT, HEX, finish, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# role -> label, colour of the house, line width: the deployed model stands out
LINES = {
    "popularity_recent": ("recent popularity", "series-2", 1.4),
    "frozen": ("first champion, frozen", "series-1", 1.8),
    "deployed": ("deployed champion", "series-0", 2.4),
}
WIDE, NARROW = (9.0, 5.0), (4.5, 5.4)  # inches


def draw_story(story: Story, *, wide: bool) -> str:
    """Return the plot as SVG; see components/page/plots.py for its colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=WIDE if wide else NARROW, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    for axes in (style_axes(top), style_axes(bottom)):
        axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    nights = [night for night in story["nights"] if night["future"] is not None]
    _draw_quality(top, nights)
    _draw_decisions(top, nights)
    _draw_unknown(bottom, nights)
    _label(top, bottom, nights, story["metric"], wide=wide)
    name = "backtest-wide" if wide else "backtest-narrow"
    title = f"{story['metric']} over the days after each night, {story['plan']['from']} to {story['plan']['to']}"
    return finish(figure, top, name, title, " ".join([*conclude(story), *_read_out(nights)]), columns=3 if wide else 1)


def _draw_quality(axes: Axes, nights: Sequence[Any]) -> None:
    """One line a role with its band, and the area between the deployed and the frozen model."""
    for place, (role, (label, colour, width)) in enumerate(LINES.items()):
        held = [night for night in nights if role in night["future"]["values"]]
        days, found = [_middle(night) for night in held], [night["future"]["values"][role] for night in held]
        lows, highs, values = ([one[key] for one in found] for key in ("low", "high", "value"))
        axes.fill_between(days, lows, highs, color=HEX[colour], alpha=0.13, linewidth=0)
        [line] = axes.plot(days, values, f"{COLOURS[colour][1]}-", color=HEX[colour], linewidth=width, label=label)
        line.set(markersize=4.5, zorder=3 + place)
    both = [night for night in nights if "frozen" in night["future"]["values"]]
    days = [_middle(night) for night in both]
    deployed, frozen = ([night["future"]["values"][role]["value"] for night in both] for role in ("deployed", "frozen"))
    shade = axes.fill_between(days, frozen, deployed, color=HEX["series-1"], alpha=0.35, linewidth=0)
    shade.set(label="what the frozen one loses", zorder=2)
    axes.set_ylim(bottom=0)


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


def _draw_unknown(axes: Axes, nights: Sequence[Any]) -> None:
    """The share of targets that each model does not know, and of those that nobody could: first seen in these days."""
    for role in ("frozen", "deployed"):
        _, colour, width = LINES[role]
        held = [night for night in nights if role in night["future"]["unknown_share"]]
        shares = [100 * night["future"]["unknown_share"][role] for night in held]
        days, marker = [_middle(night) for night in held], f"{COLOURS[colour][1]}-"
        axes.plot(days, shares, marker, color=HEX[colour], linewidth=width, markersize=3.5)
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.0))


def _label(top: Axes, bottom: Axes, nights: Sequence[Any], metric: str, *, wide: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    top.set_ylabel(metric.upper())
    bottom.set_ylabel("unknown\nitems, %")
    top.spines["bottom"].set_visible(False)
    first, last = (dt.date.fromisoformat(text) for text in (nights[0]["date"], nights[-1]["until"]))
    months = list_months(first, last, at_most=8 if wide else 4)
    bottom.set_xticks([_day(str(month)) for month in months], [f"{month:%b}\n{month:%Y}" for month in months])
    bottom.set_xlim(_day(str(first)) - 2, _day(str(last)))
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=3))


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
