"""What users did, kept between requests: the interface of the stores, and how to open one by its URL.

    store = open_store("sqlite:////var/lib/hstuflow/histories.db")
    store.append("ann", [StoredEvent("3f2a", 50, 881250949)])  # Appended(new=1, duplicates=0)
    store.read("ann", limit=200).events

The same for every store:

* Events are ordered by (timestamp, arrival). The server's clock plays no part, so it may run backwards.
* An event id counts once per user: the first event with it wins, later ones change nothing, whatever they hold.
* `append` and `forget` are atomic, whoever else reads or writes at the same time, threads and other processes alike.
* The latest `keep` events of a user are kept. An event that is dropped takes its id along: sent again it is new again,
  and is dropped again at once, as the oldest of a full history. (Not so where it shares its time with the oldest
  event kept, or where `keep` was raised in between; then it comes back.)
* What goes wrong is raised as StoreError, a matter of the moment unless its sentence says otherwise. An append may be
  repeated as it is after any of them: its event ids see to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from components.errors import HstuflowError, InputError
from components.serving.stored_items import Put, StoredItem

ItemId = int | str
KEEP = 10_000  # events per user; the model reads 200, the rest says what was seen
NO_VERSION = ""  # of every empty history: there is only one empty history
MAX_SECONDS = 2**53  # Redis orders by a double; every integer up to here is one
_SQLITE_SECONDS, _REDIS_SECONDS = 2.0, 0.5  # how long a request may wait for a lock, for a socket
EXPECTED_URL = "sqlite:///relative.db, sqlite:////absolute.db, redis://host:6379/0, or rediss, valkey, valkeys likewise"


class StoreError(HstuflowError):
    """The store of histories is out of reach, locked, full or damaged; what it had acknowledged is not affected."""

    http_status = 503


class StoredEvent(NamedTuple):
    """One thing a user did. `event_id`: chosen by the client, unique per user. `timestamp`: seconds."""

    event_id: str
    item_id: ItemId
    timestamp: int


class Appended(NamedTuple):
    """What became of the events of one call: `new` ones, and `duplicates`, whose event id was there already."""

    new: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class History:
    """The latest events of a user, oldest first; how many there are in all; which state of the history this is."""

    events: tuple[StoredEvent, ...]
    total: int
    version: str
    is_rest: bool = False  # of the events, those alone that came in after a version, and the one before them

    @property
    def arrived(self) -> int:
        """How many events came in so far, those that were dropped since included."""
        return arrived(self.version)


def arrived(version: str) -> int:
    """Return how many events came in until a version of a history, those that were dropped since included."""
    return int(version.partition(".")[2] or 0)


class HistoryStore(Protocol):
    """Histories by user id; safe to call from many threads. Every method raises StoreError and InputError.

    A version is `<lineage>.<arrived>`: random digits that are drawn anew whenever an event comes in before an older
    one, or into an empty history; and how many events arrived so far. So a store that keeps what it acknowledged has no
    version twice, and two of one lineage differ by events at the end only. One that loses some, at a failover of Redis
    or when a backup is restored under a running service, may count to a version again, with other events. Therefore the
    rest begins with the event before it: where that is not the last one known, the history is read anew. (Should it be
    the same, of as many lost events as came in since, a service that knew the lost ones keeps them until it forgets.)
    """

    def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        """Add all events whose id is not there yet, or none where it raises; then drop all but the latest `keep`."""

    def read(self, user_id: str, limit: int, after: str = NO_VERSION) -> History:
        """Return the latest `limit` events; an unknown user has an empty history.

        Where `after` is an earlier version of this lineage and fewer than `limit` events came in since, it is the rest
        alone: these events and the one before them.
        """

    def seen(self, user_id: str) -> set[ItemId]:
        """Return the distinct item ids of all events kept; 50 and "50" are two."""

    def forget(self, user_id: str) -> int:
        """Delete all there is about a user, for good, and return how many events that were."""

    def put_items(self, items: Sequence[StoredItem], most: int) -> Put:
        """Keep inserted items, all or none (components/serving/stored_items.py); keys differ from one another.

        Raises:
            TooManyItemsError: there would be more than `most` in all.
        """

    def drop_item(self, key: str) -> bool:
        """Delete an inserted item; whether there was one."""

    def items(self) -> tuple[str, list[StoredItem]]:
        """Return the version of the inserted items and all of them, ascending by key, of one moment."""

    def items_version(self) -> str:
        """Return that version alone: another one after every change; NO_VERSION before the first."""

    def close(self) -> None:
        """Let go of files and connections; any other call raises StoreError from now on. May be called again."""


def open_store(url: str, *, keep: int = KEEP, timeout: float | None = None) -> HistoryStore:
    """Open the store that a URL names; a SQLite file is made where there is none, Redis is not contacted yet.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://`, `rediss://`, `valkey://` or `valkeys://`.
        keep: events per user, at least 1.
        timeout: seconds that a call may wait for SQLite's lock (2 unless given), or for one answer of Redis (0.5).

    Raises:
        InputError: another URL; keep < 1; or Redis is named and its client is not installed.
        StoreError: the SQLite file cannot be used.
    """
    if keep < 1:
        raise InputError("keep is out of range", observed=keep, expected="1 or more")
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from components.serving.history_sqlite import SqliteHistoryStore

        return SqliteHistoryStore(_path_of(url), keep=keep, timeout=_SQLITE_SECONDS if timeout is None else timeout)
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        from components.serving.history_redis import RedisHistoryStore

        # Valkey speaks the protocol of Redis; redis-py knows one name for it only.
        redis_url = url.replace("valkey", "redis", 1)
        return RedisHistoryStore(redis_url, keep=keep, timeout=_REDIS_SECONDS if timeout is None else timeout)
    # The text itself may hold a password, so it is not shown.
    raise InputError("the URL of the history store is none of those known", expected=EXPECTED_URL)


def check_url(url: str) -> None:
    """Raise InputError where `open_store` would, touching nothing."""
    if url.startswith("sqlite://"):
        _path_of(url)
    else:
        open_store(url).close()  # a network store is not contacted before it is used


def _path_of(url: str) -> Path:
    rest = url.removeprefix("sqlite://")
    path = rest.removeprefix("/")
    # sqlite:// and :memory: mean a database that ends with the process: histories lost at every restart.
    if not rest.startswith("/") or path in ("", ":memory:") or "\0" in path:
        raise InputError("the URL of the history store names no file", observed=url, expected=EXPECTED_URL)
    return Path(path)


def check_user(user_id: str) -> None:
    """Raise InputError for a user id that a store could not keep."""
    _check_text(user_id, "the user id")


def check_limit(limit: int) -> None:
    """Raise InputError for a limit below 1."""
    if limit < 1:
        raise InputError("limit is out of range", observed=limit, expected="1 or more")


def pack_events(events: Iterable[StoredEvent]) -> list[tuple[str, str, int]]:
    """Return (event id, packed item id, timestamp) of each event; raises InputError where one could not be kept."""
    return [_pack(event) for event in events]


def _pack(event: StoredEvent) -> tuple[str, str, int]:
    _check_text(event.event_id, "an event id")
    if not -MAX_SECONDS <= event.timestamp <= MAX_SECONDS:
        raise InputError("a timestamp is out of range", observed=event.timestamp, expected="seconds since 1970")
    return event.event_id, pack_item(event.item_id), event.timestamp


def pack_item(item_id: ItemId) -> str:
    """Return an item id as text that keeps its type: 50 is i50, "50" is s50."""
    if isinstance(item_id, int):
        try:
            return f"i{item_id}"
        except ValueError:  # Python's own limit, which its JSON parser has as well
            raise InputError("an item id is too long", expected="an integer of up to 4300 digits") from None
    packed = f"s{item_id}"
    _check_text(packed, "an item id")
    return packed


def unpack_item(packed: str) -> ItemId:
    """Return the item id; raises StoreError for what `pack_item` did not make."""
    kind, text = packed[:1], packed[1:]
    if kind == "s":
        return text
    try:
        return int(text)
    except ValueError:
        raise StoreError("an item id in the store is damaged", observed=ascii(packed)[:80]) from None


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair, which no store takes
        raise InputError(f"{what} is no text", observed=ascii(text)[:80], expected="Unicode") from None
    if not text:
        raise InputError(f"{what} is empty")
