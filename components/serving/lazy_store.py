"""The store of histories, opened by the first who needs it: many services never will.

    lazy = LazyStore("sqlite:///histories.db")
    lazy.open().read("ann", limit=200)

One for all models of a service that follows the champion: histories outlive models.
"""

from __future__ import annotations

import threading
import time

from components.serving.history_store import HistoryStore, StoreError, open_store

_SECONDS_BETWEEN_TRIES = 2.0  # as long as one try to open a locked SQLite file may take


class LazyStore:
    """A store and how to open it. Safe to call from several threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: HistoryStore | None = None
        self._failure: tuple[StoreError | None, float] = (None, 0.0)
        self._opening = threading.Lock()

    def open(self) -> HistoryStore:
        """Return the store; raises StoreError where it cannot be used."""
        with self._opening:
            if self._store is None:
                self._store = self._open()
            return self._store

    def close(self) -> None:
        """Let go of the store, where it was opened."""
        with self._opening:
            if self._store is not None:
                self._store.close()

    def _open(self) -> HistoryStore:
        """Open the store; a failure stands for a moment, or everybody would wait for it one after the other."""
        failure, until = self._failure
        if failure is not None and time.monotonic() < until:
            raise failure
        try:
            return open_store(self._url)
        except StoreError as error:
            self._failure = error, time.monotonic() + _SECONDS_BETWEEN_TRIES
            raise
