"""What the service does with a request, framework-free: whose history, what of it the model sees, what comes back.

    engine = Engine(Recommender.load(checkpoint), store_url="sqlite:///histories.db")
    engine.append("ann", [StoredEvent("e1", 50, 881250949)])
    glance = engine.look(user_id="ann")
    engine.recommender.answer(glance.y_1D, glance.seen_rows, k=10)

Shapes: D width of the model.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from components.catalogue import ItemId
from components.recommender import Event, Recommender, resolve_request_time
from components.serving.history_store import NO_VERSION, Appended, HistoryStore, StoredEvent, StoreError
from components.serving.item_map import ItemMap
from components.serving.lazy_store import LazyStore
from components.serving.new_items import NewItems
from components.serving.turn import Turn
from components.serving.user_states import KnownHistory, UserStates, window_start

HistoryFrom = Literal["request", "store", "request, store unreachable", "nowhere, store unreachable"]

log = logging.getLogger("hstuflow.service")


class Extent(NamedTuple):
    """How long a history is, and how much of it the model knows."""

    num_events: int  # of a stored one: of all that is stored
    num_read: int  # the latest of these, which the model was given
    num_unknown: int  # of num_read
    last_row: int  # catalogue row of the latest event that the model knows, -1 without one


@dataclass(frozen=True, eq=False)
class Reading:
    """A user's history at the time of the request."""

    rows: np.ndarray  # (n,) int64 catalogue rows in time order; -1 for unknown items, which a stored window leaves out
    timestamps: np.ndarray  # (n,) int64 seconds
    request_time: int  # seconds
    seen_rows: Sequence[int] | np.ndarray  # of everything the user had, however old
    named: Sequence[ItemId]  # items of the request's own history, where the model lacks one of them
    history_from: HistoryFrom
    recommender: Recommender  # whose rows these are, and who has to answer: items may be inserted meanwhile
    extent: Extent
    history: KnownHistory | None = None  # the stored one that this was read from
    y_1D: Tensor | None = None  # None: not encoded, or the history holds no known item

    @property
    def is_known(self) -> bool:
        """Whether the model knows an item of the history at least."""
        return bool((self.rows >= 0).any())


