"""What every source returns: events and items with the source's own ids, and what a person should know about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.sources.events import Events, ItemTable


@dataclass
class SourceLog:
    """A log as read. `notes` go to the manifest, so they hold no path of this machine and no time of day."""

    events: Events
    items: ItemTable
    notes: list[str] = field(default_factory=list)
    terms: str | None = None
