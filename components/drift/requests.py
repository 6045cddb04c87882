"""The log of requests (components/serving/request_log.py), read back in bounded memory.

logged = read_requests(Path("requests"), days=7, most=100_000)
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.console import log
from components.errors import InputError
from components.serving.request_log import read_rows

CUTOFF = 10  # items of an answer that are judged


@dataclass(frozen=True, slots=True)
class Request:
    """One recommendation; the fields are those of the row, `items` and `scores` the first CUTOFF."""

    time: float
    user_id: str | None
    request_time: int
    num_events: int
    num_read: int
    num_unknown: int
    last_item: int | str | None
    is_popular: bool
    k: int
    items: tuple[int | str, ...]
    scores: tuple[float | None, ...]
    model: str


@dataclass(frozen=True)
class Logged:
    """The requests of the last days; of very many an even sample, in the order of the log."""

    requests: tuple[Request, ...]
    num_rows: int  # in these days, sampled or not


def read_requests(folder: Path, *, days: int, most: int) -> Logged:
    """Read the rows of the newest day and the `days` - 1 before it, at most `most` of them, evenly chosen.

    Days that lie in the future are left out: a clock that ran a year ahead and was set back would hide a year of rows.

    Raises:
        InputError: the folder holds no log of requests, or one that is damaged.
    """
    files = _find_files(folder, days)
    chosen: list[tuple[int, Request]] = []
    draw = random.Random(0)  # noqa: S311 - a sample, the same every time (Vitter 1985, algorithm R)
    number = -1
    for number, request in enumerate(_requests(files)):
        if number < most:
            chosen.append((number, request))
        elif (place := draw.randrange(number + 1)) < most:
            chosen[place] = (number, request)
    return Logged(tuple(request for _, request in sorted(chosen, key=lambda pair: pair[0])), number + 1)


def _find_files(folder: Path, days: int) -> list[Path]:
    names = {file.parent.name for file in folder.glob("*/*.jsonl")}
    if not names:
        todo = "Start the service with HSTUFLOW_REQUESTS=<folder>, and name the same folder here"
        raise InputError("holds no log of requests", where=str(folder), todo=todo)
    newest = _newest(names)
    first = dt.date.fromisoformat(newest) - dt.timedelta(days=days - 1)
    return [file for file in sorted(folder.glob("*/*.jsonl")) if first.isoformat() <= file.parent.name <= newest]


def _newest(names: set[str]) -> str:
    """Return the newest day that is not in the future; the newest one where all are: then it is our clock that errs."""
    today = dt.datetime.fromtimestamp(time.time(), dt.UTC).date().isoformat()
    past = {name for name in names if name <= today}
    if past and past != names:
        log.warning("%d days in the future are not read: a clock ran ahead", len(names) - len(past))
    return max(past or names)


def _requests(files: list[Path]) -> Iterator[Request]:
    for file in files:
        try:
            yield from map(_read, read_rows(file))
        except (ValueError, LookupError, TypeError) as error:
            raise InputError("is damaged", where=str(file), observed=str(error)[:80], todo="Move it away") from error


def _read(row: dict[str, Any]) -> Request:
    names = ("time", "user_id", "request_time", "num_events", "num_read", "num_unknown", "last_item", "k", "model")
    items, scores = tuple(row["items"][:CUTOFF]), tuple(row["scores"][:CUTOFF])
    return Request(
        **{name: row[name] for name in names}, is_popular=row["source"] == "popular", items=items, scores=scores
    )