class Engine:
    """A recommender with a memory. Safe to call from several threads."""

    def __init__(
        self,
        recommender: Recommender,
        *,
        store_url: str,
        max_cache_bytes: int = 256 << 20,
        item_map: ItemMap | None = None,
    ) -> None:
        self._lazy_store = LazyStore(store_url)
        self._max_cache_bytes = max_cache_bytes
        # One request computes at a time. Threads that compute side by side take one another's core and the interpreter:
        # of 8 connections, 100 answers a second instead of 71 (one core). Waiting for the store needs no turn.
        self.turn = Turn()
        self._caches: weakref.WeakSet[UserStates] = weakref.WeakSet()  # whoever is forgotten is so in all of them
        self._entering = threading.Lock()  # of caches
        self._take(recommender, item_map)

    def follow_with(self, recommender: Recommender, item_map: ItemMap | None) -> Engine:
        """Return an engine of another model over the same histories; requests that began on this one end on it.

        Nothing that it makes refers to this one, so this model's memory is free once the last such request has ended.
        """
        after = copy.copy(self)
        after._take(recommender, item_map)
        return after

    def _take(self, recommender: Recommender, item_map: ItemMap | None) -> None:
        """Build what belongs to one model: the items inserted into it, and the cache of users it has encoded."""
        self.new_items = NewItems(recommender, item_map, store=self._lazy_store.open)
        self.states = None
        if recommender.encoder is not None:
            self.states = UserStates(recommender.encoder, max_bytes=self._max_cache_bytes)
            with self._entering:
                self._caches.add(self.states)

    @property
    def recommender(self) -> Recommender:
        """The model with all items it knows by now. A request asks once and keeps what it got."""
        return self.new_items.recommender

    @property
    def store(self) -> HistoryStore:
        """The store of histories; raises StoreError where it cannot be used."""
        return self._lazy_store.open()

    def look(
        self, history: Sequence[Event] | None = None, user_id: str | None = None, request_time: int | None = None
    ) -> Reading:
        """Encode what `read` returns, with the cache's help where it is a stored history."""
        generation = 0 if self.states is None else self.states.generation  # from before the store is read
        found = self.read(history, user_id, request_time)
        y_1D = None
        if not found.is_known and found.history_from == "store" and self.states is not None and user_id is not None:
            self.states.drop(user_id)  # forgotten through another process
        if found.is_known:
            with self.turn:
                if found.history_from == "store" and self.states is not None and user_id is not None:
                    y_1D = self._encode_stored(self.states, user_id, found, generation)
                else:
                    y_1D = found.recommender.encode(found.rows, found.timestamps, found.request_time)
        return replace(found, y_1D=y_1D)

    def read(
        self, history: Sequence[Event] | None = None, user_id: str | None = None, request_time: int | None = None
    ) -> Reading:
        """Return a user's history: the stored one of `user_id`, else the one given.

        Where the store cannot be reached, the history given beside the user id serves, or none. Of a stored one it is
        the window that the cache keeps (components/serving/user_states.py).

        Raises:
            InputError: request_time lies before the last event.
        """
        if user_id is None:
            return self._read_request(history or [], request_time, "request")
        try:
            return self._read_store(user_id, request_time)
        except StoreError as error:
            log.warning("history of a user_id not read, answering without: %s", error)
            where: HistoryFrom = "nowhere, store unreachable" if history is None else "request, store unreachable"
            return self._read_request(history or [], request_time, where)

    def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        """Keep events of a user, all or none; when this returns, they are kept for good. Raises StoreError."""
        return self.store.append(user_id, events)

    def forget(self, user_id: str) -> int:
        """Delete a user from store and caches; return how many events there were. Raises StoreError.

        Of all models' caches: a request may have begun before the model was replaced.
        """
        try:
            return self.store.forget(user_id)
        finally:  # after it: what is read while the store still has the events must not stay
            with self._entering:
                caches = list(self._caches)
            for states in caches:
                states.forget(user_id)

    def close(self) -> None:
        """Let go of the store."""
        self.new_items.close()
        self._lazy_store.close()

    def _encode_stored(self, states: UserStates, user_id: str, found: Reading, generation: int) -> Tensor:
        return states.encode(
            user_id,
            found.rows,
            found.timestamps,
            found.request_time,
            generation=generation,
            encoder=found.recommender.encoder,
            contents_n=found.recommender.catalogue.contents(found.rows),
            history=found.history,
        )

    def _read_request(self, history: Sequence[Event], request_time: int | None, where: HistoryFrom) -> Reading:
        recommender = self.recommender
        rows, times = recommender.read(history)
        when = _when(times, request_time)
        named = [item for item, _ in history] if (rows < 0).any() else []
        return Reading(rows, times, when, rows, named, where, recommender, _extent(len(rows), rows))

    def _read_store(self, user_id: str, request_time: int | None) -> Reading:
        recommender = self.recommender
        history = self._recall(user_id, recommender)
        rows, times = history.rows_n, history.timestamps_n
        start = len(rows) - (history.arrived - window_start(history.arrived, recommender.max_len))
        rows, times = rows[max(start, 0) :], times[max(start, 0) :]
        is_known = rows >= 0
        # An event of the store may be later than the client knows: then the request comes right after it.
        when = _when(times, None if request_time is None else max([request_time, *times[-1:].tolist()]))
        extent, seen_rows = _extent(history.total, rows), history.seen_rows
        return Reading(rows[is_known], times[is_known], when, seen_rows, (), "store", recommender, extent, history)

    def _recall(self, user_id: str, recommender: Recommender) -> KnownHistory:
        """Return a stored history: what is kept of it and the rest from the store, else all from there."""
        known = self.states.recall(user_id, recommender) if self.states is not None else None
        max_len = recommender.max_len
        stored = self.store.read(user_id, max_len, after=known.version if known else NO_VERSION)
        rows, times = recommender.read([(event.item_id, event.timestamp) for event in stored.events])
        if known is not None and stored.is_rest:
            grown = known.grown(stored, rows, times, max_len)
            if grown is not None:
                return grown
            stored = self.store.read(user_id, max_len)
            rows, times = recommender.read([(event.item_id, event.timestamp) for event in stored.events])
        # What fits into one read is all there is: the second question is for long histories only.
        seen = self.store.seen(user_id) if stored.total > len(stored.events) else ()
        older_rows_S = np.setdiff1d(recommender.catalogue.find_all(seen), rows)
        last, total, version = stored.events[-1:], stored.total, stored.version
        return KnownHistory(rows, times, older_rows_S, last, total, version, weakref.ref(recommender))


def _extent(num_events: int, rows: np.ndarray) -> Extent:
    known = rows[rows >= 0]
    return Extent(num_events, len(rows), len(rows) - len(known), int(known[-1]) if len(known) else -1)


def _when(times: np.ndarray, request_time: int | None) -> int:
    """Return the time of the request: now, unless given; a client's clock may run ahead of ours."""
    last: list[int] = times[-1:].tolist()
    return max([int(time.time()), *last]) if request_time is None else resolve_request_time(last, request_time)
