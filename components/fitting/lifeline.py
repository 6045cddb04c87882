"""A stage does not outlive whoever started it.

Killing dvc leaves its child alive (tried: `kill -9` of dvc, and the trainer went on beside the next one). So a thread
looks once a second whether the ancestors are still there, and ends the process when one is not.

dvc runs a command through a shell, which may or may not replace itself by the command; hence the chain: every `sh -c`
above us, the first ancestor that is no such shell, and the process that HSTUFLOW_PARENT_PID names (a flow sets it to
its own id before it starts dvc).
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from components.console import log
from components.errors import SettingsError

if TYPE_CHECKING:
    import psutil

PARENT_VARIABLE = "HSTUFLOW_PARENT_PID"
EXIT_STATUS = 143  # 128 + SIGTERM: what a shell reports for a terminated process

_SECONDS_BETWEEN_LOOKS = 1.0
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"}


def end_with_ancestors() -> None:
    """Start the watching thread; once an ancestor is gone the process exits at once with status 143.

    Safe at any moment, because every file is written beside its place and renamed; locks go with the process.
    """
    watched = find_ancestors()
    threading.Thread(target=_watch, args=(watched,), name="lifeline", daemon=True).start()


def find_ancestors() -> list[psutil.Process]:
    """Return the processes this one must not outlive, nearest first.

    Raises:
        SettingsError: HSTUFLOW_PARENT_PID is not the id of a living process.
    """
    import psutil  # not on the bare GPU machine

    watched = []
    process = psutil.Process().parent()
    while process is not None:
        watched.append(process)
        process = process.parent() if is_shell_command(_command_line(process)) else None
    flow = os.environ.get(PARENT_VARIABLE)
    if flow:
        watched.append(_find_flow(flow))
    return watched


def is_shell_command(command_line: list[str]) -> bool:
    """Whether this is a shell that runs one command.

    >>> is_shell_command(["/bin/bash", "--noprofile", "-c", "python -m components train"]), is_shell_command(["bash"])
    (True, False)
    """
    name = Path(command_line[0]).name.lstrip("-") if command_line else ""
    options = [word for word in command_line[1:] if word.startswith("-") and not word.startswith("--")]
    return name in _SHELLS and any("c" in word for word in options)


def is_gone(process: psutil.Process) -> bool:
    """Whether the process has ended; its pid given to another one, or a zombie nobody has waited for, is gone too."""
    import psutil

    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _watch(watched: list[psutil.Process]) -> None:
    while True:
        gone = next((process for process in watched if is_gone(process)), None)
        if gone is not None:
            try:
                log.error("process %d, which started this one, is gone: ending; the same command resumes", gone.pid)
            finally:
                os._exit(EXIT_STATUS)  # not sys.exit: that would end this thread only
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _find_flow(pid: str) -> psutil.Process:
    import psutil

    try:
        return psutil.Process(int(pid))
    except (ValueError, psutil.NoSuchProcess):  # it ended while this process was starting, or it never was
        raise SettingsError(
            "names no living process", where=PARENT_VARIABLE, observed=pid, todo="Start the flow again, or unset it"
        ) from None


def _command_line(process: psutil.Process) -> list[str]:
    import psutil

    try:
        words: list[str] = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
    return words
