"""What users did after they had been answered: online hit rate, and whether higher scores are hit more often.

The later events are those of the event log, so a request counts once its user's next events are ingested.
Shapes: U users with outcomes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from components.drift.requests import CUTOFF, Request
from components.files import reading
from components.interactions import list_partitions, months_of, read_key_table
from components.metrics import bootstrap_interval

DAY = 86_400
TENTHS = 10
_TODO = "Run `dvc checkout --force data.dvc`, or `python -m components ingest --replace`"

# An int64 id as text. `int` takes "٣" and "1_0" too, and raises for 5,000 digits: whoever asks chooses these words.
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")

Later = dict[str, tuple[np.ndarray, list[str]]]  # user -> times, ascending, and items, all by the user's own ids


@dataclass(frozen=True)
class HitRate:
    """Of requests whose users did something within the horizon: each user counts once, as offline."""

    num_requests: int
    num_users: int
    next: dict[str, float]  # value, low, high: the very next event is among the first CUTOFF
    any: float  # one of the events of the horizon at least is


def read_later(data: Path, requests: Iterable[Request]) -> Later:
    """Read what the users of requests did from the first of these on; only months from then on are read."""
    first = min((one.request_time for one in requests), default=0)
    users = sorted({one.user_id for one in requests if one.user_id is not None})
    (month,) = months_of(np.array([first]))
    files = [file for file in list_partitions(data) if file.parent.name >= month]
    tables = [_read_events(file, data, users) for file in files]
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for table in tables:
        columns = (table[name].to_pylist() for name in ("user", "timestamp", "item"))
        for user, when, item in zip(*columns, strict=True):
            found[user].append((when, item))
    for rows in found.values():  # the parts of a month overlap; of one time, their order stays: that of the log
        rows.sort(key=lambda row: row[0])
    return {user: (np.array([t for t, _ in rows]), [item for _, item in rows]) for user, rows in found.items()}


def measure_hits(requests: Sequence[Request], later: Later, *, horizon: int, confidence: float) -> HitRate | None:
    """Return the hit rate of requests that asked for CUTOFF items at least; None where none has an outcome.

    `horizon`: seconds after the request in which events count.
    """
    nexts: dict[str, list[bool]] = defaultdict(list)
    anys = []
    for one in requests:
        events = _after(one, later, horizon)
        if events and one.k >= CUTOFF and one.user_id is not None:
            shown = set(map(str, one.items))
            nexts[one.user_id].append(events[0] in shown)
            anys.append(not shown.isdisjoint(events))
    if not nexts:
        return None
    means_U1 = torch.tensor([[float(np.mean(hits))] for hits in nexts.values()])
    low, high = bootstrap_interval(means_U1, samples=1_000, confidence=confidence, seed=0)
    spread = {"value": float(means_U1.mean()), "low": float(low), "high": float(high)}
    return HitRate(len(anys), len(nexts), spread, float(np.mean(anys)))


def measure_calibration(requests: Sequence[Request], later: Later, *, horizon: int) -> list[dict[str, float]]:
    """Return each tenth of the scores, ascending: mean score, items shown, and the share that was hit.

    A reliability diagram by equal-mass bins (DeGroot & Fienberg 1983). A score is a cosine and no probability, so what
    counts is that the share rises with it.
    """
    scores, hits = [], []
    for one in requests:
        events = set(_after(one, later, horizon))
        if events:
            pairs = [(score, str(item) in events) for item, score in zip(one.items, one.scores, strict=True)]
            scores += [score for score, _ in pairs if score is not None]
            hits += [hit for score, hit in pairs if score is not None]
    if len(scores) < TENTHS:
        return []
    order = np.argsort(scores, kind="stable")
    tenths = np.array_split(np.stack([np.array(scores)[order], np.array(hits, float)[order]]), TENTHS, axis=1)
    return [{"score": float(t[0].mean()), "num_items": t.shape[1], "hit_rate": float(t[1].mean())} for t in tenths]


def _after(one: Request, later: Later, horizon: int) -> list[str]:
    """Return the items of a user's events after a request, in order."""
    if one.user_id is None or one.user_id not in later:
        return []
    times, items = later[one.user_id]
    first, last = np.searchsorted(times, [one.request_time, one.request_time + horizon], side="right")
    return items[first:last]


def _read_events(file: Path, data: Path, users: list[str]) -> pa.Table:
    """Return user, timestamp and item of these users' events in a partition, ids as the log had them."""
    with reading(file, todo=_TODO):
        table = pq.read_table(file, columns=["user_id", "timestamp", "item_id"])
    table = table.filter(pc.is_in(table["user_id"], value_set=_numbers_of(data, users)))
    columns: dict[str, Any] = {"timestamp": table["timestamp"]}
    for what in ("user", "item"):
        columns[what] = _texts_of(data, what, table[f"{what}_id"])
    return pa.table(columns)


def _numbers_of(data: Path, users: list[str]) -> pa.Array:
    """Return the numbers in the log of users by their own ids; who is not in it has none."""
    keys = read_key_table(data, "user")
    if keys is None:
        numbers = [int(user) for user in users if _NUMBER.fullmatch(user)]
        return pa.array([number for number in numbers if -(2**63) <= number < 2**63], pa.int64())
    return keys.filter(pc.is_in(keys["key"], value_set=pa.array(users, pa.string())))["id"].combine_chunks()


def _texts_of(data: Path, what: str, ids: pa.ChunkedArray) -> pa.Array:
    keys = read_key_table(data, what)
    if keys is None:
        return pc.cast(ids, pa.string())
    return keys["key"].take(pc.index_in(ids, value_set=keys["id"].combine_chunks()))
