"""Made evaluations, written as `evaluate` leaves them but with chosen numbers, so that what to expect is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.files import write_json
from components.settings import Settings, load_settings

BASELINES = ("popularity", "popularity_recent", "item_item", "contextual")
SUFFIXES = ("", ".unfiltered", ".unknown_time", ".untied", ".first", ".last", ".valid")
METRICS = ("ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr")
SKILL = {"hstu": 0.4, "sasrec": 0.38, "popularity": 0.1, "popularity_recent": 0.25, "item_item": 0.2, "contextual": 0.2}
NUM_USERS = 120
COUNTS = {
    "events": 1_234,
    "users_with_events": 130,
    "users": NUM_USERS,
    "targets": 1_200,
    "cold_share": 0.015,
    "tied_share": 0.759,
    "repeat_share": 0.0,
}
SLICES = {
    "history": ("1-9", "10-29", "300+"),
    "item_age": ("under 30 days", "30-89 days", "cold"),
    "item_popularity": ("top tenth", "second", "cold"),
    "activity": ("none", "1-9", "10+"),
}
VALIDATION = {
    "complaints": [],
    "expectations": [{"success": True}, {"success": False}],
    "num_rows": 603,
    "num_quarantined": 3,
}


def report_settings(**changes: Any) -> Settings:
    """The repository's settings for one model on one protocol."""
    return load_settings().model_copy(update={"models": ("hstu",), "protocols": ("time_split",)} | changes)


def make_pages(
    root: Path,
    *,
    protocols: Sequence[str] = ("time_split",),
    models: Sequence[str] = ("hstu",),
    skill: Mapping[str, float] | None = None,
    verdict: str = "accepted",
    facts: Mapping[str, Any] | None = None,
    titles: Sequence[str] = ("Heat (1995)", "Fargo (1996)"),
) -> Path:
    """Write root/artifacts and root/reports as they are when `report` starts; return root.

    `skill` maps `model` or `model.suffix` to the mean of its NDCG@10; `facts` replaces keys of facts.json.
    """
    for protocol in protocols:
        for model in models:
            folder = root / "artifacts" / "evaluation" / protocol / model
            values = _per_user(protocol, [model, *BASELINES], SKILL | dict(skill or {}))
            folder.mkdir(parents=True)
            pq.write_table(_table(values), folder / "per_user.parquet")
            write_json(folder / "metrics.json", _metrics(values))
            write_json(folder / "gate.json", _gate(protocol, model, verdict))
            write_json(folder / "facts.json", _facts(protocol, model) | dict(facts or {}))
            write_json(folder / "examples.json", _examples(titles))
            write_json(root / "artifacts" / "checkpoints" / protocol / model / "checkpoint.json", _checkpoint(protocol))
    write_json(root / "reports" / "validation.json", VALIDATION)
    return root


def _per_user(protocol: str, models: Sequence[str], skill: Mapping[str, float]) -> dict[tuple[str, str], np.ndarray]:
    """(condition, model) -> (U,), equal for equal names, with just this mean."""
    found = {}
    for suffix in SUFFIXES:
        for place, model in enumerate(models):
            random = np.random.default_rng([len(suffix), place, *model.encode()])
            noise = random.normal(0, 0.05, NUM_USERS)
            found[protocol + suffix, model] = skill.get(model + suffix, skill[model]) + noise - noise.mean()
    return found


def _table(values: Mapping[tuple[str, str], np.ndarray]) -> pa.Table:
    parts = [
        pa.table(
            {
                "condition": [condition] * NUM_USERS,
                "model": [model] * NUM_USERS,
                "user_id": np.arange(1, NUM_USERS + 1),
            }
            | dict.fromkeys(METRICS, value_U)
        )
        for (condition, model), value_U in values.items()
    ]
    return pa.concat_tables(parts)


def _metrics(values: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (condition, model), value_U in values.items():
        found.setdefault(condition, {})[model] = dict.fromkeys(METRICS, _cell(float(value_U.mean())))
    return found


def _cell(value: float, width: float = 0.02) -> dict[str, float]:
    return {"value": round(value, 6), "low": round(value - width, 6), "high": round(value + width, 6)}


def _gate(protocol: str, model: str, verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "metric": "ndcg@10",
        "model": model,
        "baseline": "popularity_recent",
        "difference": 0.15,
        "low": 0.14,
        "high": 0.16,
        "confidence": 0.95,
        "p_value": 0.000999,
        "protocol": protocol,
        "part": "valid",
        "num_users": NUM_USERS,
        "reasons": ["on validation the model is far above"],
    }


def _facts(protocol: str, model: str) -> dict[str, Any]:
    names = [model, *BASELINES]
    return {
        "model": model,
        "protocol": protocol,
        "headline_metric": "ndcg@10",
        "recent_days": 30,
        "num_items": 25,
        "valid": COUNTS,
        "test": COUNTS,
        "unknown_time": {"targets": 600, "of": COUNTS["targets"]},
        "alarms": [],
        "baselines": {"popularity_recent": {"days": 30}, "item_item": {"last_items": 20, "decay": 0.9}},
        "slices": {
            key: [
                {
                    "name": name,
                    "users": 40 + place,
                    "targets": 400,
                    "models": {one: _cell(SKILL[one] / (place + 1), 0.05) for one in names},
                }
                for place, name in enumerate(rows)
            ]
            for key, rows in SLICES.items()
        },
        "beyond": {
            one: {
                "coverage@10": SKILL[one],
                "gini@10": 1 - SKILL[one],
                "novelty@10": 10 * SKILL[one],
                "diversity@10": None,
                "ndcg_debiased@10": SKILL[one] / 2,
            }
            for one in names
        },
    }


def _examples(titles: Sequence[str]) -> list[dict[str, Any]]:
    recommended = [{"title": title, "score": 0.42} for title in titles]
    return [{"user": 134, "history": list(titles), "recommended": recommended, "actual": titles[0]}]


def _checkpoint(protocol: str) -> dict[str, Any]:
    is_timed = protocol == "time_split"
    return {
        "settings": {"seed": 1, "dim": 8},
        "best_epoch": 2,
        "epochs": [{"epoch": n, "loss": 3.0 / n, "valid_ndcg@10": 0.1 * n, "seconds": 1.0} for n in (1, 2)],
        "data_hash": "d" * 64,
        "code_hash": "c" * 64,
        "environment": {"device": "cpu"},
        "split": {
            "num_events": 6_000,
            "num_users": 130,
            "num_items": 25,
            "events": {"train": 4_000, "valid": 766, "test": 1_234},
            "train_end": 880_000_000 if is_timed else None,
            "valid_end": 890_000_000 if is_timed else None,
        },
    }
