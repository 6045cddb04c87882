"""Ctrl-C and termination as one exception, so that a training run ends tidily wherever it happens to be."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(SystemExit):
    """Somebody asked this process to end; `code` is what a shell expects: 130 for Ctrl-C, 143 for SIGTERM."""


@contextmanager
def raising_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into TrainingInterrupted while inside; has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, _raise) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise TrainingInterrupted(128 + number)
