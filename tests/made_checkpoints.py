"""Made checkpoints and reports: what `train` and `report` leave behind, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from made_models import LEVERS_OFF
from safetensors.torch import save_file

from components.files import write_json
from components.model import build_model

TINY_SETTINGS = {
    "max_len": 6,
    "dim": 8,
    "num_blocks": 2,
    "num_heads": 1,
    "head_dim_qk": 8,
    "head_dim_v": 8,
    "dropout": 0.2,
    "bias": "position+time",
    **LEVERS_OFF,
    "backend": "auto",
}


def write_checkpoint(
    folder: Path,
    keys: Sequence[str],
    *,
    key_type: str = "string",
    titles: Sequence[str] | None = None,
    genres: Sequence[str | None] | None = None,
    popular: Sequence[int] = (2, 0),
    model: str = "hstu",
    seed: int = 1,
) -> Path:
    """Fabricate what `train` leaves behind: an untrained model over `keys`, catalogue row by row."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    weights = build_model(model, SimpleNamespace(**TINY_SETTINGS), len(keys)).state_dict()
    # Freshly initialised embeddings (0.02) drown the attention; larger ones make scores depend on order and time.
    save_file({name: value * 10 for name, value in weights.items()}, folder / "weights.safetensors")
    catalogue = {
        "item_id": pa.array(range(len(keys)), pa.int64()),
        "key": pa.array(keys, pa.string()),
        "title": pa.array(titles or [f"The {key}" for key in keys], pa.string()),
        "genres": pa.array(genres or [None] * len(keys), pa.string()),
        "count": pa.array(range(len(keys), 0, -1), pa.int64()),
        "first_seen": pa.array(range(len(keys)), pa.int64()),
        "last_seen": pa.array([100] * len(keys), pa.int64()),
    }
    pq.write_table(pa.table(catalogue), folder / "catalogue.parquet")
    facts = {
        "model": model,
        "protocol": "time_split",
        "settings": TINY_SETTINGS,
        "num_items": len(keys),
        "popular": list(popular),
        "data_hash": "d" * 64,
        "split": {"key_type": key_type},
    }
    write_json(folder / "checkpoint.json", facts)
    return folder


def write_judged(root: Path, keys: Sequence[str], *, verdict: str = "accepted", **options: object) -> Path:
    """Fabricate root/artifacts and root/reports as they are when `package` starts; returns the checkpoint."""
    gate = {"verdict": verdict, "model": "hstu", "protocol": "time_split", "reasons": ["made up"]}
    write_json(root / "reports" / "gate.json", gate)
    ndcg = {"value": 0.1141, "low": 0.1, "high": 0.13}
    write_json(root / "reports" / "metrics.json", {"time_split": {"hstu": {"ndcg@10": ndcg}, "popularity": {}}})
    write_json(root / "reports" / "validation.json", {"profile": {"events": 3}, "success": True})
    return write_checkpoint(root / "artifacts" / "checkpoints" / "time_split" / "hstu", keys, **options)
