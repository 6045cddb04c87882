"""The items a model knows: ids, titles, attributes, counts; row r is the item with index r.

    catalogue = load_catalogue(Path("artifacts/checkpoints/time_split/hstu"), key_type="int")
    catalogue.find(50), catalogue.titles[0], catalogue.attributes.values(0, "genres")

Immutable. Items inserted into a running service (components/serving/new_items.py) stand after the trained ones.
Shapes: X items of the catalogue.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.files import reading
from components.serving.attributes import ItemAttributes

if TYPE_CHECKING:
    import pyarrow as pa  # not on the bare GPU machine

ItemId = int | str


@dataclass(frozen=True)
class NewItem:
    """An item that training did not know, inserted since."""

    item_id: ItemId
    title: str
    attributes: Mapping[str, Sequence[str]]
    since: int = 0  # seconds, of its insertion

    @property
    def content(self) -> str:
        """Title and attributes as one text, the same for the same ones."""
        values = {name: sorted(set(given)) for name, given in self.attributes.items() if given}
        return json.dumps({"title": self.title, "attributes": values}, sort_keys=True)

    @property
    def stand_in(self) -> int:
        """A number that is no row of a catalogue, and another one for another id or content."""
        digest = hashlib.blake2b(f"{self.item_id}\0{self.content}".encode(), digest_size=8).digest()
        return 1 << 62 | int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True)
class Catalogue:
    """The items a model knows; row r is the item with index r."""

    item_ids: tuple[ItemId, ...]  # as the log had them: strings, or ints
    titles: tuple[str, ...]
    counts: np.ndarray  # (X,) int64, events in train
    rows: dict[str, int]  # an id's text -> row
    attributes: ItemAttributes  # genres and the like
    new: tuple[NewItem, ...] = ()  # the last rows
    stand_ins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of these

    @property
    def num_trained(self) -> int:
        """How many items training knew: the first rows."""
        return len(self.item_ids) - len(self.new)

    def with_items(self, items: Sequence[NewItem]) -> Catalogue:
        """Return a catalogue with these items after its own; raises InputError where an attribute is unknown."""
        first = len(self.item_ids)
        return replace(
            self,
            item_ids=self.item_ids + tuple(item.item_id for item in items),
            titles=self.titles + tuple(item.title for item in items),
            counts=np.concatenate([self.counts, np.zeros(len(items), self.counts.dtype)]),
            rows=self.rows | {str(item.item_id): first + number for number, item in enumerate(items)},
            attributes=self.attributes.with_items([i.attributes for i in items], [i.since for i in items]),
            new=self.new + tuple(items),
            stand_ins=np.concatenate([self.stand_ins, np.array([i.stand_in for i in items], np.int64)]),
        )

    def contents(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows (n,), those of new items replaced by what stands for these whatever row they have."""
        if not self.new:
            return rows
        is_new = rows >= self.num_trained
        contents: np.ndarray = rows.copy()
        contents[is_new] = self.stand_ins[rows[is_new] - self.num_trained]
        return contents

    def find(self, item_id: ItemId) -> int:
        """Return the row of `item_id`, -1 where it is unknown.

        An id is its text: 50 and "50" are one item, because clients turn numbers into strings and back.
        """
        return self.rows.get(str(item_id), -1)

    def find_all(self, item_ids: Iterable[ItemId]) -> np.ndarray:
        """Return (n,) int64: `find` of each."""
        return np.array([self.find(item_id) for item_id in item_ids], dtype=np.int64)


def load_catalogue(checkpoint: Path, *, key_type: str) -> Catalogue:
    """Read the catalogue that lies beside the weights; `key_type` says whether ids are ints or strings."""
    import pyarrow.parquet as pq  # not on the bare GPU machine

    file = checkpoint / "catalogue.parquet"
    with reading(file, todo="Run `dvc repro`"):
        table = pq.read_table(file)
    return read_catalogue(table, key_type=key_type)


def read_catalogue(table: pa.Table, *, key_type: str) -> Catalogue:
    """Return the catalogue that a table with the columns of catalogue.parquet describes."""
    keys = table["key"].to_pylist()
    return Catalogue(
        item_ids=tuple(map(int, keys)) if key_type == "int" else tuple(keys),
        titles=tuple(table["title"].to_pylist()),
        counts=table["count"].to_numpy(),
        rows={key: row for row, key in enumerate(keys)},
        attributes=ItemAttributes.from_table(table),
    )
