"""Compare what the service saw with what its model was trained on; say whether it is time to train again.

    python -m components monitor --requests requests      # HSTUFLOW_REQUESTS of the service

Reads the log of requests, the champion, its sequences, the event log and the promoted profile; writes
reports/monitoring.json and reports/monitoring.html. A drift is data, never a failure. The limits are in params.yaml,
section `monitor`; with fewer than `min_requests` requests the numbers stand there and none is past its limit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.console import log, print_table
from components.drift.measures import GROUPS, count_lengths, group_items, measure_stability, name_lengths
from components.drift.outcomes import DAY, HitRate, measure_calibration, measure_hits, read_later
from components.drift.page import render_page
from components.drift.reference import Reference, read_reference
from components.drift.requests import CUTOFF, Logged, Request, read_requests
from components.expectations.profile import action_shift
from components.files import read_json, reading, replacing_file, write_json
from components.interactions import list_months, read_month
from components.settings import MonitorSettings

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measure:
    """One figure and its limit; `value` None: it cannot be told, and `why` says why."""

    name: str
    value: float | None
    reference: float | None  # the same in training, or what chance gives
    limit: float
    is_past: bool
    why: str


def monitor(
    settings: MonitorSettings,
    *,
    requests: Path,
    data: Path,
    artifacts: Path,
    registry: Path,
    reports: Path,
) -> dict[str, Any]:
    """Write and return reports/monitoring.json, and the page beside it.

    Raises:
        InputError: `requests` holds no log of requests.
        StateError: nothing was promoted yet, or the event log is missing.
    """
    logged = read_requests(requests, days=settings.days, most=settings.max_requests)
    reference = read_reference(registry, artifacts / "sequences")
    found = compare_all(settings, logged, reference, data=data, profile=registry / "profile.json")
    write_json(reports / "monitoring.json", found)
    with replacing_file(reports / "monitoring.html") as temporary:
        temporary.write_text(render_page(found), encoding="utf-8")
    _print(found, reports)
    return found


def compare_all(
    settings: MonitorSettings, logged: Logged, reference: Reference, *, data: Path, profile: Path
) -> dict[str, Any]:
    """Return all figures: what reports/monitoring.json holds."""
    asked = logged.requests
    later = read_later(data, asked)
    horizon = settings.horizon_days * DAY
    hits = measure_hits(asked, later, horizon=horizon, confidence=CONFIDENCE)
    lengths, popularity = _compare_lengths(asked, reference), _compare_popularity(asked, reference)
    enough = len(asked) >= settings.min_requests
    measures = [
        _unknown(settings, asked, reference),
        _stability("history_length_psi", lengths, settings.max_length_psi),
        _stability("item_popularity_psi", popularity, settings.max_popularity_psi),
        _action_shift(settings, data, profile),
        _hit_rate(settings, hits, reference),
    ]
    past = [one.name for one in measures if one.is_past and enough]
    return {
        "requests": _describe(logged),
        "champion": {name: reference.champion[name] for name in ("tag", "model_tag", "verdict", "data_hash")},
        "measures": [asdict(one) | {"is_past": one.name in past} for one in measures],
        "history_length": lengths,
        "item_popularity": popularity,
        "hits": None if hits is None else asdict(hits),
        "offline_hit_rate": reference.hit_rate,
        "calibration": measure_calibration(asked, later, horizon=horizon),
        "settings": settings.model_dump(),
        "enough": enough,
        "past": past,
        "drifted": bool(past),
    }


def _describe(logged: Logged) -> dict[str, Any]:
    asked = logged.requests
    return {
        "rows": logged.num_rows,
        "read": len(asked),
        "users": len({one.user_id for one in asked if one.user_id is not None}),
        "from": min((int(one.time) for one in asked), default=None),
        "until": max((int(one.time) for one in asked), default=None),
        "popular_share": float(np.mean([one.is_popular for one in asked])) if asked else 0.0,
        "empty_share": float(np.mean([one.num_events == 0 for one in asked])) if asked else 0.0,
        "models": dict(sorted(Counter(one.model for one in asked).items())),
    }


def _unknown(settings: MonitorSettings, asked: tuple[Request, ...], reference: Reference) -> Measure:
    """Share of the events given to the model whose item it does not know, beside that of the test part."""
    read, then = sum(one.num_read for one in asked), reference.cold_share or 0.0
    share = sum(one.num_unknown for one in asked) / read if read else None
    is_past = share is not None and share - then > settings.max_unknown_share
    return Measure("unknown_item_share", share, then, settings.max_unknown_share, is_past, "" if read else "no events")


def _compare_lengths(asked: tuple[Request, ...], reference: Reference) -> dict[str, Any] | None:
    if reference.lengths_N is None:
        return None
    now = count_lengths(np.array([one.num_events for one in asked if one.num_events], np.int64))
    return _histograms(name_lengths(), now, count_lengths(reference.lengths_N))


def _compare_popularity(asked: tuple[Request, ...], reference: Reference) -> dict[str, Any]:
    """Compare what users had last with what training's users had, by groups of items of equal popularity there."""
    catalogue = reference.catalogue
    groups_X = group_items(catalogue.counts)
    rows = catalogue.find_all(one.last_item for one in asked if one.last_item is not None)
    now = np.bincount(groups_X[rows[rows >= 0]], minlength=GROUPS)
    then = np.bincount(groups_X, weights=catalogue.counts, minlength=GROUPS).astype(np.int64)
    sizes = np.bincount(groups_X, minlength=GROUPS)
    return _histograms([f"{size:,} items" for size in sizes.tolist()], now, then)


