"""Which source is meant: settings, options over them, and whether that is the log that `data/` already holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.errors import SettingsError
from components.settings import IngestSettings, SyntheticSettings
from components.sources.fetch import is_url

YOUR_OWN = ("table", "database")  # sources of columns with any names, from night to night


def choose_source(settings: IngestSettings, options: Mapping[str, Any]) -> IngestSettings:
    """Return `settings` with the given options; another source than theirs starts from that source's own defaults."""
    given = {name: value for name, value in options.items() if value}
    same = given.get("source", settings.source) == settings.source
    try:
        wanted = IngestSettings.model_validate({**(settings.model_dump() if same else {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        option, *key = map(str, first["loc"])
        where = " ".join(["--" + option.replace("_", "-"), *key])
        expected = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise SettingsError("is wrong", where=where, observed=first["input"], expected=expected) from None
    _check_belongs(wanted)
    places = {"path": _portable(wanted.path), "items": _portable(wanted.items)}
    size = {"synthetic": wanted.synthetic or SyntheticSettings()} if wanted.source == "synthetic" else {}
    return wanted.model_copy(update=places | size)


def _check_belongs(wanted: IngestSettings) -> None:
    """Raise SettingsError at an option that the chosen source does not have."""
    foreign: dict[str, Any] = {"path": wanted.path} if wanted.source in ("movielens-100k", "synthetic") else {}
    foreign["synthetic"] = None if wanted.source == "synthetic" else wanted.synthetic
    foreign["mode"] = "append" if wanted.mode == "append" and wanted.source not in YOUR_OWN else None
    if wanted.source != "database":
        foreign |= {"query": wanted.query, "night": wanted.night}
    if wanted.source not in YOUR_OWN:
        unit = wanted.timestamp_unit if wanted.timestamp_unit != "auto" else None
        foreign |= {"columns": wanted.columns, "timestamp_unit": unit, "items": wanted.items}
        foreign |= {"item_columns": wanted.item_columns}
    for name, value in foreign.items():
        if value:
            raise SettingsError(
                f"is no option of the source {wanted.source}",
                where=f"--{name.replace('_', '-')}",
                observed=value,
                todo="Add --source table for your own log (--source grouplens for a MovieLens archive)",
            )


def _portable(path: str | None) -> str | None:
    """Return a local path relative to here where it lies below, so that the manifest means the same elsewhere."""
    if path is None or is_url(path):
        return path
    full = Path(path).expanduser()
    if full.is_absolute() and full.is_relative_to(Path.cwd()):
        full = full.relative_to(Path.cwd())
    return os.path.normpath(full)


def extends(wanted: IngestSettings, held: Mapping[str, Any]) -> bool:
    """Tell whether `wanted` is appended to the log that `held` describes: your own, same mapping, any path."""
    return wanted.mode == "append" and wanted.source == held["source"] and wanted.columns == held["columns"]


def is_same_log(wanted: IngestSettings, held: Mapping[str, Any]) -> bool:
    """Tell whether the log that the manifest `held` describes came from where `wanted` points, read the same way."""
    return (
        wanted.source == held["source"]
        and _absolute(wanted.path) == _absolute(held["path"])
        and wanted.columns == held["columns"]
        and wanted.query == held.get("query")
        and wanted.model_dump()["synthetic"] == held.get("synthetic")
    )


def continues(wanted: IngestSettings, held: Mapping[str, Any] | None) -> bool:
    """Tell whether ids must keep their numbers: the same log, or a newer file of a table with the same mapping."""
    if held is None:
        return False
    newer_file = wanted.source == held["source"] in YOUR_OWN and wanted.columns == held["columns"]
    return newer_file or is_same_log(wanted, held)


def _absolute(path: str | None) -> str | None:
    return path if path is None or is_url(path) else str(Path(path).absolute().resolve())


def describe(source: Mapping[str, Any]) -> str:
    """Return a source, its path and its mapping (or size) as a person writes them."""
    mapping = source["columns"] or source.get("synthetic") or {}
    columns = ",".join(f"{name}={value}" for name, value in sorted(mapping.items()))
    return " ".join(part for part in (source["source"], source["path"], columns and f"({columns})") if part)
