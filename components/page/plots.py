"""The report's plots as SVG text: small, readable at phone width, the same bytes for the same numbers.

Colours are CSS variables, so a plot inside the page follows its light or dark scheme; `standalone` gives one its own
colours, for `dvc plots` and other pages. Text stays text. matplotlib is imported in the functions: it takes a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants hexadecimal colours: these stand for CSS ones in its output.
INK, FAINT = "#000001", "#000002"
PLACEHOLDERS = {INK: "currentColor", FAINT: "var(--line)"} | {f"#0000{10 + n}": f"var(--series-{n})" for n in range(4)}
LIGHT = {"line": "#dcdfe4", "series-0": "#1a66d0", "series-1": "#c2571a", "series-2": "#7a828e", "series-3": "#a07800"}
WIDTH, HEIGHT = 5.4, 3.3  # inches of 72 points: one column on a phone, two on a desk


@dataclass(frozen=True)
class Series:
    """One model's points: x, and value with interval (an interval of no width is not drawn)."""

    label: str
    colour: int  # 0 ... 3
    xs: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def draw_intervals(name: str, rows: Sequence[str], series: Sequence[Series], *, xlabel: str, title: str) -> str:
    """Draw values with intervals, one row per label of `rows`, one colour per series; xs are row numbers."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(height=0.9 + 0.15 * len(rows) * (len(series) + 1.5))
    for place, one in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * 0.6 / len(series)
        heights = [x + shift for x in one.xs]
        colour = f"#0000{10 + one.colour}"
        axes.hlines(heights, one.lows, one.highs, color=colour, linewidth=2)
        axes.plot(one.values, heights, "o", color=colour, markersize=5, label=one.label)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel(xlabel)
    axes.grid(visible=True, axis="x", color=FAINT, linewidth=0.8)
    return _finish(figure, axes, name, title)


def draw_curves(
    name: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    levels: Sequence[tuple[str, int, float]] = (),
    ticks: Sequence[int] = (),
) -> str:
    """Draw one line per series; `levels` (label, colour, y) are dashed, `ticks` make the x axis logarithmic."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(height=HEIGHT)
    for one in series:
        colour = f"#0000{10 + one.colour}"
        axes.plot(one.xs, one.values, "o-", color=colour, markersize=4, linewidth=1.8, label=one.label)
        axes.vlines(one.xs, one.lows, one.highs, color=colour, linewidth=1.4)
    for label, number, level in levels:
        axes.axhline(level, color=f"#0000{10 + number}", linewidth=1.4, linestyle=(0, (4, 3)), label=label)
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    return _finish(figure, axes, name, title)


def standalone(svg: str) -> str:
    """Return a plot that brings its own (light) colours and background."""
    colours = ";".join(f"--{name}:{value}" for name, value in LIGHT.items())
    style = f"<style>svg{{color:#1c1e21;background:#fff;font-family:sans-serif;{colours}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, svg, count=1) + "\n"


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=10)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Figure, axes: Axes, name: str, title: str) -> str:
    import matplotlib as mpl

    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        handlelength=1.3,
        handletextpad=0.4,
        columnspacing=1.1,
    )
    text = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean(text.getvalue(), name, title)


def _clean(svg: str, name: str, title: str) -> str:
    """Keep the <svg> element alone, unique ids, CSS colours, width from the page; name it for screen readers."""
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's own style element would apply to the whole page, its font list to every label.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    for placeholder, colour in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, colour)
    return svg
