"""The nights of a backtest as one story: reports/backtest.json, and the closing table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.backtesting.nights import Night, Plan, find_champions
from components.console import print_table
from components.ranking.paired import Paired
from components.settings import Settings

ROLES = ("deployed", "frozen", "newest", "popularity_recent")

Story = dict[str, Any]


def describe(settings: Settings, plan: Plan, nights: Sequence[Night]) -> Story:
    """Return reports/backtest.json."""
    champions = find_champions(nights)
    return {
        "model": settings.package.model,
        "metric": settings.evaluate.headline_metric,
        "confidence": settings.evaluate.confidence,
        "plan": {
            "from": str(plan.first),
            "to": str(plan.last),
            "every": plan.every,
            "every_user": plan.every_user,
        },
        "champions": champions,
        "refused": [night["date"] for night in nights if night["verdict"] != "passed"],
        "means": _average(nights),
        "nights": list(nights),
    }


def conclude(story: Story) -> list[str]:
    """Say in sentences what the nights were worth."""
    means, metric, total = story["means"], story["metric"], len(story["nights"])
    kept_out = f"{len(story['refused'])} kept out" if story["refused"] else "none kept out"
    sentences = [f"{len(story['champions'])} of {total} challengers promoted, {kept_out}."]
    if means:
        gain = means["deployed"] - means["frozen"]
        share = gain / means["deployed"] if means["deployed"] else 0.0
        windows = sum(night["future"] is not None for night in story["nights"])
        sides = [Paired(**loss).better for loss in _losses(story)]
        sentences += [
            f"Over the days after the nights the deployed champion is worth {means['deployed']:.4f} {metric}, the "
            f"first one, frozen, {means['frozen']:.4f}: {gain:+.4f}, {share:.1%} of it.",
            f"They are two models in {len(sides)} of {windows} windows: the deployed one is better beyond chance in "
            f"{sides.count('a')} of them, worse in {sides.count('b')}.",
            f"Recent popularity, which needs no training, is worth {means['popularity_recent']:.4f}.",
        ]
    return sentences


def print_story(story: Story, reports: Path) -> None:
    """Print a line a night, what it comes to, the files, and the next command."""
    rows = [_row(night) for night in story["nights"]]
    columns = ["night", "challenge", *ROLES, "deployed - frozen", "users", "unknown to frozen"]
    print_table(f"{story['metric']} of {story['model']} over the days after each night", columns, rows)
    for line in conclude(story):
        _print(line)
    _print("")
    files = {"plot": reports / "backtest.svg", "page": reports / "backtest.html", "data": reports / "backtest.json"}
    there = {what: file for what, file in files.items() if file.exists()}  # nothing is drawn of nights without a future
    for what, file in there.items():
        _print(f"{what}  {file}")
    _print(f"next  open {there.get('page', files['data'])}; the same command with a later --to goes on from here")


def share_unknown(future: Mapping[str, Any], role: str) -> float:
    """Return the share of a window's targets that are items which a model does not know: new ones, and earlier ones."""
    share: float = future["new_share"] + future["unknown_share"][role]
    return share


def _row(night: Night) -> list[str]:
    future = night["future"]
    if future is None:
        return [night["date"], night["verdict"], *["-"] * (len(ROLES) + 3)]
    values = [f"{future['values'][role]['value']:.4f}" if role in future["values"] else "-" for role in ROLES]
    loss = future["loss"]
    paired = "-" if loss is None else f"{loss['difference']:+.4f} [{loss['low']:+.4f}, {loss['high']:+.4f}]"
    share = f"{share_unknown(future, 'frozen'):.1%}" if "frozen" in future["values"] else "-"
    return [night["date"], night["verdict"], *values, paired, f"{future['window']['users']:,}", share]


def _average(nights: Sequence[Night]) -> Mapping[str, float]:
    """Return role -> mean over the windows in which there is a champion, each window counting once."""
    values = [night["future"]["values"] for night in nights if night["future"] is not None]
    values = [one for one in values if "deployed" in one]
    return {role: round(float(np.mean([one[role]["value"] for one in values])), 6) for role in ROLES} if values else {}


def _losses(story: Story) -> list[Mapping[str, Any]]:
    """Return deployed - frozen of every window in which they are two models."""
    pairs = [(night["models"], night["future"]) for night in story["nights"]]
    futures = [future for models, future in pairs if models.get("deployed") != models.get("frozen")]
    return [future["loss"] for future in futures if future is not None and future["loss"] is not None]


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
