"""What every source returns: events and items with the source's own ids, and what a person should know about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from components.sources.events import Events, ItemTable


@dataclass
class SourceLog:
    """A log as read. `notes` go to the manifest, so they hold no path of this machine and no time of day."""

    events: Events
    items: ItemTable
    notes: list[str] = field(default_factory=list)
    terms: str | None = None


@dataclass
class MonthlyLog:
    """A log that comes month by month, so that only one month of it is in memory; its ids are canonical already.

    months: tables of INTERACTIONS in order of time, none of which shares a month with another
    items:  item_id, title, genres, one row per item, by id
    """

    months: Iterator[pa.Table]
    items: pa.Table
    notes: list[str] = field(default_factory=list)
    terms: str | None = None
