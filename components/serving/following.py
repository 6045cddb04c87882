"""A service that follows the champion: who looks at registry/champion.json, and what becomes of what it names.

    follower = Follower(Path("registry/champion.json"), take=take, state_of=state_of)
    follower.look()      # at once, so that the first request finds the champion
    follower.start()     # then once a second, until close()

`take` loads a model by its tag and serves it, or raises and leaves the served one alone: a pointer that is damaged, or
that names a model which is missing, broken, or needs other code, changes nothing. Such a failure is a line in the log,
a metric, and stands in GET /info; it is tried again when the pointer or the stored model changes, and once a minute.
The content of the pointer counts, not its time: git and NFS may bring another content with an older time.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from components.errors import HstuflowError, StateError
from components.serving.watching import FAILED_SWAPS, SWAPS

SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_TRIES = 60.0  # of what failed and did not change: memory may have been short
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]*:[a-z0-9][a-z0-9._-]*")  # BentoML's, both parts

log = logging.getLogger("hstuflow.service")


class Follower:
    """Looks at the pointer, in a thread of its own once started.

    `take(tag)` serves the model of that tag and returns whether it was another one before; it raises where it cannot.
    `state_of(tag)` is something that changes when the stored model does: None where there is none.
    """

    def __init__(self, pointer: Path, *, take: Callable[[str], bool], state_of: Callable[[str], object]) -> None:
        self.pointer = pointer
        self.tag: str | None = None  # what the pointer names, as far as it can be read
        self.refused: str | None = None  # why that is not what is served
        self._take, self._state_of = take, state_of
        self._content: bytes | None = None
        self._tried: object = None
        self._try_again = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Read the pointer once, and have the model that it names taken unless that is done, or was tried."""
        content = self._read()
        if content == self._content and self.refused is None:
            return
        tag = _find_tag(content)
        trial = content, None if tag is None else self._state_of(tag)
        if trial == self._tried and time.monotonic() < self._try_again:
            return
        self._tried, self._try_again = trial, time.monotonic() + _SECONDS_BETWEEN_TRIES
        self._content, self.tag = content, tag
        self._try(tag)

    def start(self) -> None:
        """Look once a second from now on."""
        self._thread = threading.Thread(target=self._keep_looking, name="champion", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no longer."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=SECONDS_BETWEEN_LOOKS)

    def _keep_looking(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self.look()

    def _read(self) -> bytes:
        try:
            return self.pointer.read_bytes()
        except OSError:  # none was promoted so far, or its disk is away: both may pass
            return b""

    def _try(self, tag: str | None) -> None:
        try:
            is_other = self._take(_require(tag, self._content))
        except HstuflowError as error:
            self._refuse(f"{tag or 'the pointer'}: {error.what}", str(error))
        except Exception:  # noqa: BLE001 - a model of another version may do anything to this code; the thread goes on
            self._refuse(f"{tag}: it cannot be loaded", f"{tag}: it cannot be loaded", exc_info=True)
        else:
            SWAPS.inc(is_other)
            self.refused = None

    def _refuse(self, short: str, sentence: str, *, exc_info: bool = False) -> None:
        """Note a failure; it is logged when it begins only. `short`: without paths, for clients."""
        FAILED_SWAPS.inc()
        if short != self.refused:
            log.error("the champion is not served, the model before it is: %s", sentence, exc_info=exc_info)
        self.refused = short


def _find_tag(content: bytes) -> str | None:
    """Return the `model_tag` in a pointer's content, None where it has none."""
    try:
        pointer = json.loads(content)
    except ValueError:
        return None
    tag = pointer.get("model_tag") if isinstance(pointer, dict) else None
    return tag if isinstance(tag, str) and _TAG.fullmatch(tag) else None


def _require(tag: str | None, content: bytes | None) -> str:
    """Return the tag, or raise StateError that says why the pointer names none."""
    if tag is not None:
        return tag
    if not content:
        raise StateError("there is no champion", todo="`python -m components promote` makes one")
    raise StateError(
        "the pointer is damaged",
        observed=repr(content[:60]),
        expected='{"model_tag": "<name>:<version>", ...}',
        todo="`git checkout HEAD registry/champion.json`, or promote again",
    )
