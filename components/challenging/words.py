"""The challenge as a person reads it: who, on which window, the checks, what both are worth, where they differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.console import print_table

_VERDICTS = {
    "passed": "passed: `promote` makes it the champion",
    "failed": "failed: the champion stays",
    "undecided": "undecided: the champion stays until more users have events that neither model has seen",
    "champion": "it is the champion already",
}


def print_challenge(answer: Mapping[str, Any]) -> None:
    """Print the answer of a challenge to stdout."""
    champion = answer["champion"]["tag"] if answer["champion"] else "none"
    _print(f"challenger  {answer['candidate']['tag']}")
    _print(f"champion    {champion}" + (f"  ({answer['note']})" if answer["note"] else ""))
    if answer["reused"]:
        _print(f"recorded    both were scored on this log before ({answer['id']}): those numbers, no new look")
    contest = answer["contest"]
    if contest is not None:
        _print(f"window      {describe_window(contest)}")
        if contest["values"]:
            _print_values(contest)
            _print_slices(contest["slices"])
    if answer["checks"]:
        print_table("checks", ["", "observed", "limit", ""], check_rows(answer["checks"]))
    _print(f"\nchallenge {_VERDICTS[answer['verdict']]}")
    for reason in answer["reasons"]:
        _print(f"  {reason}")
    _print("next  python -m components promote")


def check_rows(checks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return one row a check: name, observed, limit, passed or FAILED.

    >>> check_rows([{"name": "users", "about": "", "observed": 12, "sense": "at least", "limit": 30, "passed": False}])
    [('users', '12', 'at least 30', 'FAILED')]
    """
    return [
        (
            check["name"] + (f", {check['about']}" if check["about"] else ""),
            f"{check['observed']:.4g}",
            f"{check['sense']} {check['limit']:g}",
            "passed" if check["passed"] else "FAILED",
        )
        for check in checks
    ]


def describe_window(contest: Mapping[str, Any]) -> str:
    """Say in a line which events these are and of how many users."""
    window = contest["window"]
    when = "all held-out events" if window["from"] is None else f"from {np.datetime64(window['from'], 's')} UTC on"
    unknown = [f"{share:.1%} unknown to the {name}" for name, share in contest["unknown_share"].items()]
    return f"{when}: {window['targets']:,} targets of {window['users']:,} users, {', '.join(unknown)}"


def _print_values(contest: Mapping[str, Any]) -> None:
    against = {"champion": contest["paired"], **contest["baselines"]}
    order = [name for name in ("challenger", *against) if name in contest["values"]]
    rows = [(name, _show(contest["values"][name], ""), _show_difference(against.get(name))) for name in order]
    print_table(f"{contest['metric']}, mean over users", ["", "value", "challenger minus it"], rows)


def _print_slices(slices: Sequence[Mapping[str, Any]]) -> None:
    worst = sorted(slices, key=lambda one: one["high"])[:3]
    if worst:
        rows = [(f"{one['kind']} {one['name']}", _show_difference(one), f"{one['users']:,}") for one in worst]
        print_table(f"worst of {len(slices)} slices", ["", "challenger - champion", "users"], rows)


def _show(one: Mapping[str, float], sign: str, key: str = "value") -> str:
    return f"{one[key]:{sign}.4f} [{one['low']:{sign}.4f}, {one['high']:{sign}.4f}]"


def _show_difference(one: Mapping[str, float] | None) -> str:
    return "" if one is None else _show(one, "+", "difference")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
