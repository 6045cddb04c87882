"""Append mode: every source file keeps parts of its own, so that a night reads and stores only the files that are new.

    python -m components ingest --source table --path 'events/*.csv' --mode append

    data/interactions/2024-03/2024-03-05.csv.parquet    the rows of 2024-03-05.csv in that month

What is told of a file, by its place below the folder that was named (`files` in data/manifest.json):
name, sha256    it is read only where this name is new, or its bytes are others: then its own parts are replaced
rows            in its parts, in all months
repeats         rows left out, because another file held the same row already, equal in all columns
first, last     times of its rows, seconds; null where it has none
unit, notes     of its timestamps; what else was decided while reading it

A log that was ingested at once before is kept as a file `part-0` without a hash, which nothing replaces.
Files that are gone stay in the log: a night's folder may hold that night only.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.console import log
from components.errors import InputError
from components.interactions import (
    INTERACTIONS,
    list_part,
    list_partitions,
    read_items,
    read_manifest,
    write_items,
    write_keys,
    write_partitions,
)
from components.manifest import measure_part
from components.settings import IngestSettings
from components.sources.canonical import RunningIds, canonical_items, union_items
from components.sources.events import Events
from components.sources.forgotten import leave_out
from components.sources.table import list_log, read_item_file, read_one

AT_ONCE = "part-0"  # the part of a log that was ingested at once
_LONGEST = 200  # bytes of a part's name; file systems take 255, and a temporary adds 20

Entry = dict[str, Any]


@dataclass
class Appended:
    """The log after a night: `files` as the manifest tells them, by name, and the files that this night read."""

    files: list[Entry]
    read: list[str]
    notes: list[str] = field(default_factory=list)


def append_files(
    folder: Path,
    wanted: IngestSettings,
    scratch: Path,
    *,
    held: Path | None,
    known: Path | None,
    forgotten: Collection[str] = (),
) -> Appended:
    """Write into the empty `folder` the log of `held` and what is new of the files that `wanted.path` means.

    held: the data folder to go on from; None starts anew. known: the one whose ids keep their numbers.
    forgotten: users to leave out, as `components/sources/forgotten.py` writes them.

    Raises:
        InputError: as `read_table`, and where there is no event in all of the files.
        SourceUnreachableError: a URL cannot be reached.
    """
    files = {file.relative: file for file in list_log(wanted, scratch)}
    hashes = {name: _hash(file.path) for name, file in files.items()}
    entries = {entry["name"]: entry for entry in _entries(held)} if held is not None else {}
    names = _to_read(entries, hashes)
    kept = {name: entry for name, entry in entries.items() if name not in names}
    if held is not None:
        _copy_parts(held, folder, kept)
    ids = RunningIds(known)
    for name in names:
        events, told = read_one(files[name], wanted, scratch)
        facts = {"name": name, "sha256": hashes[name], "unit": events.times.unit, "notes": told}
        kept[name] = facts | _add(folder, name, leave_out(events, forgotten), kept, ids)
    if not any(entry["rows"] for entry in kept.values()):
        raise InputError("has a header but no events", where=wanted.path, todo="Check that the right files were named")
    notes = _write_items(folder, wanted, scratch, ids, held)
    for what, keys in ids.keys.items():
        if keys is not None:
            write_keys(folder, what, keys)
    return Appended([kept[name] for name in sorted(kept)], names, notes)


def _entries(held: Path) -> list[Entry]:
    """Return what is told of the files in `held`, also where that was ingested at once."""
    manifest = read_manifest(held)
    if "files" in manifest:
        files: list[Entry] = manifest["files"]
        return files
    at_once = {"name": AT_ONCE, "sha256": None, "repeats": 0, "unit": manifest["timestamp_unit"], "notes": []}
    return [at_once | measure_part(held, AT_ONCE)]


def _to_read(entries: dict[str, Entry], hashes: dict[str, str]) -> list[str]:
    """Return the names of the files to read, in order: new, changed, and those whose repeats may be none any more."""
    new = [name for name in hashes if name not in entries]
    changed = [name for name in hashes if name in entries and entries[name]["sha256"] != hashes[name]]
    log.info("%d files: %d new, %d changed, the others as they were", len(hashes), len(new), len(changed))
    return sorted([*new, *changed, *_relying(entries, hashes, changed)])


def _relying(entries: dict[str, Entry], hashes: dict[str, str], changed: list[str]) -> list[str]:
    """Return the files that left out rows which a changed file may hold no more; warn where they are gone."""
    relying = [name for name, entry in entries.items() if changed and entry["repeats"] and name not in changed]
    for name in relying:
        if name not in hashes:
            left_out, why = entries[name]["repeats"], f"it is not here to be read again, and {changed[0]} has changed"
            log.warning("%s left out %d rows that another file held: %s", name, left_out, why)
    return [name for name in relying if name in hashes]


def _copy_parts(held: Path, folder: Path, kept: dict[str, Entry]) -> None:
    """Copy the parts of the files `kept`, with their times of change, by which DVC knows them again."""
    names = {f"{part_of(name)}.parquet" for name in kept}
    for file in list_partitions(held):
        if file.name in names:
            target = folder / file.relative_to(held)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)


def _add(folder: Path, name: str, events: Events, others: dict[str, Entry], ids: RunningIds) -> Entry:
    """Write the parts of one file; return what they hold."""
    part = part_of(name)
    write_partitions(folder, events.table(ids.number("user", events.users), ids.number("item", events.items)), part)
    repeats = _leave_out_repeats(folder, part, others)
    return {"repeats": repeats} | measure_part(folder, part)


def _leave_out_repeats(folder: Path, part: str, others: dict[str, Entry]) -> int:
    """Remove from the parts called `part` the rows that another file's part holds; return how many."""
    left_out = 0
    for own in list_part(folder, part):
        rows = pq.read_table(own)
        repeats = _find_held(rows, [pq.read_table(file) for file in _overlapping(own, rows, others)])
        if repeats.any():
            own.unlink()
            write_partitions(folder, rows.filter(pa.array(~repeats)), part)
        left_out += int(repeats.sum())
    return left_out


