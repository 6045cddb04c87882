"""From a source's own ids and item table to the canonical ones of `data/`: what both ways of ingesting need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.interactions import read_interactions, read_items, read_key_table
from components.sources.events import ItemTable
from components.sources.ids import IdColumn, Numbered, keys_of_integers, number_ids


class RunningIds:
    """Numbers id columns one after another, as number_ids() would number them all: keys continue from file to file.

    keys: 'user' and 'item' -> the mapping so far, None while the ids are int64.
    """

    def __init__(self, known: Path | None) -> None:
        self._known = known
        self.keys = {what: read_key_table(known, what) if known is not None else None for what in ("user", "item")}
        self._seen: dict[str, list[np.ndarray]] = {"user": [], "item": []}

    def number(self, what: str, column: IdColumn) -> np.ndarray:
        """Return the next file's ids (n,) as int64."""
        if column.is_text and self.keys[what] is None:
            self.keys[what] = self._keys_so_far(what, column)
        numbered = number_ids(column, IdColumn(), self.keys[what])
        self.keys[what] = numbered.keys
        if numbered.keys is None:
            self._seen[what].append(np.unique(numbered.ids))
        return numbered.ids

    def number_items(self, table: ItemTable, notes: list[str]) -> tuple[ItemTable, Numbered]:
        """Return the rows of an item table that can occur in the log, with their numbers; after the last file."""
        if self.keys["item"] is None:
            table = without_impossible(table, notes)
        numbered = number_ids(IdColumn(), table.ids, self.keys["item"])
        self.keys["item"] = numbered.keys
        return table, numbered

    def _keys_so_far(self, what: str, column: IdColumn) -> pa.Table:
        """Return the mapping under which the int64 ids until now keep their numbers."""
        held = known_keys(self._known, what, column)
        before = held["id"].to_numpy() if held is not None else np.zeros(0, np.int64)
        return keys_of_integers(pa.array(np.concatenate([before, *self._seen[what]])))


def known_keys(known: Path | None, what: str, column: IdColumn) -> pa.Table | None:
    """Return the mapping to continue: the stored one, or the old int64 ids as they are when the log turns to text."""
    if known is None:
        return None
    keys = read_key_table(known, what)
    if keys is None and column.is_text:
        ids = read_interactions(known)[f"{what}_id"].combine_chunks()
        more = read_items(known)["item_id"].combine_chunks() if what == "item" else pa.array([], pa.int64())
        keys = keys_of_integers(pa.concat_arrays([ids, more]))
    return keys


def without_impossible(table: ItemTable, notes: list[str]) -> ItemTable:
    """Return the rows of an item table whose ids can occur in a log of int64 ids."""
    possible = table.ids.mask_integers()
    if possible.all():
        return table
    notes.append(f"item table: {int((~possible).sum())} ids that are no integers cannot occur in this log, left out")
    mask = pa.array(possible)
    return ItemTable(table.ids.only(mask), table.fields.filter(mask))


def canonical_items(table: ItemTable, items: Numbered, notes: list[str]) -> pa.Table:
    """Return one row per item, by id: item_id, title, genres, then what else the source has; empty text is null."""
    ids, first = np.unique(items.others, return_index=True)
    if len(ids) < len(items.others):
        notes.append(f"item table: {len(items.others) - len(ids)} repeated ids, first row kept")
    columns: dict[str, pa.ChunkedArray | pa.Array] = {"item_id": pa.array(ids)}
    for name in dict.fromkeys(("title", "genres", *table.fields.column_names)):
        empty = name not in table.fields.column_names
        text = pa.nulls(len(ids), pa.string()) if empty else table.fields[name].take(pa.array(first))
        columns[name] = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    return pa.table(columns)


def union_items(held: pa.Table, new: pa.Table) -> pa.Table:
    """Return one row per item, by id: of two rows of an item the one in `new`."""
    old = held.filter(pc.invert(pc.is_in(held["item_id"], value_set=new["item_id"].combine_chunks())))
    return pa.concat_tables([new, old], promote_options="default").sort_by("item_id")
