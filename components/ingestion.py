"""Bring an event log into `data/`, all of it or nothing: choose the source, read, write beside, compare, swap.

    python -m components ingest                                            # the default, or keep what is there
    python -m components ingest --source grouplens --path ml-1m.zip
    python -m components ingest --source table --path my_events.csv --columns user_id=userId,item_id=movieId
    python -m components ingest --source table --path 'events/*.csv' --mode append     # only the files that are new

The same input gives the same bytes, so that ingesting again changes nothing and `dvc add data` keeps its pin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.console import log, print_header, print_table
from components.errors import InputError
from components.files import folder_beside, hash_files, replacing_folder
from components.interactions import (
    list_months,
    read_manifest,
    write_items,
    write_keys,
    write_partitions,
)
from components.manifest import Counts, count_log, write_manifest
from components.settings import IngestSettings
from components.sources import MonthlyLog, SourceLog, read_source
from components.sources.append import append_files
from components.sources.canonical import canonical_items, known_keys, without_impossible
from components.sources.choice import choose_source, continues, describe, extends, is_same_log
from components.sources.forgotten import leave_out, leave_out_rows
from components.sources.ids import IdColumn, number_ids


@dataclass(frozen=True)
class Change:
    """What an ingestion did to `data/`. `months` names the partitions that are new, different or gone."""

    before: Counts | None
    after: Counts
    changed: bool
    months: tuple[str, ...] = ()


def ingest(settings: IngestSettings, options: Mapping[str, Any], *, data: Path, replace: bool = False) -> Change:
    """Bring the log of the chosen source into `data` and print what changed; on an error `data` stays as it was.

    `options` override `settings`; None or empty means "not given". With none given, and only the default source in
    `settings`, a log that `data` already holds is kept.

    Raises:
        InputError: the source cannot be read, or `data` holds another log and `replace` is false.
        SourceUnreachableError: the source cannot be fetched.
    """
    wanted, held = choose_source(settings, options), _held(data)
    if held is not None and _is_kept(settings, options) and not replace:
        log.info("%s/ already holds a log from %s: kept", data, describe(held))
        counts = Counts(**held["counts"])
        return Change(counts, counts, changed=False)
    _refuse_other(wanted, held, data, replace=replace)
    known, forgotten = data if continues(wanted, held) else None, _read_forgotten(data)
    with (
        tempfile.TemporaryDirectory(prefix="ingest-") as scratch,
        folder_beside(data) as staging,
    ):
        if wanted.mode == "append":
            base = data if held is not None and not replace else None
            manifest, terms = (
                _append(staging, wanted, Path(scratch), held=base, known=known, forgotten=forgotten),
                None,
            )
        else:
            source = read_source(wanted, Path(scratch))
            manifest, terms = _write(staging, source, wanted, known=known, forgotten=forgotten), source.terms
        change = _compare(data, held, staging, manifest)
        if change.changed:
            _swap(staging, data)
    _report(change, manifest, terms, data)
    return change


def _held(data: Path) -> dict[str, Any] | None:
    """Return the manifest of the log in `data`, None where there is no complete one."""
    whole = (data / "manifest.json").exists() and any((data / "interactions").glob("*/*.parquet"))
    return read_manifest(data) if whole else None


def _read_forgotten(data: Path) -> list[str]:
    """Return whom `data` leaves out. Whatever log takes its place, and where its files are gone, they stay forgotten.

    Another log may have another person under the same id, who is left out then; the other way round somebody who was
    promised to be gone would be back, for as little as one more optional column in the mapping.
    """
    if not (data / "manifest.json").exists():
        return []
    forgotten: list[str] = read_manifest(data).get("forgotten", [])
    if forgotten:
        log.info("people who stay forgotten: %d (`forgotten` in %s)", len(forgotten), data / "manifest.json")
    return forgotten


def _is_kept(settings: IngestSettings, options: Mapping[str, Any]) -> bool:
    """Tell whether a call without options leaves the held log alone.

    params.yaml with the default source means "whatever is there". A source that a person wrote into params.yaml is read
    again, because a nightly run wants its new events.
    """
    return not any(options.values()) and settings.source == "movielens-100k"


def _refuse_other(wanted: IngestSettings, held: Mapping[str, Any] | None, data: Path, *, replace: bool) -> None:
    if replace or (held is None and not (data.exists() and any(data.iterdir()))):
        return
    if held is None:
        raise InputError("holds files but no log", where=f"{data}/", todo="Move them away, or pass --replace")
    if wanted.mode == "replace" and held.get("mode") == "append" and wanted.source == held["source"]:
        raise InputError(
            "holds a log that was appended to, file by file",
            where=f"{data}/",
            observed=f"{len(held['files'])} files, of which --path may have the newest only",
            todo="Pass --mode append, or --replace (make: REPLACE=1) to read all of it at once",
        )
    if not (extends(wanted, held) or is_same_log(wanted, held)):
        raise InputError(
            "already holds another log",
            where=f"{data}/",
            observed=describe(held),
            expected=describe(wanted.model_dump()),
            todo="Pass --replace (make: REPLACE=1) to put the new one in its place",
        )


def _write(
    folder: Path,
    source: SourceLog | MonthlyLog,
    wanted: IngestSettings,
    *,
    known: Path | None,
    forgotten: list[str],
) -> dict[str, Any]:
    """Write the log into an empty folder and return its manifest; `known` is the data folder whose ids must be kept."""
    if isinstance(source, MonthlyLog):
        counts = _write_months(folder, source, forgotten)
        return write_manifest(folder, _describe_source(wanted, "s", forgotten), counts, source.notes)
    events, notes = leave_out(source.events, forgotten), list(source.notes)
    if not len(events.users):
        raise InputError("has events of forgotten people only", where=wanted.path or wanted.source)
    users = number_ids(events.users, IdColumn(), known_keys(known, "user", events.users))
    known_items = known_keys(known, "item", events.items)
    catalogue = source.items
    if not events.items.is_text and known_items is None:
        catalogue = without_impossible(catalogue, notes)
    items = number_ids(events.items, catalogue.ids, known_items)
    write_partitions(folder, events.table(users.ids, items.ids))
    write_items(folder, canonical_items(catalogue, items, notes))
    for what, numbered in (("user", users), ("item", items)):
        if numbered.keys is not None:
            write_keys(folder, what, numbered.keys)
    counts = Counts(len(users.ids), len(np.unique(users.ids)), len(np.unique(items.ids)), len(list_months(folder)))
    return write_manifest(folder, _describe_source(wanted, events.times.unit, forgotten), counts, notes)


def _write_months(folder: Path, source: MonthlyLog, forgotten: list[str]) -> Counts:
    """Write a log month by month."""
    users, items, events = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    for made in source.months:
        month = leave_out_rows(made, forgotten)
        write_partitions(folder, month)
        users, items = np.union1d(users, month["user_id"]), np.union1d(items, month["item_id"])
        events += month.num_rows
    write_items(folder, source.items)
    return Counts(events, len(users), len(items), len(list_months(folder)))


def _append(
    folder: Path,
    wanted: IngestSettings,
    scratch: Path,
    *,
    held: Path | None,
    known: Path | None,
    forgotten: list[str],
) -> dict[str, Any]:
    """Write the log of `held` with what is new into an empty folder and return its manifest."""
    appended = append_files(folder, wanted, scratch, held=held, known=known, forgotten=forgotten)
    repeats, notes = sum(entry["repeats"] for entry in appended.files), appended.notes
    if repeats:
        notes = [f"{repeats} rows repeat a row of another file in all columns, left out", *notes]
    units = ", ".join(sorted({entry["unit"] for entry in appended.files}))
    # no path: it may name another file each night, and the manifest says what is held
    described = {**_describe_source(wanted, units, forgotten), "path": None, "files": appended.files}
    return write_manifest(folder, described, count_log(folder), notes)


def _describe_source(wanted: IngestSettings, unit: str, forgotten: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the manifest says of the source; only the source synthetic has a size, only append is a mode."""
    described = {**wanted.model_dump(), "timestamp_unit": unit, "forgotten": list(forgotten)}
    absent = {"synthetic"} if wanted.source != "synthetic" else set()
    absent |= {"mode"} if wanted.mode == "replace" else set()
    absent |= set() if forgotten else {"forgotten"}
    absent |= {"night", "query"} if wanted.source != "database" else {"night"}
    return {name: value for name, value in described.items() if name not in absent}


