"""The event log in `data/`: month partitions of canonical columns, item and id tables, a manifest.

    data/interactions/<YYYY-MM>/part-0.parquet   rows ordered by (timestamp, source row), stable
    data/items.parquet                           item_id, title, genres, ... (may have no rows)
    data/user_keys.parquet, data/item_keys.parquet   id, key: only where the log's own ids were not int64
    data/manifest.json                           source, column mapping, counts; no wall-clock time in it

Month partitions, because DVC stores per file: a nightly append then stores one new file, not the whole log.
The same input gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import StateError
from components.files import read_json

DATA = Path("data")

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.int64()),
        pa.field("item_id", pa.int64()),
        pa.field("timestamp", pa.int64()),  # seconds since 1970-01-01 UTC
        pa.field("action", pa.string()),
        pa.field("rating", pa.float32()),  # null where the log has none
    ]
)


def months_of(timestamps: np.ndarray) -> np.ndarray:
    """Return the UTC month of each timestamp in seconds as 'YYYY-MM' strings (year may be negative or long)."""
    return timestamps.astype("datetime64[s]").astype("datetime64[M]").astype(str)


def write_partitions(folder: Path, table: pa.Table) -> None:
    """Write `table` (schema INTERACTIONS, rows in source order) below folder/interactions, one file per month."""
    table = table.cast(INTERACTIONS)
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    months = months_of(table["timestamp"].to_numpy())
    names, starts = np.unique(months, return_index=True)
    for name in names:
        target = folder / "interactions" / str(name) / "part-0.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = table.filter(pa.array(months == name))
        pq.write_table(part, target, compression="zstd", store_schema=False)
    del starts


def list_partitions(data: Path = DATA) -> list[Path]:
    """Return the partition files in time order; raises StateError where there is no log."""
    files = sorted((data / "interactions").glob("*/*.parquet"), key=lambda p: (_month_number(p.parent.name), p.name))
    if not files:
        raise StateError(
            "holds no event log", where=f"{data}/", todo="Run `python -m components ingest`, or `dvc pull data.dvc`"
        )
    return files


def read_interactions(data: Path = DATA, *, quarantine: Path | None = None) -> pa.Table:
    """Read the whole log: INTERACTIONS plus `partition` (string) and `row` (int64, within its partition).

    Rows come in time order, ties in source order. `quarantine` names a Parquet file (partition, row, reason) whose
    rows are left out.
    """
    bad = _quarantined(quarantine) if quarantine is not None else {}
    parts = []
    for file in list_partitions(data):
        part = pq.read_table(file)
        name = file.parent.name
        rows = np.arange(part.num_rows)
        part = part.append_column("partition", pa.array([name] * part.num_rows, pa.string()))
        part = part.append_column("row", pa.array(rows, pa.int64()))
        if name in bad:
            part = part.filter(pa.array(~np.isin(rows, bad[name])))
        parts.append(part)
    return pa.concat_tables(parts).combine_chunks()


def read_items(data: Path = DATA) -> pa.Table:
    """Read the item table (`item_id`, `title`, `genres`, ...); no rows where the source has none."""
    return pq.read_table(data / "items.parquet")


def read_keys(data: Path, what: str) -> dict[int, str] | None:
    """Return id -> original key for what = 'user' or 'item'; None where the log's own ids are the canonical ones."""
    file = data / f"{what}_keys.parquet"
    if not file.exists():
        return None
    table = pq.read_table(file)
    return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))


def read_manifest(data: Path = DATA) -> dict[str, Any]:
    """Return data/manifest.json; raises StateError where there is none."""
    if not (data / "manifest.json").exists():
        raise StateError("is missing", where=str(data / "manifest.json"), todo="Run `python -m components ingest`")
    manifest: dict[str, Any] = read_json(data / "manifest.json")
    return manifest


def _quarantined(file: Path) -> dict[str, np.ndarray]:
    if not file.exists():
        raise StateError("is missing", where=str(file), todo="Run `dvc repro validate`")
    table = pq.read_table(file, columns=["partition", "row"])
    return {
        str(name): table.filter(pc.equal(table["partition"], name))["row"].to_numpy()
        for name in pc.unique(table["partition"]).to_pylist()
    }


def _month_number(name: str) -> int:
    year, month = name.rsplit("-", 1)
    return int(year) * 12 + int(month)
