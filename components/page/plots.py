"""The report's plots as SVG text: small, readable at phone width, the same bytes for the same numbers.

Colours are CSS variables, so a plot inside the page follows its light or dark scheme; `standalone` gives one its own
colours, for `dvc plots` and other pages. Text stays text, and each plot has a title and its numbers in words for screen
readers. matplotlib is imported in the functions: it takes a second.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# CSS variable -> its light value, and the marker that tells it apart without colour.
COLOURS = {
    "series-0": ("#1a66d0", "o"),
    "series-1": ("#c2571a", "s"),
    "series-2": ("#6f7782", "v"),
    "series-3": ("#a07800", "^"),
    "series-4": ("#0c8577", "D"),
    "series-5": ("#8d46b8", "P"),
    "accepted": ("#18794e", "o"),
    "inconclusive": ("#8a5a00", "D"),
    "refused": ("#c0272d", "s"),
}
# matplotlib wants hexadecimal colours: these stand for CSS ones in its output.
INK, FAINT = "#000001", "#000002"
HEX = {name: f"#0000{10 + number}" for number, name in enumerate(COLOURS)}
PLACEHOLDERS = {INK: "currentColor", FAINT: "var(--line)"} | {value: f"var(--{name})" for name, value in HEX.items()}
LIGHT = {"line": "#dcdfe4"} | {name: colour for name, (colour, _) in COLOURS.items()}
# As style.css has them.
DARK = {
    "line": "#343a42",
    "series-0": "#6ba8ff",
    "series-1": "#ff9a5c",
    "series-2": "#9aa2ad",
    "series-3": "#e0b83d",
    "series-4": "#3fc7b5",
    "series-5": "#c890f0",
    "accepted": "#4cc38a",
    "inconclusive": "#e2a336",
    "refused": "#ff7b7f",
}
# Inches of 72 points. A phone leaves 358 px for 324 points, so that 11 points of text are 12 px there.
WIDTH, TEXT = 4.5, 11
ROW, LINE = 0.16, 0.19  # height of a row of marks, of a line of its label
LABEL_WIDTH = 17  # characters


@dataclass(frozen=True)
class Series:
    """Points of one kind: x, and value with interval (an interval of no width is not drawn)."""

    label: str
    colour: str  # of COLOURS
    xs: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def draw_intervals(
    name: str, rows: Sequence[str], series: Sequence[Series], *, xlabel: str, title: str, dodge: bool = True
) -> str:
    """Draw values with intervals, one row per label of `rows`; xs are row numbers, 0 is always in sight.

    With `dodge` the series of a row stand below one another; without, each row belongs to one series.
    """
    from matplotlib.ticker import MaxNLocator

    labels = ["\n".join(textwrap.fill(line, LABEL_WIDTH) for line in row.splitlines()) for row in rows]
    tallest = max(label.count("\n") + 1 for label in labels)
    marks = len(series) if dodge else 1
    figure, axes = _figure(height=0.95 + len(rows) * max(ROW * (marks + 0.6), LINE * (tallest + 0.7)))
    for place, one in enumerate(series):
        shift = (place - (marks - 1) / 2) * 0.68 / marks if dodge else 0
        heights, (_, marker) = [x + shift for x in one.xs], COLOURS[one.colour]
        axes.hlines(heights, one.lows, one.highs, color=HEX[one.colour], linewidth=2)
        axes.plot(one.values, heights, marker, color=HEX[one.colour], markersize=5.5, label=one.label)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_xlabel(xlabel)
    axes.grid(visible=True, axis="x", color=FAINT, linewidth=0.8)
    return finish(figure, axes, name, title, _describe_rows(rows, series))


def draw_curves(
    name: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    levels: Sequence[tuple[str, str, float]] = (),
    ticks: Sequence[int] = (),
) -> str:
    """Draw one line per series; `levels` (label, colour, y) are dashed, `ticks` make the x axis logarithmic."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(height=3.2 + LINE * (len(series) + len(levels)) / 2)
    for one in series:
        colour, (_, marker) = HEX[one.colour], COLOURS[one.colour]
        axes.plot(one.xs, one.values, f"{marker}-", color=colour, markersize=4, linewidth=1.8, label=one.label)
        axes.vlines(one.xs, one.lows, one.highs, color=colour, linewidth=1.4)
    for label, level_colour, level in levels:
        axes.axhline(level, color=HEX[level_colour], linewidth=1.6, linestyle=(0, (4, 3)), label=label)
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    return finish(figure, axes, name, title, _describe_curves(series, levels, xlabel))


def standalone(svg: str) -> str:
    """Return a plot that brings its own colours and background, light or dark as the reader's other pages are."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in colours.items()) for colours in (LIGHT, DARK))
    style = (
        f"<style>svg{{color:#1c1e21;background:#fff;font-family:sans-serif;{light}}}"
        f"@media (prefers-color-scheme: dark){{svg{{color:#e6e8eb;background:#15181c;{dark}}}}}</style>"
    )
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, svg, count=1) + "\n"


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, style_axes(figure.add_subplot())


def style_axes(axes: Axes) -> Axes:
    """Give axes the look of all plots; return them."""
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=TEXT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_fontsize(TEXT)
    axes.set_axisbelow(True)
    return axes


def finish(figure: Figure, axes: Axes, name: str, title: str, description: str, *, columns: int | None = None) -> str:
    """Return the figure as SVG, the legend of `axes` above it, in as many columns as fit."""
    import matplotlib as mpl

    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns or (3 if sum(map(len, labels)) < 2.2 * LABEL_WIDTH else 2 if max(map(len, labels)) < 22 else 1),
        frameon=False,
        fontsize=TEXT,
        labelcolor=INK,
        handlelength=1.3,
        handletextpad=0.4,
        columnspacing=1.0,
    )
    text = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": False}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean(text.getvalue(), name, title, description)


def _clean(svg: str, name: str, title: str, description: str) -> str:
    """Keep the <svg> element alone, unique ids, CSS colours, width from the page; describe it for screen readers."""
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's own style element would apply to the whole page, its font list to every label.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    head = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    words = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"([^>]*>)', lambda m: f"{m[1]} {head}{m[2]}{words}", svg, count=1)
    for placeholder, colour in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, colour)
    return svg


def _describe_rows(rows: Sequence[str], series: Sequence[Series]) -> str:
    sentences = [
        f"{' '.join(rows[int(x)].split())}, {one.label}: {value:.4f}, {low:.4f} to {high:.4f}."
        for one in series
        for x, value, low, high in zip(one.xs, one.values, one.lows, one.highs, strict=True)
    ]
    return " ".join(sentences)


def _describe_curves(series: Sequence[Series], levels: Sequence[tuple[str, str, float]], xlabel: str) -> str:
    curves = [
        f"{one.label}: {one.values[0]:.4f} at {xlabel} {one.xs[0]:g}, {one.values[-1]:.4f} at {one.xs[-1]:g},"
        f" highest {max(one.values):.4f}."
        for one in series
    ]
    return " ".join([*curves, *(f"{label}: {level:.4f}." for label, _, level in levels)])
