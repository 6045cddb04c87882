"""Whose turn it is: one request computes at a time, and none that has got its 504 already.

    with turn:
        y_1D = recommender.encode(...)

What waits behind a request whose client was told to try again would be late as well, and so on: a service would never
get rid of a queue that it once had.
"""

from __future__ import annotations

import math
import threading
import time
from contextvars import ContextVar

from components.errors import InputError

MUST_END: ContextVar[float] = ContextVar("must_end", default=math.inf)
"""When the request at hand is answered with 504, in seconds of time.monotonic()."""


class TooLongError(InputError):
    """The request took longer than a request may."""

    http_status = 504


class Turn:
    """A lock for threads that answer requests. Raises TooLongError where the turn comes after the request's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Wait for the turn."""
        self._lock.acquire()
        if time.monotonic() > MUST_END.get():
            self._lock.release()
            raise TooLongError("the request took too long", todo="Try again")

    def __exit__(self, *_: object) -> None:
        """Pass it on."""
        self._lock.release()