def _overlapping(own: Path, rows: pa.Table, others: dict[str, Entry]) -> list[Path]:
    """Return the other parts of a month that may hold one of `rows`, by the times of their files."""
    first, last = rows["timestamp"][0].as_py(), rows["timestamp"][-1].as_py()
    near = [e["name"] for e in others.values() if e["rows"] and e["first"] <= last and first <= e["last"]]
    return [file for name in near if (file := own.with_name(f"{part_of(name)}.parquet")).exists()]


def _find_held(rows: pa.Table, others: list[pa.Table]) -> np.ndarray:
    """Return which of `rows` occur in `others`, equal in all columns (null equals null), as bool (n,)."""
    repeats = np.zeros(rows.num_rows, bool)
    times = rows["timestamp"].combine_chunks()
    near = [other.filter(pc.is_in(other["timestamp"], value_set=times)) for other in others]
    numbers = [np.full(other.num_rows, -1) for other in near] + [np.arange(rows.num_rows)]
    both = pa.concat_tables([*near, rows]).append_column("number", pa.array(np.concatenate(numbers)))
    groups = both.group_by(INTERACTIONS.names, use_threads=False).aggregate([("number", "min"), ("number", "list")])
    shared = groups.filter(pc.equal(groups["number_min"], -1))
    found = pc.list_flatten(shared["number_list"]).to_numpy()
    repeats[found[found >= 0]] = True
    return repeats


def _write_items(folder: Path, wanted: IngestSettings, scratch: Path, ids: RunningIds, held: Path | None) -> list[str]:
    """Write the items of `held` and of tonight's item table, whose rows win; return notes."""
    notes: list[str] = []
    table = canonical_items(*ids.number_items(read_item_file(wanted, scratch), notes), notes)
    write_items(folder, table if held is None else union_items(read_items(held), table))
    return notes


def part_of(name: str) -> str:
    """Return the name of a source file's parts: one that every file system takes, and no other file has."""
    part = quote(name, safe=" =@+,~")
    if len(part) <= _LONGEST:
        return part
    return f"{part[: _LONGEST - 33]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
