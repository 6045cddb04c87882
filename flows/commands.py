"""Child processes of a flow: their lines go to the run's log as they come, and they end when the flow does.

    run_command(["dvc", "repro", "--single-item", "train@hstu-time_split"], log=get_run_logger().info)

Every step runs in a process of its own, so that a crash, a memory leak or a kill takes nothing else along.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from components.errors import HstuflowError, SourceUnreachableError

GRACE_SECONDS = 30.0  # for the trainer to save a checkpoint after Ctrl-C

_TAIL_LINES = 40
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_OWN_TIME = re.compile(r"^\d\d:\d\d:\d\d ")  # the run's log writes the time itself
_DVC_SMALL_TALK = (
    "Running stage ",
    "Generating lock file ",
    "Updating lock file ",
    "Use `dvc push` ",
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage ",
)
_DVC_HOLDER = re.compile(r"\(PID (\d+)\): (.*)")  # of dvc/rwlock.py
_DVC_LOCKS = Path(".dvc/tmp/rwlock")
_DVC_VERDICT = "ERROR: failed to reproduce"  # says which stage failed; the line before says why


class CommandFailedError(HstuflowError):
    """A child process failed; the message is its own error line."""

    def __init__(self, name: str, status: int, lines: Sequence[str]) -> None:
        self.status, self.lines = status, list(lines)
        if status == SourceUnreachableError.exit_status:  # "later, the same command" holds for the flow as well
            self.exit_status = status
        last_word = find_error_line(lines) or f"ended with status {status} and without a word"
        super().__init__(f"killed by {signal.Signals(-status).name}" if status < 0 else last_word, where=name)


def run_command(arguments: Sequence[str], *, name: str, log: Callable[[str], object]) -> list[str]:
    """Run a command in the repository root, pass each line it prints to `log`, and return the last lines.

    Raises:
        CommandFailedError: it ended with a status other than 0.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with start(arguments, subprocess.PIPE) as child:
        try:
            for line in _lines(child):
                tail.append(line)
                log(line)
        except BaseException as error:
            # Ctrl-C, a timeout or a cancellation, raised by Prefect in this thread: hand it on and see the child end.
            with ending(child, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM):
                for line in _lines(child):
                    log(line)
            raise
    if child.returncode != 0:
        raise CommandFailedError(name, child.returncode, list(tail))
    return list(tail)


def start(arguments: Sequence[str], output: int | IO[str]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own that ends when this process does; stdout and stderr to `output`."""
    tether = [sys.executable, "-I", str(Path(__file__).with_name("tether.py")), str(os.getpid())]
    return subprocess.Popen(
        [*tether, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=child_environment(),
        start_new_session=True,  # the terminal's Ctrl-C comes to the flow alone, which hands it on once
    )


@contextmanager
def ending(child: subprocess.Popen[str], how: signal.Signals) -> Iterator[None]:
    """Signal the child and its own children, give them GRACE_SECONDS inside the block, then kill what is left."""
    _signal_group(child, how)
    killer = threading.Timer(GRACE_SECONDS, _signal_group, (child, signal.SIGKILL))
    killer.start()
    try:
        yield
    finally:
        killer.cancel()
        _signal_group(child, signal.SIGKILL)


def find_error_line(lines: Sequence[str]) -> str | None:
    """Return the line that says why a command failed: its last `error: ...`, else the last line before dvc's verdict.

    >>> find_error_line(["> python -m components train", "error: no sequences", "ERROR: failed to reproduce 'train'"])
    'no sequences'
    """
    holders = [match for line in lines if (match := _DVC_HOLDER.fullmatch(line.strip()))]
    if holders:
        return _explain_holder(int(holders[-1][1]), holders[-1][2])
    ours = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    others = [line.strip() for line in lines if line.strip() and not line.startswith(_DVC_VERDICT)]
    return ours[-1] if ours else others[-1] if others else None


def _explain_holder(pid: int, command: str) -> str:
    """Say what to do where DVC takes a process for a dvc at work here; it goes by the number alone (dvc/rwlock.py)."""
    import psutil

    try:
        now = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        now = "ended meanwhile"
    if "dvc" in now:
        return f"`{command}` (process {pid}) works here. Wait for its end, then the same command"
    return (
        f"DVC waits for process {pid}, `{command}`, which was killed: that number is another program's now ({now}). "
        f"Remove {_DVC_LOCKS}, then the same command"
    )


def child_environment() -> dict[str, str]:
    """Return this process's environment with what a child needs to be quiet, offline and tied to this flow."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),  # `python`
        "HSTUFLOW_PARENT_PID": str(os.getpid()),  # components/fitting/lifeline.py: no stage outlives it
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # two threads on a busy machine are 3-5x slower than one
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    if child.stdout is None:
        return
    for raw in child.stdout:
        line = _OWN_TIME.sub("", _CONTROL.sub("", raw.rstrip()))
        if line and not line.startswith(_DVC_SMALL_TALK):
            yield line


def _signal_group(child: subprocess.Popen[str], how: signal.Signals) -> None:
    """Signal the child and its own children; nothing happens where they have all ended."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, how)
