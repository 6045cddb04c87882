"""Who works here: locks that go with their process, kill -9 included, so that there is nothing to clean up.

    with held(registry / ".lock", lambda: "another promotion"): ...     # a second one says whom it waits for, and waits
    with alone(artifacts, "the flow run blue-fox"): ...                 # one at a time changes the log

Two at once would take the log away under each other's hands: a stage would read one month of the old log and the next
of the new one. Held by the training flow for the whole run, by `ingest` and by `forget-user`; what a flow starts works
under the flow's. The stages by themselves, as in `dvc repro`, have DVC's locks.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.console import log
from components.files import read_json, write_json
from components.fitting.lifeline import PARENT_VARIABLE

_POLL_SECONDS = 0.2


@contextmanager
def held(lock: Path, holder: Callable[[], str], say: Callable[[str], object] = log.info) -> Iterator[None]:
    """Hold a lock; where another process does, say whom we wait for, and wait."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    ours = FileLock(lock, poll_interval=_POLL_SECONDS)
    try:
        ours.acquire(timeout=0)
    except Timeout:
        say(f"waiting for {holder()}")
        ours.acquire()
    try:
        yield
    finally:
        ours.release()


@contextmanager
def alone(artifacts: Path, who: str, say: Callable[[str], object] = log.info) -> Iterator[None]:
    """Be the only one that changes the log, or a child of the only one; `who` is what others are told."""
    note = artifacts / ".run.json"
    if os.environ.get(PARENT_VARIABLE) == str(_read(note).get("pid")):
        yield
        return
    with held(artifacts / ".run.lock", lambda: _describe(_read(note)), say):
        since = dt.datetime.now(dt.UTC).isoformat(sep=" ", timespec="seconds")
        write_json(note, {"who": who, "pid": os.getpid(), "since": since})
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def _describe(note: dict[str, Any]) -> str:
    if not note:  # it has just begun, or just ended
        return "another run in this repository"
    return f"{note['who']} (process {note['pid']}, since {note['since']}), which works in this repository"


def _read(note: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(note)
    except FileNotFoundError:
        return {}
    return content