def _histograms(names: list[str], now_B: np.ndarray, then_B: np.ndarray) -> dict[str, Any]:
    psi, by_chance = measure_stability(now_B, then_B)
    return {"bins": names, "now": now_B.tolist(), "then": then_B.tolist(), "psi": psi, "by_chance": by_chance}


def _stability(name: str, found: dict[str, Any] | None, limit: float) -> Measure:
    if found is None:
        return Measure(name, None, None, limit, False, "artifacts/sequences is not what the champion was trained on")
    if not sum(found["now"]):
        return Measure(name, None, None, limit, False, "no histories")
    return Measure(name, found["psi"], found["by_chance"], limit, found["psi"] - found["by_chance"] > limit, "")


def _action_shift(settings: MonitorSettings, data: Path, profile: Path) -> Measure:
    """Total variation between the actions of the log's newest months and those of the promoted log."""
    limit = settings.max_action_shift
    if not profile.exists():
        return Measure("action_shift", None, None, limit, False, "no registry/profile.json")
    with reading(profile, todo=f"Run `git checkout HEAD {profile}`"):
        promoted = read_json(profile)
        newest = list(list_months(data).values())[-settings.action_months :]
        actions = pa.concat_tables([read_month(files, ["action"]) for files in newest])["action"].drop_null()
        now = {one["values"]: one["counts"] for one in pc.value_counts(actions).to_pylist()}
        shift = action_shift(now, promoted)
    return Measure("action_shift", shift, 0.0, limit, shift > limit, "")


def _hit_rate(settings: MonitorSettings, hits: HitRate | None, reference: Reference) -> Measure:
    """The whole interval has to lie below the limit: a few users prove nothing."""
    ratio, offline = settings.min_hit_rate_ratio, reference.hit_rate
    if hits is None or offline is None:
        why = "no user has later events in the log" if hits is None else "the champion has no HR@10"
        return Measure("hit_rate", None, offline, ratio, False, why)
    is_past = hits.num_users >= settings.min_users and hits.next["high"] < ratio * offline
    return Measure("hit_rate", hits.next["value"], offline, ratio * offline, is_past, "")


def _print(found: dict[str, Any], reports: Path) -> None:
    rows = [
        [one["name"], *(_show(one[name]) for name in ("value", "reference", "limit")), _judge(one)]
        for one in found["measures"]
    ]
    title = f"{found['requests']['read']:,} of {found['requests']['rows']:,} requests, first {CUTOFF} items"
    print_table(title, ["", "now", "then", "limit", ""], rows)
    log.info("%s", f"past the limit: {', '.join(found['past'])}" if found["past"] else "nothing is past its limit")
    log.info("report written to %s", reports / "monitoring.html")


def _judge(one: dict[str, Any]) -> str:
    return "past the limit" if one["is_past"] else one["why"]


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
