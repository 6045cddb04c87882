"""A made log, split, with an untrained checkpoint for it: all that `evaluate` reads, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from made_logs import DAY, Event, build, train_settings, walking_log, write_log

from components.dataset import load_sequences
from components.evaluation import evaluate
from components.files import write_json
from components.fitting.checkpoint import find_popular, write_checkpoint
from components.model import build_model
from components.settings import EvaluateSettings, Settings, load_settings

COLD = [(user, 999, 100 * DAY + user) for user in range(3)]  # in the test part, an item that train never sees
VALIDATION = {
    "success": True,
    "complaints": [],
    "notes": [],
    "expectations": [{"success": True}, {"success": False}],
    "num_rows": 603,
    "num_quarantined": 3,
}


def evaluate_settings(**changes: Any) -> EvaluateSettings:
    """Settings of an evaluation that takes a moment."""
    settings = {
        "cutoffs": (5, 10),
        "headline_metric": "ndcg@10",
        "recent_days": (3, 10),
        "bootstrap_samples": 100,
        "confidence": 0.9,
        "block_megabytes": 16,
        "num_examples": 3,
    }
    return EvaluateSettings(**(settings | changes))


def report_settings(**changes: Any) -> Settings:
    """The repository's settings for one model on one protocol."""
    return load_settings().model_copy(update={"models": ("hstu",), "protocols": ("time_split",)} | changes)


def make_root(
    root: Path,
    *,
    protocols: Sequence[str] = ("time_split",),
    models: Sequence[str] = ("hstu",),
    events: Sequence[Event] | None = None,
    titles: dict[int, str] | None = None,
) -> Path:
    """Write root/artifacts as it is when `evaluate` starts; return root."""
    log = [*walking_log(), *COLD] if events is None else list(events)
    folder = build(write_log(root, log, titles=titles), *protocols)
    for protocol in protocols:
        for model in models:
            _write_checkpoint(root / "artifacts" / "checkpoints" / protocol / model, model, folder / protocol)
    return root


def run_evaluation(root: Path, model: str = "hstu", protocol: str = "time_split", **changes: Any) -> Path:
    """Evaluate one cell of a made root; return its folder."""
    artifacts = root / "artifacts"
    out = artifacts / "evaluation" / protocol / model
    evaluate(
        evaluate_settings(**changes),
        model,
        protocol,
        sequences=artifacts / "sequences" / protocol,
        checkpoint=artifacts / "checkpoints" / protocol / model,
        out=out,
    )
    return out


def make_results(root: Path, **options: Any) -> Path:
    """Write root/artifacts and root/reports as they are when `report` starts; return root."""
    make_root(root, **options)
    for protocol in options.get("protocols", ("time_split",)):
        for model in options.get("models", ("hstu",)):
            run_evaluation(root, model, protocol)
    write_json(root / "reports" / "validation.json", VALIDATION)
    return root


def _write_checkpoint(folder: Path, model: str, sequences: Path) -> None:
    data, settings = load_sequences(sequences), train_settings()
    torch.manual_seed(2)
    # Freshly initialised embeddings (0.02) drown the attention; larger ones make scores depend on order and time.
    weights = {name: value * 10 for name, value in build_model(model, settings, data.num_items).state_dict().items()}
    facts = {
        "model": model,
        "protocol": data.split["protocol"],
        "settings": vars(settings),
        "num_items": data.num_items,
        "best_epoch": 2,
        "epochs": [{"epoch": n, "loss": 3.0 / n, "valid_ndcg@10": 0.1 * n, "seconds": 1.0} for n in (1, 2)],
        "data_hash": data.split["data_hash"],
        "code_hash": "c" * 64,
        "environment": {"device": "cpu"},
        "split": data.split,
        "popular": find_popular(data),
    }
    folder.mkdir(parents=True)
    write_checkpoint(folder, weights, facts, catalogue=sequences / "catalogue.parquet")
