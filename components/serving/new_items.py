"""Items inserted into a running service: kept in the store of histories, mapped to vectors, and part of what answers.

    new_items = NewItems(recommender, item_map, store=lambda: store)
    new_items.insert([NewItem(9001, "Comedy of the Year (2003)", {"genres": ["Comedy"]})])   # Inserted(new=1, ...)
    new_items.recommender                    # the trained one, or that with the items after its own
    new_items.follow()                       # see what other services insert into the same store

The store is the truth: after every change all items are read back, in the order of their ids, and a new immutable
recommender with them takes the place of the one before in a single assignment. Requests keep the one they began with.
Nobody but `follow`'s own thread waits for a store that is out of reach.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from components.catalogue import ItemId, NewItem
from components.errors import HstuflowError, InputError, StateError
from components.recommender import Recommender, UnknownItemError
from components.serving.history_store import NO_VERSION, HistoryStore, StoreError
from components.serving.item_map import ItemMap, Metadata
from components.serving.stored_items import StoredItem

MAX_NEW_ITEMS = 10_000  # at once in a service: read back and mapped in 0.3 s
SECONDS_BETWEEN_LOOKS = 2.0
_INTEGER = re.compile(r"-?[1-9][0-9]{0,17}|0")

log = logging.getLogger("hstuflow.service")


class NoItemMapError(StateError):
    """Items cannot be inserted into this model."""

    http_status = 409


class Inserted(NamedTuple):
    """What became of the items of one call; `known`: ids that training knew, whose items stay as they are."""

    new: int
    replaced: int
    unchanged: int
    known: tuple[ItemId, ...]


class NewItems:
    """A trained recommender and what was inserted since. Safe to call from several threads."""

    def __init__(self, trained: Recommender, item_map: ItemMap | None, *, store: Callable[[], HistoryStore]) -> None:
        self.recommender = trained
        self.item_map = item_map
        self.trained, self._store = trained, store
        self._version = NO_VERSION
        self._num_learnt = 0  # stored ones that training knows by now: they stay for a rollback, and take no place here
        self._turn = threading.Lock()  # of those who read the store and swap the recommender
        self._ended = threading.Event()
        self._follower: threading.Thread | None = None

    def insert(self, items: Sequence[NewItem]) -> Inserted:
        """Keep items for good and recommend them from now on; all of them or, where it raises, none.

        Raises:
            NoItemMapError: the model has no map.
            InputError: an item cannot be told from others: an attribute or a value that no item has, an id of the
                wrong kind or twice, nothing that the map knows; or there would be too many.
            StoreError: they may or may not be kept; send them again.
        """
        self._check_map()
        known = tuple(item.item_id for item in items if self.trained.catalogue.find(item.item_id) >= 0)
        added = [item for item in items if self.trained.catalogue.find(item.item_id) < 0]
        _check_repeats(items)
        for item in added:
            self._check(item)
        since = self._now()
        most = MAX_NEW_ITEMS + self._num_learnt
        put = self._store().put_items([StoredItem(str(i.item_id), i.content, since) for i in added], most)
        self.refresh()
        return Inserted(*put, known)

    def withdraw(self, item_id: str) -> None:
        """Take an inserted item back, for good.

        Raises:
            UnknownItemError: no such item was inserted.
            StoreError: it may or may not be gone; try again.
        """
        is_gone = self._store().drop_item(item_id)
        self.refresh()
        if not is_gone:
            raise UnknownItemError("no item of this id was inserted", where="item_id", observed=repr(item_id)[:80])

    def refresh(self) -> bool:
        """Take over what is in the store where that changed; whether it did. Raises StoreError."""
        with self._turn:
            store = self._store()
            if self.item_map is None or store.items_version() == self._version:
                return False
            version, stored = store.items()
            items = self._usable(stored)
            self._num_learnt = sum(self.trained.catalogue.find(one.key) >= 0 for one in stored)
            self.recommender = self._extend(items, self.item_map)
            self._version = version
        return True

    def follow(self) -> None:
        """Take over now and then what others insert into the same store, in a thread of its own, until `close`."""
        if self.item_map is not None and self._follower is None:
            self._look(is_out_of_reach=False)  # what was inserted before a restart is there from the first request on
            self._follower = threading.Thread(target=self._keep_looking, name="new-items", daemon=True)
            self._follower.start()

    def close(self) -> None:
        """Follow no longer."""
        self._ended.set()
        if self._follower is not None:
            self._follower.join(timeout=SECONDS_BETWEEN_LOOKS)

    def _keep_looking(self) -> None:
        is_out_of_reach = False
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            is_out_of_reach = self._look(is_out_of_reach=is_out_of_reach)

    def _look(self, *, is_out_of_reach: bool) -> bool:
        """Refresh; return whether the store is out of reach, which is logged when it begins only."""
        try:
            self.refresh()
        except StoreError as error:
            if not is_out_of_reach:
                log.warning("inserted items not read, answering with those known: %s", error)
            return True
        return False

    def _extend(self, items: Sequence[NewItem], item_map: ItemMap) -> Recommender:
        if not items:
            return self.trained
        rows_MD = item_map.vectors(Metadata(item.title, item.attributes) for item in items)
        return self.trained.with_items(items, rows_MD, item_map.worth.length)

    def _usable(self, stored: Sequence[StoredItem]) -> list[NewItem]:
        """Return the stored items that fit this model: another one's training may know an item, or lack a value."""
        items, refused = [], []
        for one in stored:
            if self.trained.catalogue.find(one.key) >= 0:
                continue
            try:
                items.append(self._restore(one))
            except HstuflowError as error:
                refused.append(error)
        if refused:
            log.warning("%d inserted items do not fit this model and are left out: %s", len(refused), refused[0])
        return items

    def _restore(self, stored: StoredItem) -> NewItem:
        try:
            content = json.loads(stored.content)
            is_int = self.trained.facts["split"]["key_type"] == "int" and _INTEGER.fullmatch(stored.key) is not None
            item_id = int(stored.key) if is_int else stored.key
            attributes = {str(name): list(map(str, values)) for name, values in content["attributes"].items()}
            item = NewItem(item_id, str(content["title"]), attributes, int(stored.since))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreError("an inserted item is damaged", observed=repr(error)[:80]) from error
        self._check(item)
        return item

    def _now(self) -> int:
        """Return the seconds; by a clock that was set back, when the newest trained item was first seen.

        It is kept for good: an item inserted before the clock was right would be too old for every freshness window.
        """
        first_seen_X = self.trained.catalogue.attributes.first_seen_X
        newest = 0 if first_seen_X is None else int(first_seen_X.max(initial=0))
        return max(int(time.time()), newest)

    def _check_map(self) -> None:
        if self.item_map is None:
            raise NoItemMapError(
                "this model takes no new items",
                observed="titles and attributes that say nothing about vectors, or an older package",
                todo="Train again with them in the log",
            )

    def _check(self, item: NewItem) -> None:
        """Raise InputError where the model could not hold the item."""
        catalogue = self.trained.catalogue
        if self.trained.facts["split"]["key_type"] == "int" and not _INTEGER.fullmatch(str(item.item_id)):
            where, observed = "item_id", repr(item.item_id)[:80]
            raise InputError(
                "ids of this catalogue are integers", where=where, observed=observed, expected="an integer"
            )
        for name, values in item.attributes.items():
            catalogue.attributes.attribute(name).numbers_of(values)
        # Of such an item the map knows the mean of all, and that is recommended to everybody (decision 0017).
        if self.item_map is not None and not self.item_map.knows(Metadata(item.title, item.attributes)):
            raise InputError(
                "nothing in title and attributes tells the item from others",
                where=f"item {str(item.item_id)[:80]}",
                todo="Give it attribute values, or words and the year of other titles",
            )


def _check_repeats(items: Sequence[NewItem]) -> None:
    seen: set[str] = set()
    for item in items:
        if str(item.item_id) in seen:
            raise InputError("an item comes twice", where="item_id", observed=repr(item.item_id)[:80])
        seen.add(str(item.item_id))
