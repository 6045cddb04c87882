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
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.model.hstu import HSTU
from components.model.incremental import Past, extend

_BYTES_A_USER, _BYTES_A_TENSOR = 600, 800


def window_start(total: int, max_len: int) -> int:
    """Return the number of the oldest event of the window after `total` events: 0, then multiples of N/4.

    The window has at most N events, and more than N - N/4 as soon as there are that many.
    """
    quarter = max(max_len // 4, 1)
    return -(-max(total - max_len, 0) // quarter) * quarter


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """A window's events, of known items only, and all of its rows that are final: every one but the last."""

    contents_n: np.ndarray  # int64: catalogue rows of trained items, what stands for others
    timestamps_n: np.ndarray  # int64 seconds
    past: Past | None  # None for a single event

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays and tensors, and about what Python needs around them.

        A user of two events takes 4.3 kB in all, of which the numbers are 0.2.
        """
        payload = self.contents_n.nbytes + self.timestamps_n.nbytes + _BYTES_A_USER
        if self.past is None:
            return payload
        return payload + self.past.num_bytes + _BYTES_A_TENSOR * (1 + 2 * len(self.past.keys))

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

    def __init__(self, model: HSTU, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.counts = CacheCounts()
        self.num_bytes = 0
        self.generation = 0  # moves on whenever somebody is forgotten
        self._model = model
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
        model: HSTU | None = None,
        contents_n: np.ndarray | None = None,
    ) -> Tensor:
        """Return (1, D): a window of known items, 1 to N in time order, as its user is seen at `request_time`.

        `generation` is that from before the window was read: what was read before a user was forgotten is not kept.
        `model` is ours with more items, `contents_n` what stands for the rows; without more items neither is needed.
        """
        model, contents_n = model or self._model, rows_n if contents_n is None else contents_n
        with self._lock:
            known = self._windows.get(user_id)
        if known is not None and not known.begins(contents_n, timestamps_n):
            known = None
        self._count(known, len(rows_n))
        start = len(known.past) if known and known.past else 0
        new = rows_n[start:], timestamps_n[start:], np.append(timestamps_n[start + 1 :], request_time)
        with torch.inference_mode():
            y_MD, past = extend(model, known.past if known else None, *map(_to_long, new))
        final = past.without_last() if len(past) > 1 else None  # the last row waits for its next event
        self._keep(user_id, EncodedWindow(contents_n, timestamps_n, final), generation)
        return y_MD[-1:]

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


def _to_long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
