"""What the service remembers of users between requests: their latest window, encoded but for its last event.

    generation = states.generation                     # before the history is read
    y_1D = states.encode(user_id, rows, timestamps, request_time, generation=generation)

An arriving event makes the one before it final and costs two rows (components/model/incremental.py). Positions count
from the window's oldest event, so sliding it by one would change every row. A window therefore begins at a multiple of
N/4: it grows from 3N/4 to N events, then loses its oldest quarter and is encoded again, once in N/4 events. Where it
begins depends on the number of events only, so an answer depends by no more than rounding on what is in the cache.
A row that is not a trained item's may come to mean another item, when items are inserted and withdrawn in a running
service. So what was kept is compared by `contents_n`, in which such a row's place is taken by what stands for its item
and the vector that this has: no call that clears the cache can be forgotten, or come too early.
Shapes: n events of a window, N max_len, D width.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from components.model.incremental import Encoder, Past
from components.serving.history_store import History, StoredEvent, arrived

if TYPE_CHECKING:
    from components.recommender import Recommender

_BYTES_A_USER, _BYTES_A_HISTORY, _BYTES_A_TENSOR = 1000, 1600, 800


def window_start(total: int, max_len: int) -> int:
    """Return the number of the oldest event of the window after `total` events: 0, then multiples of N/4.

    The window has at most N events, and more than N - N/4 as soon as there are that many.
    """
    quarter = max(max_len // 4, 1)
    return -(-max(total - max_len, 0) // quarter) * quarter


@dataclass(frozen=True, eq=False)
class KnownHistory:
    """A stored history as catalogue rows, so that the next request reads and looks up only what came in since.

    Reading 200 events and finding their rows takes .5 ms, and of a long history all that was ever seen .5 ms for 600
    events and 13 for 9,000; where nothing is new it is .04.
    """

    rows_n: np.ndarray  # int64 catalogue rows of the latest events, N at most; -1 for unknown items
    timestamps_n: np.ndarray  # int64 seconds
    older_rows_S: np.ndarray  # what else the user had, before these or among them
    last: tuple[StoredEvent, ...]  # the latest event, none of an empty history
    total: int  # how many events are stored
    version: str
    recommender: weakref.ref[Recommender]  # whose rows these are; to a replaced model this is the last reference

    @property
    def arrived(self) -> int:
        """How many events came in so far, those that were dropped since included."""
        return arrived(self.version)

    @property
    def seen_rows(self) -> np.ndarray:
        """Rows of all that the user had, however old; some may be there twice."""
        return np.concatenate([self.rows_n, self.older_rows_S]) if len(self.older_rows_S) else self.rows_n

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays, and about what Python needs around them."""
        return self.rows_n.nbytes + self.timestamps_n.nbytes + self.older_rows_S.nbytes + _BYTES_A_HISTORY

    def grown(self, rest: History, rows_m: np.ndarray, timestamps_m: np.ndarray, max_len: int) -> KnownHistory | None:
        """Return the same with the rest of the history, whose rows these are; itself where nothing came in.

        None where the rest does not continue it, or events were dropped, of which nobody knows what else they were.
        """
        if rest.events[:1] != self.last:
            return None
        if rest.version == self.version:
            return self
        if rest.total < rest.arrived:
            return None
        rows_n = np.concatenate([self.rows_n, rows_m[1:]])
        timestamps_n = np.concatenate([self.timestamps_n, timestamps_m[1:]])
        leaving = np.setdiff1d(rows_n[:-max_len], self.older_rows_S)
        return replace(
            self,
            rows_n=rows_n[-max_len:],
            timestamps_n=timestamps_n[-max_len:],
            older_rows_S=np.concatenate([self.older_rows_S, leaving]),
            last=rest.events[-1:],
            total=rest.total,
            version=rest.version,
        )


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """A window's events, of known items only, and all of its rows that are final: every one but the last."""

    contents_n: np.ndarray  # int64: catalogue rows of trained items, what stands for others
    timestamps_n: np.ndarray  # int64 seconds
    past: Past | None  # None for a single event
    history: KnownHistory | None = None  # that it was taken from

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays and tensors, and about what Python needs around them.

        A user of two events takes 8.3 kB in all (2 layers of D = 50), of which the numbers are 1.8.
        """
        payload = self.contents_n.nbytes + self.timestamps_n.nbytes + _BYTES_A_USER
        payload += self.history.num_bytes if self.history else 0
        if self.past is None:
            return payload
        return payload + self.past.num_bytes + _BYTES_A_TENSOR * (1 + 2 * len(self.past.layers))

    def begins(self, contents_n: np.ndarray, timestamps_n: np.ndarray) -> bool:
        """Whether a window starts with exactly these events."""
        n = len(self.contents_n)
        return np.array_equal(self.contents_n, contents_n[:n]) and np.array_equal(self.timestamps_n, timestamps_n[:n])


@dataclass
class CacheCounts:
    """What became of the requests: found as it was, extended by new events, encoded anew; and states given up."""

    hits: int = 0
    extended: int = 0
    encoded: int = 0
    evicted: int = 0


class UserStates:
    """Encoded windows of the users seen last, in bounded memory. Safe to call from several threads."""

    def __init__(self, encoder: Encoder, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.counts = CacheCounts()
        self.num_bytes = 0
        self.generation = 0  # moves on whenever somebody is forgotten
        self._encoder = encoder
        self._windows: OrderedDict[str, EncodedWindow] = OrderedDict()  # the one used last at the end
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._windows)

    def encode(
        self,
        user_id: str,
        rows_n: np.ndarray,
        timestamps_n: np.ndarray,
        request_time: int,
        *,
        generation: int,
        encoder: Encoder | None = None,
        contents_n: np.ndarray | None = None,
        history: KnownHistory | None = None,
    ) -> Tensor:
        """Return (1, D): a window of known items, 1 to N in time order, as its user is seen at `request_time`.

        `generation` is that from before the window was read: what was read before a user was forgotten is not kept.
        `encoder` is ours with more items, `contents_n` what stands for the rows; without more items neither is needed.
        `history`, of which this is the window, is kept beside it.
        """
        encoder, contents_n = encoder or self._encoder, rows_n if contents_n is None else contents_n
        with self._lock:
            known = self._windows.get(user_id)
        if known is not None and not known.begins(contents_n, timestamps_n):
            known = None
        self._count(known, len(rows_n))
        y_1D, past = encoder.resume(known.past if known else None, rows_n, timestamps_n, request_time)
        final = past.without_last() if len(past) > 1 else None  # the last row waits for its next event
        self._keep(user_id, EncodedWindow(contents_n, timestamps_n, final, history), generation)
        return y_1D

    def recall(self, user_id: str, recommender: Recommender) -> KnownHistory | None:
        """Return what was kept of a user's stored history, where its rows are this recommender's."""
        with self._lock:
            window = self._windows.get(user_id)
        history = window.history if window else None
        return history if history is not None and history.recommender() is recommender else None

    def forget(self, user_id: str) -> bool:
        """Drop what is kept of a user, and what requests in flight are about to keep; whether there was anything."""
        with self._lock:
            self.generation += 1
        return self.drop(user_id)

    def drop(self, user_id: str) -> bool:
        """Drop what is kept of a user; whether there was anything."""
        with self._lock:
            window = self._windows.pop(user_id, None)
            self.num_bytes -= window.num_bytes if window else 0
        return window is not None

    def _count(self, known: EncodedWindow | None, length: int) -> None:
        if known is None:
            self.counts.encoded += 1
        elif len(known.contents_n) == length:
            self.counts.hits += 1
        else:
            self.counts.extended += 1

    def _keep(self, user_id: str, window: EncodedWindow, generation: int) -> None:
        with self._lock:
            if generation != self.generation:
                return
            before = self._windows.pop(user_id, None)
            self.num_bytes += window.num_bytes - (before.num_bytes if before else 0)
            self._windows[user_id] = window
            while self.num_bytes > self.max_bytes:
                _, oldest = self._windows.popitem(last=False)
                self.num_bytes -= oldest.num_bytes
                self.counts.evicted += 1
