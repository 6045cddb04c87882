"""The event log in `data/`: month partitions of canonical columns, item and id tables, a manifest.

    data/interactions/<YYYY-MM>/part-0.parquet   rows ordered by (timestamp, source row), stable
    data/interactions/<YYYY-MM>/<file>.parquet   the same where the log is appended to: the rows of one source file
    data/items.parquet                           item_id, title, genres, ... (may have no rows)
    data/user_keys.parquet, data/item_keys.parquet   id, key: only where the log's own ids were not int64
    data/manifest.json                           source, path, columns, items, item_columns, timestamp_unit (what the
                                                 timestamps were read as), counts (events, users, items, months),
                                                 notes, data_hash (SHA-256 of all the others), of a made log
                                                 synthetic (its size), of one that is appended to mode and files
                                                 (head of `components/sources/append.py`), forgotten where somebody
                                                 was (`components/sources/forgotten.py`); no time of day in it

Month partitions and parts, because DVC stores per file: a nightly append then stores one new file, not the whole log.
A month is its parts one after another, by name, sorted by timestamp with ties left in that order; a `row` counts in the
month so merged. The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import StateError
from components.files import hash_files, read_json, reading

DATA = Path("data")
_TODO = "Run `dvc checkout --force data.dvc`, or `python -m components ingest --replace`"

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
    return _months(timestamps).astype(str)


def write_partitions(folder: Path, table: pa.Table, part: str = "part-0") -> None:
    """Write `table` (the columns of INTERACTIONS, rows in source order) below folder/interactions, one file per month.

    part: the files' name, without `.parquet`.

    Text columns may be dictionary-encoded: 20 million actions stay small until their month is written.
    """
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    table = table.select(INTERACTIONS.names).take(pa.array(order))
    # Once sorted, a month is a slice. Month names for every row would take 2 GB for 20 million of them.
    months, starts = np.unique(_months(table["timestamp"].to_numpy()), return_index=True)
    ends = [*starts[1:], table.num_rows][: len(starts)]  # none where there is no row
    for month, start, end in zip(months.astype(str), starts, ends, strict=True):
        target = folder / "interactions" / str(month) / f"{part}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = table.slice(start, end - start).cast(INTERACTIONS).combine_chunks()
        pq.write_table(rows, target, compression="zstd", store_schema=False)


def write_items(folder: Path, items: pa.Table) -> None:
    """Write the item table: `item_id` int64 and text columns, `title` and `genres` among them."""
    pq.write_table(items.combine_chunks(), folder / "items.parquet", compression="zstd", store_schema=False)


def write_keys(folder: Path, what: str, keys: pa.Table) -> None:
    """Write id -> original key for what = 'user' or 'item'."""
    target = folder / f"{what}_keys.parquet"
    pq.write_table(keys.combine_chunks(), target, compression="zstd", store_schema=False)


def list_months(data: Path = DATA) -> dict[str, list[Path]]:
    """Return the files of each month, months in time order, files by name; raises StateError where there is no log."""
    months: dict[str, list[Path]] = {}
    for file in sorted((data / "interactions").glob("*/*.parquet")):
        months.setdefault(file.parent.name, []).append(file)
    if not months:
        raise StateError(
            "holds no event log", where=f"{data}/", todo="Run `python -m components ingest`, or `dvc pull data.dvc`"
        )
    return {name: months[name] for name in sorted(months, key=_month_number)}


def list_partitions(data: Path = DATA) -> list[Path]:
    """Return all files of the log, in the order of list_months(); raises StateError where there is no log."""
    return [file for files in list_months(data).values() for file in files]


def list_part(data: Path, part: str) -> list[Path]:
    """Return the files `<part>.parquet` of all months, in no order of time."""
    return [f for month in sorted((data / "interactions").glob("*")) if (f := month / f"{part}.parquet").exists()]


def read_interactions(
    data: Path = DATA, *, quarantine: Path | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the whole log: INTERACTIONS plus `partition` (string) and `row` (int64, within its month).

    Rows come in time order, ties in source order. `quarantine` names a Parquet file (partition, row, reason) whose
    rows are left out. `columns` names the columns of INTERACTIONS wanted: of 20 million rows all of them take 1.1 GB,
    user, item and time 0.5 GB.

    Raises:
        StateError: there is no log, or one of its files or the quarantine is missing or damaged.
    """
    bad = _quarantined(quarantine) if quarantine is not None else {}
    months = []
    for name, files in list_months(data).items():
        month = read_month(files, columns) if columns is not None else _read_numbered(name, files)
        if name in bad:
            month = month.filter(pa.array(~np.isin(np.arange(month.num_rows), bad[name])))
        months.append(month)
    table = pa.concat_tables(months).combine_chunks()
    months.clear()
    pa.default_memory_pool().release_unused()  # Arrow would keep the months' memory: as much again as the table's
    return table


