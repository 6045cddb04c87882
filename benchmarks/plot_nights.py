"""docs/nights.svg: the nights of benchmarks/results/nights.csv in one picture.

    python -m benchmarks.plot_nights

Each night's challenger and champion on the events that neither had seen, with 95% intervals over users; who was
promoted or refused; and what went wrong on purpose. The window is another one every night, so values of one night are
to be compared, not those of two.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import recording
from components.files import replacing_file
from components.page.plots import COLOURS, FAINT, HEX, INK, TEXT, finish, standalone, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Nights = Sequence[dict[str, str]]
SERIES = {  # column -> label, colour of the house, shift sideways
    "challenger": ("challenger", "series-0", 0.12),
    "champion": ("champion until then", "series-1", -0.12),
    "popularity_recent": ("recent popularity", "series-2", 0.0),
}
DECISIONS = {"promoted": ("v", "accepted", "promoted"), "refused": ("X", "refused", "refused")}


def draw(nights: Nights) -> str:
    """Return the picture as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    axes = style_axes(figure.add_subplot())
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    for column, (label, colour, shift) in SERIES.items():
        _draw_series(axes, nights, column, label, colour, shift)
    for decision, (marker, colour, label) in DECISIONS.items():
        days = [int(night["night"]) for night in nights if night["decision"] == decision]
        if days:
            [marks] = axes.plot(days, [1.0] * len(days), marker, color=HEX[colour], markersize=8, label=label)
            marks.set(clip_on=False, transform=axes.get_xaxis_transform(), zorder=9)
    for night in nights:
        if night["incident"]:
            _draw_incident(axes, int(night["night"]), night["incident"])
    highest = max(float(night[f"{column}_high"] or 0) for night in nights for column in SERIES)
    axes.set_ylim(0, 1.5 * highest)  # the marks above the axes would set it to 1, the names need the rest
    axes.set_xticks([int(night["night"]) for night in nights], [_label(night) for night in nights])
    axes.set_ylabel("NDCG@10 on unseen events")
    return finish(figure, axes, "nights", "Fourteen nights", " ".join(map(describe, nights)), columns=5)


def describe(night: dict[str, str]) -> str:
    """Return a night in a sentence, for who cannot see the picture.

    >>> describe({"night": "5", "incident": "bad data", "outcome": "stopped", "decision": "none"})
    'Night 5 (bad data): stopped, none.'
    """
    incident = f" ({night['incident']})" if night["incident"] else ""
    return f"Night {night['night']}{incident}: {night['outcome']}, {night['decision']}."


def _draw_series(axes: Axes, nights: Nights, column: str, label: str, colour: str, shift: float) -> None:
    held = [night for night in nights if night[f"{column}_value"]]
    days = [int(night["night"]) + shift for night in held]
    values, lows, highs = ([float(night[f"{column}_{key}"]) for night in held] for key in ("value", "low", "high"))
    axes.vlines(days, lows, highs, color=HEX[colour], linewidth=1.6, alpha=0.6)
    axes.plot(days, values, COLOURS[colour][1], color=HEX[colour], markersize=5, label=label, zorder=5)


def _draw_incident(axes: Axes, day: int, incident: str) -> None:
    axes.axvspan(day - 0.45, day + 0.45, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
    place = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "top"}
    axes.text(day, 0.97, incident, color=INK, fontsize=TEXT - 1, zorder=8, **place)  # type: ignore[arg-type]


def _label(night: dict[str, str]) -> str:
    _, month, day = night["date"].split("-")
    return f"{night['night']}\n{int(day)}.{int(month)}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the CSV holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "nights.csv")
    parser.add_argument("--out", type=Path, default=recording.RESULTS.parent.parent / "docs" / "nights.svg")
    args = parser.parse_args(arguments)
    with args.results.open(newline="") as file:
        nights = list(csv.DictReader(file))
    with replacing_file(args.out) as temporary:
        temporary.write_text(standalone(draw(nights)), encoding="utf-8")
    print(f"drawn: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
