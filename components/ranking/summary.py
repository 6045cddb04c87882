"""What an evaluation prints: what was judged, then a line a model, narrow enough for 100 columns with five of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.console import log, percent, print_header, print_table
from components.ranking.conditions import Table, Value
from components.ranking.gate import Gate
from components.ranking.judging import Cell


def print_summary(cell: Cell, table: Table, gate: Gate, facts: Mapping[str, Any]) -> None:
    """Print the header and tables, the gate's verdict and the alarms."""
    print_header(f"{cell.model} on {cell.protocol}", _describe(facts))
    _print_metrics(cell, table)
    _print_conditions(cell, table)
    _print_beyond(facts["beyond"])
    log.info("gate: %s; %s", gate.verdict, "; ".join(gate.reasons))
    for alarm in facts["alarms"]:
        log.warning("alarm: %s", alarm)


def _describe(facts: Mapping[str, Any]) -> dict[str, str]:
    test, unknown = facts["test"], facts["unknown_time"]
    return {
        "judged": f"{test['targets']:,} targets of {test['users']:,} users with a history, "
        f"of {test['events']:,} events of {test['users_with_events']:,} users",
        "cold": f"{test['cold_share']:.1%} of the targets are items that train never saw: misses for every model",
        "tied": f"{test['tied_share']:.1%} of the targets share their time with another event of the user",
        "repeats": f"{test['repeat_share']:.1%} of the targets were in the history already; these stay rankable",
        "unknown": f"{unknown['targets']:,} of the targets were ranked once more, without their time",
        "recent": f"popularity_recent counts {facts['recent_days']} days, the best on validation",
    }


def _print_metrics(cell: Cell, table: Table) -> None:
    headline = cell.settings.headline_metric
    others = [metric for metric in cell.metrics if metric != headline]
    rows = [
        [model, _show(values[headline]), *(f"{values[metric]['value']:.4f}" for metric in others)]
        for model, values in table[cell.protocol].items()
    ]
    title = f"{cell.protocol}, test part, history filtered; {percent(cell.settings.confidence)} interval over users"
    print_table(title, ["", headline, *others], rows)


def _print_conditions(cell: Cell, table: Table) -> None:
    headline = cell.settings.headline_metric
    conditions = [name for name in table if name != cell.protocol]
    rows = [
        [model, *(f"{table[name][model][headline]['value']:.4f}" for name in conditions)]
        for model in table[cell.protocol]
    ]
    print_table(f"{headline} under other conditions", ["", *(name.partition(".")[2] for name in conditions)], rows)


def _print_beyond(beyond: Mapping[str, Mapping[str, float | None]]) -> None:
    names = list(next(iter(beyond.values())))
    rows = [[model, *(_number(found[name]) for name in names)] for model, found in beyond.items()]
    print_table("beyond accuracy", ["", *names], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show(cell: Value) -> str:
    return f"{cell['value']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}]"
