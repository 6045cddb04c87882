"""One person of the log: under which id, since when, in which of our files. For `forget-user` and `lineage --user`.

person = find_person("ann", data=Path("data"))     # Person(key="ann", id=17, first=1700000000, ...)
holds(Path("artifacts/.../users.arrow"), person)    # whether a file of ours has the id or the key in it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import InputError
from components.files import reading
from components.interactions import list_partitions, read_key_table
from components.sources.ids import exact_int64

NOBODY = -1  # the numbers of text ids count from 1
_USER_COLUMNS = ("user_id", "user")
_TODO = "Run `dvc checkout --force data.dvc`"


@dataclass(frozen=True)
class Person:
    """key: the id as the source writes it; id: its number; parts: file -> rows; first: time of the first, seconds."""

    key: str
    id: int
    parts: dict[str, int]
    first: int | None

    @property
    def rows(self) -> int:
        """How many events of the log are the person's."""
        return sum(self.parts.values())


def find_person(key: str, data: Path) -> Person:
    """Look a person up in the log by the source's own id; one who has no event in it (any more) has no parts.

    Raises:
        InputError: the log's ids are text, and none of them is this one; or int64, and this is none so written.
        StateError: there is no log, or a file of it is damaged.
    """
    number = _number_of(key, data)
    parts: dict[str, int] = {}
    times: list[int] = []
    for file in list_partitions(data):
        with reading(file, todo=_TODO):
            part = pq.read_table(file, columns=["user_id", "timestamp"])
        own = part.filter(pc.equal(part["user_id"], number))["timestamp"]
        if len(own):
            parts[f"{file.parent.name}/{file.name}"] = len(own)
            times.append(pc.min(own).as_py())
    return Person(key, number, parts, min(times, default=None))


def holds(file: Path, person: Person) -> bool:
    """Tell whether a file that this pipeline writes names the person: a table's row, a record, a page's cell."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"PAR1"):
        return any(_table_holds(group, person) for group in _row_groups(file))
    if head.startswith(b"ARROW1"):
        with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as opened:
            return _table_holds(opened.read_all(), person)
    if head.lstrip()[:1] in (b"{", b"["):
        return _json_holds(file.read_bytes(), person)
    if b"<!doctype html" in head.lower():
        words = "|".join(re.escape(word) for word in {person.key, str(person.id)})
        return re.search(rf"(>|user )\s*({words})\s*(<|,)", file.read_text(encoding="utf-8")) is not None
    return False


def _number_of(key: str, data: Path) -> int:
    keys = read_key_table(data, "user")
    if keys is not None:
        found = keys.filter(pc.equal(keys["key"], key))["id"].to_pylist()
        if found and key:  # without a key are those who were forgotten
            return int(found[0])
        raise InputError("is no user of this log", where="--user", observed=repr(key), expected="an id of the source")
    return read_number(key)


def read_number(key: str) -> int:
    """Return the int64 id that `key` is, written as a log of such ids writes it.

    "0123" is refused and not taken for 123: it may be a slip of the hand, and what is removed does not come back.

    Raises:
        InputError: it is none, or written otherwise.
    """
    exact = exact_int64(pa.array([key], pa.string()))
    if exact is None:
        expected = "a whole number, as in 123 or -5, without anything before, after or between its digits"
        raise InputError("is no user of this log", where="--user", observed=repr(key), expected=expected)
    return int(exact[0].as_py())


def _row_groups(file: Path) -> Iterator[pa.Table]:
    opened = pq.ParquetFile(file)
    names = [name for name in opened.schema_arrow.names if name in (*_USER_COLUMNS, "id", "key")]
    for number in range(opened.num_row_groups if names else 0):
        yield opened.read_row_group(number, columns=names)


def _table_holds(table: pa.Table, person: Person) -> bool:
    """Look at the columns that name users; in a table of keys at both, because an item may have the same key."""
    if {"id", "key"} <= set(table.column_names):
        both = pc.and_(pc.equal(table["id"], person.id), pc.equal(table["key"], person.key))
        return bool(pc.any(both).as_py())
    columns = [table[name] for name in _USER_COLUMNS if name in table.column_names]
    wanted = [person.id if pa.types.is_integer(column.type) else person.key for column in columns]
    return any(pc.any(pc.equal(column, value)).as_py() for column, value in zip(columns, wanted, strict=True))


def _json_holds(content: bytes, person: Person) -> bool:
    try:
        tree = json.loads(content)
    except ValueError:  # begins like JSON and is none: not a file of ours
        return False
    return any(value in (person.id, person.key) for value in _users_in(tree))


def _users_in(tree: Any) -> Iterator[Any]:  # noqa: ANN401 - whatever json holds
    """Yield what stands under `user` or `user_id`, however deep."""
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name in _USER_COLUMNS)
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from _users_in(branch)
