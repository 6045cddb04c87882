"""Where events come from: one reader per source, all returning a SourceLog with the source's own ids."""

from __future__ import annotations

from pathlib import Path

from components.settings import IngestSettings
from components.sources.grouplens import read_grouplens
from components.sources.log import SourceLog
from components.sources.movielens import read_movielens_100k
from components.sources.table import read_table

__all__ = ["SourceLog", "read_source"]


def read_source(settings: IngestSettings, scratch: Path) -> SourceLog:
    """Read the whole log of `settings.source`, using `scratch` for what has to be downloaded or unpacked."""
    if settings.source == "grouplens":
        return read_grouplens(settings, scratch)
    if settings.source == "table":
        return read_table(settings, scratch)
    return read_movielens_100k(scratch)
