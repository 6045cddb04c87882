"""A step of `python -m components` that sends itself kill -9 at a chosen moment of its writing.

    moments = run_step(repository, ["report"])                  # undisturbed: the names of its moments, in order
    run_step(repository, ["report"], kill_at=moments[0])        # dies there

A moment is the instant before a name changes in the repository or in the BentoML store beside it (a rename, the
exchange of two folders, a removal), and the one after all is done. What lies between two such instants is written into
temporaries that no reader looks for, so these are all the states in which kill -9 can leave what a step hands out.
Python's own audit hook announces them: nothing of a step is replaced. Steps run as forks of multiprocessing's fork
server, which has their imports done (Great Expectations' and torch's alone take 10 s), and no threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from made_repository import Repository

END, REMOVAL = "the end", "removal of"
_STEPS = ("ingestion", "validation", "sequences", "training", "evaluation", "report", "packaging", "challenge")
_BESIDE_THEM = ("__main__", "registry", "scoring", "monitoring", "forgetting", "serving.item_map")
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.[0-9a-f]{8}")  # components/files.py


def run_step(repository: Repository, words: Sequence[str], *, kill_at: str | None = None) -> list[str]:
    """Run a step to its end, or to the moment `kill_at` where it comes to that; return the moments that it came to.

    Raises:
        AssertionError: it ended in another way.
    """
    told, printed = repository.root.parent / "moments.jsonl", repository.root.parent / "printed.log"
    environment = repository.environment() | {"TMPDIR": str(repository.root.parent / "tmp")}
    process = _context().Process(target=_run, args=(repository.root, environment, list(words), told, printed, kill_at))
    process.start()
    process.join()
    moments = [json.loads(line) for line in told.read_text().splitlines()]
    expected = -signal.SIGKILL if kill_at in moments else 0
    assert process.exitcode == expected, f"{words}, {kill_at}: {process.exitcode}\n{printed.read_text()}"
    return moments


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"components.{name}" for name in _STEPS + _BESIDE_THEM])
    return context


def _run(
    root: Path, environment: dict[str, str], words: list[str], told: Path, printed: Path, kill_at: str | None
) -> None:
    """Be `python -m components <words>` in `root`."""
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    Path(environment["TMPDIR"]).mkdir(exist_ok=True)
    tempfile.tempdir = None
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    announce = _Moments(root.parent, told, kill_at)
    sys.addaudithook(announce)
    sys.argv = ["python -m components", *words]
    from components.__main__ import main

    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    announce(END, ())


class _Moments:
    """An audit hook that writes down each moment, and kills the process at one."""

    def __init__(self, root: Path, told: Path, kill_at: str | None) -> None:
        self._root, self._kill_at = root, kill_at
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._seen: Counter[str] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        name = self._name(event, arguments)
        if name is None:
            return
        self._seen[name] += 1
        name += f" ({self._seen[name]})" if self._seen[name] > 1 else ""
        os.write(self._told, json.dumps(name).encode() + b"\n")
        if name == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _name(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == END:
            return END
        if event == "ctypes.dlsym":
            return "exchange of folders" if arguments[1] == "renameat2" else None
        if event == "os.rename":
            return self._of("rename to", arguments[1])
        if event == "shutil.rmtree" or (event == "os.remove" and arguments[1] == -1):
            return self._of(REMOVAL, arguments[0])
        return None

    def _of(self, what: str, path: str | os.PathLike[str]) -> str | None:
        """Name what happens to a path; None where nobody could see it, or a temporary of another process goes."""
        place = Path(path).absolute()
        if not place.is_relative_to(self._root):
            return None
        (first, *inside), last = place.relative_to(self._root).parts[:-1] or [""], place.name
        temporary = _TEMPORARY.fullmatch(last)
        hidden = first == "tmp" or any(part.startswith(".") for part in inside)
        if hidden or (temporary and int(temporary[2]) != os.getpid()) or (what == REMOVAL and not place.exists()):
            return None
        return f"{what} {'/'.join([first, *inside, f'what was {temporary[1]}' if temporary else last])}"
