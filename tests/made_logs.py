"""Small made logs on disk, and small settings to train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_models import LEVERS_OFF

from components.files import write_json
from components.interactions import write_partitions
from components.sequences import build_sequences
from components.settings import SequencesSettings

DAY = 86_400
FRACTIONS = SequencesSettings(valid_fraction=0.1, test_fraction=0.1)

Event = tuple[int, int, int]  # user, item, timestamp


def write_log(
    root: Path,
    events: Sequence[Event],
    *,
    titles: dict[int, str] | None = None,
    item_keys: dict[int, str] | None = None,
    quarantined: Sequence[tuple[str, int]] = (),
) -> Path:
    """Write root/data and root/artifacts/quarantine.parquet as ingestion and validation would; return root."""
    users, items, times = (pa.array(column, pa.int64()) for column in np.array(events, dtype=np.int64).reshape(-1, 3).T)
    nothing = pa.nulls(len(events))
    columns = [users, items, times, nothing.cast(pa.string()), nothing.cast(pa.float32())]
    write_partitions(root / "data", pa.table(columns, ["user_id", "item_id", "timestamp", "action", "rating"]))
    titles = titles or {}
    ids = pa.array(list(titles), pa.int64())
    names = pa.array(list(titles.values()), pa.string())
    pq.write_table(
        pa.table({"item_id": ids, "title": names, "genres": pa.nulls(len(ids), pa.string())}),
        root / "data" / "items.parquet",
    )
    if item_keys is not None:
        keys = {"id": pa.array(list(item_keys), pa.int64()), "key": pa.array(list(item_keys.values()), pa.string())}
        pq.write_table(pa.table(keys), root / "data" / "item_keys.parquet")
    write_json(root / "data" / "manifest.json", {"source": "made"})
    partitions, rows = zip(*quarantined, strict=True) if quarantined else ((), ())
    bad = {"partition": pa.array(partitions, pa.string()), "row": pa.array(rows, pa.int64())}
    (root / "artifacts").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(bad), root / "artifacts" / "quarantine.parquet")
    return root


def build(root: Path, *protocols: str, settings: SequencesSettings = FRACTIONS) -> Path:
    """Run the sequences step on root/data; return the folder of its outputs."""
    out = root / "artifacts" / "sequences"
    build_sequences(
        settings, protocols, data=root / "data", quarantine=root / "artifacts" / "quarantine.parquet", out=out
    )
    return out


def walking_log(num_users: int = 30, num_items: int = 25, num_events: int = 20, seed: int = 0) -> list[Event]:
    """Users who step from item i to i + 1 (sometimes i + 2), one event a day or so: order predicts what comes next."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        steps = random.integers(1, 3, num_events).cumsum() + random.integers(num_items)
        days = random.integers(1, 3, num_events).cumsum() + random.integers(30)
        events += [(user, int(step % num_items) + 1, int(day) * DAY) for step, day in zip(steps, days, strict=True)]
    return events


def train_settings(**changes: Any) -> Any:
    """Settings of a model so small that an epoch takes milliseconds."""
    settings = {
        "max_len": 12,
        "dim": 8,
        "num_blocks": 1,
        "num_heads": 1,
        "head_dim_qk": 8,
        "head_dim_v": 8,
        "dropout": 0.2,
        "bias": "position+time",
        **LEVERS_OFF,
        "loss": "full",
        "num_negatives": 4,
        "gbce_calibration": 0.75,
        "temperature": 0.1,
        "batch_size": 8,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "warmup_steps": 3,
        "schedule": "cosine",
        "cycles": 1,
        "windows": "last",
        "stochastic_length": None,
        "warm_start": None,
        "epochs": 4,
        "patience": 4,
        "refit": False,
        "seed": 1,
        "num_threads": 1,
        "backend": "auto",
    }
    return SimpleNamespace(**(settings | changes))
