"""What monitoring needs of each recommendation, as lines of JSON in files by day (HSTUFLOW_REQUESTS=<folder>).

    <folder>/2026-11-29/143005-4711-9f3c01ab.jsonl       day and time (UTC) of the file's first row, process, chance

    {"time": 1764426605.12, "request_id": "7f...", "route": "/recommend", "user_id": "ann", "request_time": 1764426605,
     "num_events": 31, "num_read": 31, "num_unknown": 1, "last_item": 50, "source": "model", "k": 10,
     "items": [127, 222], "scores": [0.41, 0.4], "model": "hstuflow:0f..."}

num_events     events (of a stored history: of all that is stored), of which the model was given the latest num_read
num_unknown    of these, items that the model does not know; last_item: the latest that it knows, null without one
items, scores  the first MAX_ITEMS; the score of a popular item is null
user_id        null where the history came with the request, or the user was forgotten before the row was written

A request hands its row over and goes on; a thread of the log's own turns it into text and writes. What comes faster
than that is dropped and counted. A file is only ever appended to by the process that made it, a batch of whole lines a
write, so that after a kill -9 at most its last line is torn; the reader (components/drift/requests.py) leaves
such a line out.
Forgetting a user rewrites the files that hold rows of theirs, other processes' files too: whoever writes or rewrites a
file holds its lock, and a writer whose file was replaced goes on in a new one. Rows that are in no file yet, of
requests in flight or in the queue of any process, are caught by a mark:

    <folder>/.forgotten       a line each: when, in ns of the monotonic clock, and SHA-256 of that and the user's id

It is made before any file is looked at, and a writer looks for it with its own file locked. So a batch is either in the
file before that is rewritten, or its writer knows the mark, and leaves the id out of rows whose requests began before.
The monotonic clock is one for all processes under a kernel, containers too, and is never set back; hosts cannot share a
folder. The next mark that is an hour younger takes a mark's place: a request ends after 10 s, its row waits 0.2 s. One
that seems to lie ahead is from before a restart of the host and says nothing.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from components.errors import HstuflowError
from components.files import replacing_file
from components.serving.watching import LOGGED, REQUEST_ID

if TYPE_CHECKING:
    from components.recommender import Answer
    from components.serving.engine import Reading

MAX_ITEMS = 100  # of an answer; monitoring looks at the first k that a person sees
MAX_WAITING = 2_000  # rows not written yet: 20 MB at most, and 20 s of a disk that stands still at 100 requests/s
MAX_FILE_BYTES = 64 << 20
_BATCH = 500
_SECONDS_BETWEEN_WRITES = 0.2  # rows of so long are written together
_MARKS = ".forgotten"
_MARK = re.compile(rb"^(\d{1,19}) ([0-9a-f]{64})$", re.MULTILINE)
_HOUR = 3_600 * 10**9  # ns

log = logging.getLogger("hstuflow.service")

Row = dict[str, Any]
Mark = tuple[int, str]  # when somebody was forgotten, and whom: `_hash`


class RequestLogError(HstuflowError):
    """The log of requests cannot be changed now."""

    http_status = 503


@dataclass(frozen=True)
class _File:
    """The file that is written to, of one day."""

    path: Path
    descriptor: int
    day: str


class RequestLog:
    """Writes rows in a thread of its own. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: queue.Queue[tuple[Row, int]] = queue.Queue(MAX_WAITING)
        self._marks: list[Mark] = []
        self._marks_read: tuple[int, int, int] | None = None  # of which file: two in a row are two inodes
        self._writing = threading.Lock()
        self._file: _File | None = None
        self._is_failing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="requests", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Now, for `add`: nanoseconds of the clock that all processes of a host share."""
        return time.monotonic_ns()

    def add(self, row: Row, generation: int) -> None:
        """Hand a row over; `generation` is that from before its user's history was read.

        Where the user was forgotten since, by any process, the row is kept without the id.
        """
        try:
            self._rows.put_nowait((row, generation))
        except queue.Full:
            LOGGED.labels("dropped").inc()

    def forget(self, user_id: str) -> int:
        """Delete the rows of a user in all files of the folder; return how many there were.

        Raises:
            RequestLogError: some may be left; try again.
        """
        try:
            with self._writing:
                self._write_waiting()
                _mark(self.folder, user_id)
                return sum(_rewrite(file, user_id) for file in sorted(self.folder.glob("*/*.jsonl")))
        except OSError as error:
            log.warning("rows of a forgotten user are left in the log of requests: %s", error)
            raise RequestLogError("rows of the user are left in the log of requests", todo="Try again") from error

    def close(self) -> None:
        """Write what waits and let go of the file."""
        self._ended.set()
        self._thread.join()
        with self._writing:
            self._write_waiting()
            self._leave_file()

    def _keep_writing(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_WRITES):
            with self._writing:
                self._write_waiting()

    def _write_waiting(self) -> None:
        """Write all rows that wait; a failure is counted, logged when it begins, and tried again with the next rows."""
        while rows := _take(self._rows, _BATCH):
            try:
                self._write(rows)
            except OSError as error:  # a full disk, a folder that is away: people are served all the same
                LOGGED.labels("failed").inc(len(rows))
                if not self._is_failing:
                    log.warning("requests are not logged: %s", error)
                self._is_failing = True
                self._leave_file()
            else:
                LOGGED.labels("written").inc(len(rows))
                self._is_failing = False

    def _write(self, rows: Sequence[tuple[Row, int]]) -> None:
        with self._locked_file(rows[0][0]["time"]) as descriptor:
            self._leave_out_forgotten(rows)
            lines = b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row, _ in rows)
            view = memoryview(lines)
            while view:  # a write may be cut short by a signal or a quota
                view = view[os.write(descriptor, view) :]

    def _leave_out_forgotten(self, rows: Sequence[tuple[Row, int]]) -> None:
        """Take the id out of rows whose user was forgotten after their request began; the file is locked."""
        path = self.folder / _MARKS
        with suppress(FileNotFoundError):
            found = path.stat()
            if (key := (found.st_ino, found.st_mtime_ns, found.st_size)) != self._marks_read:
                self._marks, self._marks_read = _parse_marks(path.read_bytes()), key
        first = min(began for _, began in rows)
        marks = [mark for mark in self._marks if first <= mark[0]]  # of most batches none
        for row, began in rows if marks else ():
            user_id = row["user_id"]
            if user_id is not None and any(began <= when and _hash(when, user_id) == who for when, who in marks):
                row["user_id"] = None

    @contextmanager
    def _locked_file(self, when: float) -> Iterator[int]:
        """Yield the file of a moment, locked, and really the one that its path names."""
        file = self._open(when)
        fcntl.flock(file.descriptor, fcntl.LOCK_EX)
        if not _is_named(file.descriptor, file.path):  # somebody was forgotten through another process
            self._leave_file()
            file = self._open(when)
            fcntl.flock(file.descriptor, fcntl.LOCK_EX)
        try:
            yield file.descriptor
        finally:
            fcntl.flock(file.descriptor, fcntl.LOCK_UN)

    def _open(self, when: float) -> _File:
        moment = dt.datetime.fromtimestamp(when, dt.UTC)
        day = f"{moment:%Y-%m-%d}"
        if self._file is not None and (
            self._file.day != day or os.fstat(self._file.descriptor).st_size > MAX_FILE_BYTES
        ):
            self._leave_file()
        if self._file is None:
            path = self.folder / day / f"{moment:%H%M%S}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _File(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600), day)
        return self._file

    def _leave_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # a quota, a failing disk; closed it is even so (close(2))
                os.close(file.descriptor)


def _take(rows: queue.Queue[tuple[Row, int]], most: int) -> list[tuple[Row, int]]:
    taken: list[tuple[Row, int]] = []
    while len(taken) < most:
        try:
            taken.append(rows.get_nowait())
        except queue.Empty:
            break
    return taken


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that its path names still."""
    try:
        there = path.stat()
    except FileNotFoundError:  # a day that was deleted as a whole
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _rewrite(path: Path, user_id: str) -> int:
    """Replace a file by one without the rows of a user, where it has any; return how many that were."""
    needle = b'"user_id":' + json.dumps(user_id).encode()  # quotes inside a value are escaped
    with _locked(path) as file:
        lines = file.readlines() if file else []
        kept = [line for line in lines if needle not in line and line.endswith(b"\n")]
        if len(kept) == len(lines):
            return 0
        _replace(path, b"".join(kept))
    return len(lines) - len(kept)