def _compare(data: Path, held: Mapping[str, Any] | None, staging: Path, manifest: Mapping[str, Any]) -> Change:
    before = Counts(**held["counts"]) if held is not None else None
    old, new = _month_hashes(data), _month_hashes(staging)
    months = tuple(sorted(month for month in old.keys() | new.keys() if old.get(month) != new.get(month)))
    changed = not data.exists() or hash_files([data]) != hash_files([staging])
    return Change(before, Counts(**manifest["counts"]), changed, months)


def _month_hashes(data: Path) -> dict[str, str]:
    return {folder.name: hash_files([folder]) for folder in (data / "interactions").glob("*")}


def _swap(staging: Path, data: Path) -> None:
    with replacing_folder(data) as folder:
        for entry in staging.iterdir():
            entry.rename(folder / entry.name)


def _report(change: Change, manifest: Mapping[str, Any], terms: str | None, data: Path) -> None:
    if terms:
        log.info("%s", terms)
    facts = {"source": describe(manifest)}
    facts |= {f"note {number}": note for number, note in enumerate(manifest["notes"], 1)}
    print_header(f"{data}/ {'has a new state' if change.changed else 'is unchanged'}", facts)
    before = change.before or Counts(0, 0, 0, 0)
    rows = [
        (name, f"{old:,}", f"{new:,}", f"{new - old:+,}" if new != old else "0")
        for name, old, new in (
            ("rows", before.events, change.after.events),
            ("months", before.months, change.after.months),
            ("users", before.users, change.after.users),
            ("items", before.items, change.after.items),
        )
    ]
    print_table(f"{data}/: what changed", ["", "before", "after", "change"], rows)
    if change.months:
        log.info("month files new, different or gone: %d (%s)", len(change.months), _span(change.months))


def _span(months: tuple[str, ...]) -> str:
    return ", ".join(months) if len(months) <= 3 else f"{months[0]} ... {months[-1]}"
