"""reports/backtest.html and backtest.svg: the picture, what it says in sentences, a line a night."""

from __future__ import annotations

import html
from pathlib import Path

from components.backtesting.nights import Night
from components.backtesting.plot import draw_story
from components.backtesting.story import Story, conclude
from components.console import percent
from components.files import replacing_file
from components.page.plots import standalone

_STYLE = Path(__file__).parent.parent / "page" / "style.css"
_OWN_STYLE = """
figure svg { max-width: none; } tbody th { white-space: nowrap; }
.interval { display: block; margin: 0; } .narrow { display: none; }
@media (max-width: 40rem) { .narrow { display: block; } .wide { display: none; } }
"""
_COLUMNS = ("night", "challenge", "deployed", "frozen", "popularity", "deployed - frozen")


FILES = ("backtest.svg", "backtest.html")


def write_page(story: Story, reports: Path) -> None:
    """Write both files; where no night has a future there is nothing to draw, and another backtest's go away."""
    if all(night["future"] is None for night in story["nights"]):
        for name in FILES:
            (reports / name).unlink(missing_ok=True)
        return
    wide, narrow = (draw_story(story, wide=is_wide) for is_wide in (True, False))
    for name, text in zip(FILES, (standalone(wide), _render(story, wide, narrow)), strict=True):
        with replacing_file(reports / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _render(story: Story, wide: str, narrow: str) -> str:
    plan = story["plan"]
    users = "" if plan["every_user"] == 1 else f", of every {plan['every_user']}th user"
    sentences = "".join(f"<p>{html.escape(one)}</p>" for one in conclude(story))
    rows = "".join(_row(night) for night in story["nights"])
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    reasons = "".join(_reason(night) for night in story["nights"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the nights are worth</title><style>{_STYLE.read_text(encoding="utf-8")}{_OWN_STYLE}</style></head><body>
<h1>What the nights are worth</h1>
<p class="dim">{story["model"]}, a night every {plan["every"]} days from {plan["from"]} to {plan["to"]}{users}.
Each night trains on the log up to its midnight and challenges the champion; the days until the next night are then
scored, which nobody could know. A point stands for these days, a band is a
{percent(story["confidence"])} interval over users.</p>
{sentences}
<figure class="wide">{wide}</figure><figure class="narrow">{narrow}</figure>
<h2>Night by night</h2>
<p class="dim">{html.escape(story["metric"])} over the days until the next night, with its interval.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<h2>Why</h2><dl class="list">{reasons}</dl>
</body></html>
"""


def _row(night: Night) -> str:
    future = night["future"] or {"values": {}, "loss": None}
    values = [future["values"].get(role) for role in ("deployed", "frozen", "popularity_recent")]
    cells = [_cell(value, "value", "") for value in values] + [_cell(future["loss"], "difference", "+")]
    tone = "accepted" if night["verdict"] == "passed" else "refused"
    label = "promoted" if night["verdict"] == "passed" else night["verdict"]
    verdict = f'<td class="{tone}"><span class="label">{label}</span></td>'
    return f"<tr><th>{night['date']}</th>{verdict}{''.join(cells)}</tr>"


def _cell(value: dict[str, float] | None, key: str, sign: str) -> str:
    if value is None:
        return "<td>-</td>"
    interval = f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    return f'<td>{value[key]:{sign}.4f} <span class="interval">{interval}</span></td>'


def _reason(night: Night) -> str:
    return f"<dt>{night['date']}</dt><dd>{html.escape('; '.join(night['reasons']))}</dd>"