def _mark(folder: Path, user_id: str) -> None:
    """Let all writers of a folder know that a user is forgotten; marks that nobody needs go."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _MARKS
    with _locked(path, "a+b"):
        now = time.monotonic_ns()
        marks = [mark for mark in _parse_marks(path.read_bytes()) if mark[0] > now - _HOUR]
        marks.append((now, _hash(now, user_id)))
        _replace(path, "".join(f"{when} {who}\n" for when, who in marks).encode())


def _parse_marks(content: bytes) -> list[Mark]:
    """Return the marks, without those from before a restart of the host."""
    now = time.monotonic_ns()
    marks = [(int(when), who.decode()) for when, who in _MARK.findall(content)]
    return [mark for mark in marks if mark[0] <= now]


def _hash(when: int, user_id: str) -> str:
    return hashlib.sha256(f"{when} {json.dumps(user_id)}".encode()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Replace a file by one that the owner of its folder may read, whoever forgets (maybe root), and nobody else."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
        owner = path.parent.stat()
        with suppress(OSError):
            os.chown(temporary, owner.st_uid, owner.st_gid)
    path.chmod(0o600)


@contextmanager
def _locked(path: Path, mode: str = "rb") -> Iterator[IO[bytes] | None]:
    """Yield the file that a path names, locked; None where it is gone."""
    while True:
        try:
            file = path.open(mode)
        except FileNotFoundError:
            yield None
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file.fileno(), path):  # else somebody else was forgotten just now
                yield file
                return


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, without a last line that a kill has torn."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def describe(route: str, user_id: str | None, k: int, glance: Reading, answer: Answer, tag: str) -> Row:
    """Return the row of an answer; see the head of this file."""
    extent, first = glance.extent, answer.items[:MAX_ITEMS]
    return {
        "time": round(time.time(), 3),
        "request_id": REQUEST_ID.get(),
        "route": route,
        "user_id": user_id,
        "request_time": glance.request_time,
        "num_events": extent.num_events,
        "num_read": extent.num_read,
        "num_unknown": extent.num_unknown,
        "last_item": glance.recommender.catalogue.item_ids[extent.last_row] if extent.last_row >= 0 else None,
        "source": answer.source,
        "k": k,
        "items": [item.item_id for item in first],
        "scores": [None if item.score is None else round(item.score, 5) for item in first],
        "model": tag,
    }
