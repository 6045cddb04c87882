"""Your own log: CSV, TSV, JSON lines or Parquet, gzip or not; a file, a folder, a glob or a URL; any column names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from components.errors import InputError, SettingsError
from components.settings import IngestSettings
from components.sources.cells import TableFile
from components.sources.columns import find_columns
from components.sources.database import query_database
from components.sources.delimited import DelimitedFile
from components.sources.events import Events, ItemTable, read_events, read_item_table
from components.sources.fetch import LocalFile, local_files
from components.sources.json_lines import JsonLinesFile
from components.sources.log import SourceLog
from components.sources.parquet import ParquetTable
from components.sources.text import plain_text

REQUIRED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("action", "rating")
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_SUFFIXES = (*_DELIMITERS, *_JSON, *_PARQUET)


def read_table(settings: IngestSettings, scratch: Path) -> SourceLog:
    """Read the log at `settings.path`, and the item table at `settings.items` where there is one.

    Raises:
        InputError: a file that cannot be read, a missing column, a cell that cannot be what its column says.
        SourceUnreachableError: a URL cannot be reached.
    """
    events, notes = _read_all(list_log(settings, scratch), settings, scratch)
    if not len(events.users):
        raise InputError("has a header but no events", where=settings.path, todo="Check that the right file was named")
    unit = f"timestamps read as {events.times.unit} ({events.times.reason}); --timestamp-unit overrides"
    return SourceLog(events, read_item_file(settings, scratch), [unit, *notes])


def read_one(file: LocalFile, settings: IngestSettings, scratch: Path) -> tuple[Events, list[str]]:
    """Read one file of a log; return its events and what was decided on the way. Raises as `read_table`."""
    return _read_all([file], settings, scratch)


def _read_all(files: list[LocalFile], settings: IngestSettings, scratch: Path) -> tuple[Events, list[str]]:
    _check_names(settings.columns, (*REQUIRED, *OPTIONAL))
    opened = [_open(file, scratch) for file in files]
    pairs = [(file, find_columns(file, settings.columns, REQUIRED, OPTIONAL)) for file in opened]
    events = read_events(pairs, unit=settings.timestamp_unit)
    return events, [*_note_unused(pairs), *(note for file in opened for note in file.notes)]


def _note_unused(pairs: list[tuple[TableFile, dict[str, str]]]) -> list[str]:
    ignored = sorted({n for file, columns in pairs for n in file.column_names() if n not in columns.values()})
    return [f"columns not used: {', '.join(ignored)}"] if ignored else []


def list_log(settings: IngestSettings, scratch: Path) -> list[LocalFile]:
    """Return the files of the log: those that `settings.path` means, or the one that a database's answer becomes."""
    if settings.source == "database":
        return [query_database(settings, scratch)]
    return list_tables(settings.path, scratch)


def read_item_file(settings: IngestSettings, scratch: Path) -> ItemTable:
    """Read the item table at `settings.items`; one without rows where there is none. Raises as `read_table`."""
    if settings.items is None:
        return ItemTable()
    files = [_open(file, scratch) for file in list_tables(settings.items, scratch)]
    optional = dict.fromkeys(("title", "genres", *settings.item_columns))
    return read_item_table(
        [
            (file, find_columns(file, settings.item_columns, ("item_id",), optional, option="--item-columns"))
            for file in files
        ]
    )


def list_tables(path: str | None, scratch: Path) -> list[LocalFile]:
    """Return the table files that `path` means, sorted; those of a URL are in `scratch` then."""
    if path is None:
        raise SettingsError("is missing", where="--path", expected="a file, folder, glob or URL")
    files = local_files(path, scratch)
    if len(files) > 1:
        files = [file for file in files if _suffix(file) in _SUFFIXES]  # a folder has a README or _SUCCESS beside it
    if not files:
        raise InputError("holds no table", where=path, expected=", ".join(_SUFFIXES))
    return files


def _open(file: LocalFile, scratch: Path) -> TableFile:
    suffix = _suffix(file)
    if suffix in _PARQUET:
        return ParquetTable(file)
    if suffix in _JSON:
        return JsonLinesFile(plain_text(file, scratch))
    if suffix in _DELIMITERS:
        return DelimitedFile(plain_text(file, scratch), _DELIMITERS[suffix])
    raise InputError(
        "is of no kind that is known by its name",
        where=file.shown,
        observed=suffix or "no suffix",
        expected=f"one of {', '.join(_SUFFIXES)}, with or without .gz",
        todo="Rename it, or use --source grouplens for a MovieLens archive",
    )


def _suffix(file: LocalFile) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _check_names(mapping: Mapping[str, str], allowed: Collection[str]) -> None:
    for name in mapping:
        if name not in allowed:
            raise SettingsError(
                f"maps the unknown column {name!r}",
                where="--columns",
                expected=f"{', '.join(allowed)}",
                todo="Write canonical=yours: --columns user_id=userId,...",
            )
