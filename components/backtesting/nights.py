"""What one night of a backtest leaves behind, and where: small JSON, whole or not there.

    artifacts/backtest/<hash>/<date>/checkpoint/    the challenger trained that night
    artifacts/backtest/<hash>/<date>/night.json     what was decided, and what the days until the next night showed

The hash covers settings, log, first night and rhythm, but not the last night: a longer backtest goes on where a shorter
one ended. A night that was stopped is done again; its training goes on from the last epoch.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import InputError
from components.files import read_json, write_json

Night = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which nights: the first one, days between two, the last one at the latest; of every how manieth user."""

    first: dt.date
    last: dt.date
    every: int  # days
    every_user: int = 1  # 1: all users; 4: every fourth, by id

    @property
    def dates(self) -> list[dt.date]:
        """All nights, oldest first."""
        count = (self.last - self.first).days // self.every + 1
        return [self.first + dt.timedelta(days=self.every * number) for number in range(count)]

    def until(self, date: dt.date) -> dt.date:
        """Return the night after `date`, planned or not."""
        return date + dt.timedelta(days=self.every)


def make_plan(first: str, last: str, every: int, every_user: int) -> Plan:
    """Read what a person typed.

    Raises:
        InputError: a day is no date, or there is no night between the two.
    """
    try:
        plan = Plan(dt.date.fromisoformat(first), dt.date.fromisoformat(last), every, every_user)
    except ValueError as error:
        raise InputError("is no date", where="--from, --to", observed=str(error), expected="2000-08-01") from None
    if plan.last < plan.first:
        raise InputError("ends before it begins", where="--from, --to", observed=f"{first} to {last}")
    return plan


def seconds(date: dt.date) -> int:
    """Return midnight UTC, at which the log is cut.

    >>> seconds(dt.date(1970, 1, 2))
    86400
    """
    return int(dt.datetime(date.year, date.month, date.day, tzinfo=dt.UTC).timestamp())


def find_folder(root: Path, plan: Plan, **facts: object) -> Path:
    """Return the folder of this backtest; `facts` are what besides the plan decides its numbers, as JSON."""
    content = {"first": str(plan.first), "every": plan.every, "every_user": plan.every_user, **facts}
    return root / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_nights(folder: Path, dates: Sequence[dt.date]) -> list[Night]:
    """Return the finished nights up to the first that is not."""
    nights: list[Night] = []
    for date in dates:
        file = folder / str(date) / "night.json"
        if not file.exists():
            return nights
        nights.append(read_json(file))
    return nights


def write_night(folder: Path, night: Night) -> None:
    """Finish a night."""
    write_json(folder / night["date"] / "night.json", night)


def find_champions(nights: Sequence[Night]) -> list[str]:
    """Return the dates on which a challenger was promoted, oldest first: who served from then on."""
    return [night["date"] for night in nights if night["verdict"] == "passed"]
