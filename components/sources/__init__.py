"""Where events come from: one reader per source, returning a SourceLog with the source's own ids, or a MonthlyLog."""

from __future__ import annotations

from pathlib import Path

from components.settings import IngestSettings, SyntheticSettings
from components.sources.grouplens import read_grouplens
from components.sources.log import MonthlyLog, SourceLog
from components.sources.movielens import read_movielens_100k
from components.sources.synthetic import make_log
from components.sources.table import read_table

__all__ = ["MonthlyLog", "SourceLog", "read_source"]


def read_source(settings: IngestSettings, scratch: Path) -> SourceLog | MonthlyLog:
    """Read the log of `settings.source`, using `scratch` for what has to be downloaded or unpacked."""
    if settings.source == "grouplens":
        return read_grouplens(settings, scratch)
    if settings.source in ("table", "database"):
        return read_table(settings, scratch)
    if settings.source == "synthetic":
        return make_log(settings.synthetic or SyntheticSettings())
    return read_movielens_100k(scratch)
