"""Raw columns of table files -> the canonical columns of a log, and of its item table, batch by batch.

Nothing here loops over rows in Python; 20 million events need their five columns in memory and one batch of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.sources.cells import Cells, TableFile, first_failure, first_true
from components.sources.ids import IdColumn
from components.sources.times import TimeColumn, Times

ACTIONS = pa.dictionary(pa.int32(), pa.string())


@dataclass
class Events:
    """The events of a log in source order; ids still as the source wrote them."""

    users: IdColumn
    items: IdColumn
    times: Times
    ratings: pa.ChunkedArray  # float32, null where the log has none
    actions: pa.ChunkedArray  # ACTIONS

    def table(self, user_ids: np.ndarray, item_ids: np.ndarray) -> pa.Table:
        """Return canonical columns; rows of one second keep the finer order of the source's own timestamps."""
        table = pa.table(
            {
                "user_id": user_ids,
                "item_id": item_ids,
                "timestamp": self.times.seconds,
                "action": self.actions,
                "rating": self.ratings,
            }
        )
        return table if self.times.order is None else table.take(pa.array(self.times.order))

    def only(self, kept: np.ndarray) -> Events:
        """Return the events where `kept` (n,) is true."""
        mask = pa.array(kept)
        return Events(
            self.users.only(mask),
            self.items.only(mask),
            self.times.only(kept),
            self.ratings.filter(mask),
            self.actions.filter(mask),
        )


@dataclass
class ItemTable:
    """What is known about items: `fields` has title, genres and what else the mapping names, all text."""

    ids: IdColumn = field(default_factory=IdColumn)
    fields: pa.Table = field(default_factory=lambda: pa.table({"title": pa.array([], pa.string())}))


def read_events(
    files: Iterable[tuple[TableFile, Mapping[str, str]]], *, unit: str = "auto", action: str = "event"
) -> Events:
    """Read the log from files, each with its mapping canonical name -> column name; `action` is written where none is.

    Raises:
        InputError: a cell that cannot be an id, a timestamp or a rating, with file, line and column.
    """
    users, items, times = IdColumn(), IdColumn(), TimeColumn(unit)
    ratings: list[pa.Array] = []
    actions: list[pa.Array] = []
    for file, columns in files:
        for cells in _batches(file, columns):
            users.add(cells["user_id"])
            items.add(cells["item_id"])
            times.add(cells["timestamp"])
            size = len(cells["user_id"].values)
            ratings.append(parse_ratings(cells["rating"]) if "rating" in cells else pa.nulls(size, pa.float32()))
            actions.append(_parse_actions(cells["action"], action) if "action" in cells else _repeat(action, size))
    return Events(
        users, items, times.finish(), pa.chunked_array(ratings, pa.float32()), pa.chunked_array(actions, ACTIONS)
    )


def read_item_table(files: Iterable[tuple[TableFile, Mapping[str, str]]]) -> ItemTable:
    """Read an item table: `item_id` and text columns, a list of genres joined by '|' without its nulls.

    Raises:
        InputError: an id that cannot be one, a column that cannot be text.
    """
    ids, parts = IdColumn(), []
    for file, columns in files:
        for cells in _batches(file, columns):
            ids.add(cells["item_id"])
            parts.append(pa.table({name: _as_text(cells[name]) for name in columns if name != "item_id"}))
    return ItemTable(ids, pa.concat_tables(parts, promote_options="default") if parts else ItemTable().fields)


def parse_ratings(cells: Cells) -> pa.Array:
    """Return float32, null where the cell is empty or NaN; raises InputError at words. Infinity is for validation."""
    values = cells.values
    if pa.types.is_dictionary(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.string())
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    try:
        numbers = values.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        bad = first_failure(values, lambda part: part.cast(pa.float64())) if pa.types.is_string(values.type) else 0
        raise cells.error(bad, "is not a rating", expected="a number, or nothing") from None
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers).cast(pa.float32(), safe=False)


def _parse_actions(cells: Cells, default: str) -> pa.Array:
    text = _as_text(cells).fill_null("")
    return pc.if_else(pc.equal(text, ""), default, text).dictionary_encode()


def _repeat(action: str, size: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array([action]))


def _batches(file: TableFile, columns: Mapping[str, str]) -> Iterable[dict[str, Cells]]:
    row = 0
    for batch in file.batches(list(dict.fromkeys(columns.values()))):
        yield {canonical: Cells(batch.column(name), name, row, file) for canonical, name in columns.items()}
        row += batch.num_rows


def _as_text(cells: Cells) -> pa.Array:
    """Return text; raises InputError at a cell that can be none."""
    try:
        return _join(cells.values)
    except pa.ArrowInvalid:  # bytes that are no UTF-8
        bad = first_failure(cells.values, _join)
    except pa.ArrowNotImplementedError:  # structs, maps, lists of them
        bad = first_true(cells.values.is_valid()) or 0
    raise cells.error(bad, "cannot be text", expected=f"text or a list of texts instead of {cells.values.type}")


def _join(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = pc.binary_join(_without_nulls(values.cast(pa.list_(pa.string()))), "|")
    return pc.utf8_trim_whitespace(values.cast(pa.string()))


def _without_nulls(lists: pa.Array) -> pa.Array:
    """Return lists without their null entries, any of which makes binary_join's answer null."""
    entries = lists.values
    if not entries.null_count:
        return lists
    kept_before = np.concatenate([[0], np.cumsum(entries.is_valid().to_numpy(zero_copy_only=False))])
    offsets = pa.array(kept_before[lists.offsets.to_numpy()], pa.int32())
    return pa.ListArray.from_arrays(offsets, entries.drop_null(), mask=lists.is_null())
