"""Items inserted into a running service, as the stores of histories keep them: an SQLite table, or a Redis hash.

    store.put_items([StoredItem("9001", '{"title": ...}', 1_760_000_000)], most=10_000)   # Put(new=1, ...)
    store.items()                                                                         # (version, [StoredItem])

The same for every store: a put is atomic, and kept for good when it returns, as an append is. An item with the content
that it has already changes nothing; with another one it is replaced and keeps the time of its first insertion. The
version is drawn anew at every change, so that two services that share a store ask for one short text to know whether
anything changed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from components.errors import InputError

SQLITE_SCHEMA = (  # beside the histories' tables, which an earlier version of this file may have made alone
    "CREATE TABLE IF NOT EXISTS new_items (key TEXT PRIMARY KEY, content TEXT NOT NULL, since INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS new_items_version (only_row INTEGER PRIMARY KEY, version TEXT NOT NULL)",
)
REDIS_KEYS = ["hstuflow-items:{all}:rows", "hstuflow-items:{all}:version"]  # hash: key -> since:content; string
REDIS_PUT = """
local rows, version, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
local is_new, total = {}, redis.call('HLEN', rows)
for i = 3, #ARGV, 3 do
    if redis.call('HEXISTS', rows, ARGV[i]) == 0 then is_new[i] = true; total = total + 1 end
end
if total > most then return {-1, total} end
local new, replaced = 0, 0
for i = 3, #ARGV, 3 do
    local found = redis.call('HGET', rows, ARGV[i])
    local since = found and string.match(found, '^(%d+):') or ARGV[i + 2]
    local row = since .. ':' .. ARGV[i + 1]
    if not found then new = new + 1 elseif found ~= row then replaced = replaced + 1 end
    redis.call('HSET', rows, ARGV[i], row)
end
if new + replaced > 0 then redis.call('SET', version, ARGV[2]) end
return {new, replaced}
"""
REDIS_DROP = """
local dropped = redis.call('HDEL', KEYS[1], ARGV[2])
if dropped > 0 then redis.call('SET', KEYS[2], ARGV[1]) end
return dropped
"""
REDIS_ITEMS = "return {redis.call('GET', KEYS[2]), redis.call('HGETALL', KEYS[1])}"


class TooManyItemsError(InputError):
    """More items would be inserted than a service holds."""

    http_status = 409


class StoredItem(NamedTuple):
    """An inserted item. `key`: its id as text. `content`: opaque text. `since`: seconds, of its first insertion.

    A damaged row comes back as it is, `since` as text: who reads its content leaves it out, and not all others with it.
    """

    key: str
    content: str
    since: int | str


class Put(NamedTuple):
    """What became of the items of one call."""

    new: int
    replaced: int
    unchanged: int


def check_total(total: int, most: int) -> None:
    """Raise TooManyItemsError where `total` items are more than `most`."""
    if total > most:
        todo = "Withdraw some, or train again: what training knows needs no insertion"
        raise TooManyItemsError("too many inserted items", observed=total, expected=f"at most {most:,}", todo=todo)


def put_sqlite(connection: sqlite3.Connection, items: Sequence[StoredItem], most: int) -> Put:
    """Put items in an open transaction, which the caller ends."""
    contents: dict[str, str] = dict(connection.execute("SELECT key, content FROM new_items").fetchall())
    check_total(len(contents.keys() | {item.key for item in items}), most)
    changed = [item for item in items if contents.get(item.key) != item.content]
    connection.executemany(
        "INSERT INTO new_items VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET content = excluded.content", changed
    )
    if changed:
        _draw_version(connection)
    replaced = sum(item.key in contents for item in changed)
    return Put(len(changed) - replaced, replaced, len(items) - len(changed))


def drop_sqlite(connection: sqlite3.Connection, key: str) -> bool:
    """Drop an item in an open transaction; whether it was there."""
    if not connection.execute("DELETE FROM new_items WHERE key = ?", (key,)).rowcount:
        return False
    _draw_version(connection)
    return True


def items_sqlite(connection: sqlite3.Connection) -> list[StoredItem]:
    """Return all items, ascending by key."""
    return [StoredItem(*row) for row in connection.execute("SELECT key, content, since FROM new_items ORDER BY key")]


def version_sqlite(connection: sqlite3.Connection) -> str:
    """Return the version, "" where no item was ever put."""
    row = connection.execute("SELECT version FROM new_items_version").fetchone()
    return row[0] if row else ""


def items_redis(flat: Sequence[bytes]) -> list[StoredItem]:
    """Return the items of HGETALL's answer, ascending by key."""
    texts = [text.decode(errors="replace") for text in flat]
    parts = [(key, *value.partition(":")) for key, value in zip(texts[::2], texts[1::2], strict=True)]
    return sorted(
        StoredItem(key, content, int(since) if since.isdecimal() else since) for key, since, _, content in parts
    )


def _draw_version(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO new_items_version VALUES (0, ?)", (secrets.token_hex(8),))