def read_month(files: Sequence[Path], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of one month, merged from its files as list_months() gives them."""
    if len(files) == 1:
        return _read_parquet(files[0], columns)
    wanted = None if columns is None else list(dict.fromkeys((*columns, "timestamp")))
    parts = pa.concat_tables([_read_parquet(file, wanted) for file in files])
    merged = parts.take(pc.array_sort_indices(parts["timestamp"].combine_chunks()))  # stable, a null comes last
    return merged if columns is None else merged.select(list(columns))


def locate_rows(data: Path, positions: np.ndarray) -> pa.Table:
    """Return `partition` (string) and `row` (int64) of the rows at `positions` (int64) of the whole log."""
    months = list_months(data)
    ends = np.cumsum([sum(pq.read_metadata(file).num_rows for file in files) for files in months.values()])
    which = np.searchsorted(ends, positions, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    names = pa.array(list(months))
    return pa.table({"partition": names.take(pa.array(which)), "row": pa.array(positions - starts[which], pa.int64())})


def read_rows(data: Path, places: pa.Table) -> pa.Table:
    """Return the rows at `places`, one or more, as locate_rows() names them, with all columns of the log.

    Only the months asked for are read, one after another.
    """
    found = []
    for name, files in list_months(data).items():
        rows = places.filter(pc.equal(places["partition"], name))["row"]
        if len(rows):
            found.append(_read_numbered(name, files).take(rows))
    return pa.concat_tables(found)


def read_items(data: Path = DATA) -> pa.Table:
    """Read the item table (`item_id`, `title`, `genres`, ...); no rows where the source has none."""
    return _read_parquet(data / "items.parquet")


def read_keys(data: Path, what: str) -> dict[int, str] | None:
    """Return id -> original key for what = 'user' or 'item'; None where the log's own ids are the canonical ones."""
    table = read_key_table(data, what)
    return None if table is None else dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))


def read_key_table(data: Path, what: str) -> pa.Table | None:
    """Return the columns id (int64) and key (string), in order of first appearance; None as in `read_keys`."""
    file = data / f"{what}_keys.parquet"
    return _read_parquet(file) if file.exists() else None


def read_manifest(data: Path = DATA) -> dict[str, Any]:
    """Return data/manifest.json; raises StateError where there is none, or it cannot be read."""
    if not (data / "manifest.json").exists():
        raise StateError("is missing", where=str(data / "manifest.json"), todo="Run `python -m components ingest`")
    with reading(data / "manifest.json", todo="Run `dvc checkout --force data.dvc`"):
        manifest: dict[str, Any] = read_json(data / "manifest.json")
    return manifest


def hash_log(data: Path, quarantine: Path) -> str | None:
    """Return the hash of the log without its quarantined rows, which names it everywhere; None before validation."""
    return hash_files([data, quarantine]) if quarantine.exists() else None


def _read_parquet(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with reading(file, todo=_TODO):
        return pq.read_table(file, columns=None if columns is None else list(columns))


def _read_numbered(name: str, files: Sequence[Path]) -> pa.Table:
    """Return all columns of a month, its name and the number of each row."""
    month = read_month(files)
    month = month.append_column("partition", pa.repeat(pa.scalar(name), month.num_rows))
    return month.append_column("row", pa.array(np.arange(month.num_rows), pa.int64()))


def _quarantined(file: Path) -> dict[str, np.ndarray]:
    with reading(file, todo="Run `dvc repro validate`"):
        table = pq.read_table(file, columns=["partition", "row"])
    return {
        str(name): table.filter(pc.equal(table["partition"], name))["row"].to_numpy()
        for name in pc.unique(table["partition"]).to_pylist()
    }


def _months(timestamps: np.ndarray) -> np.ndarray:
    return timestamps.astype("datetime64[s]").astype("datetime64[M]")


def _month_number(name: str) -> int:
    year, month = name.rsplit("-", 1)
    return int(year) * 12 + int(month)
