"""Run a command that ends when its starter does, kill -9 included (Linux; elsewhere it just runs the command).

    python -I flows/tether.py <starter's pid> <command> [argument ...]

A program of its own instead of `preexec_fn`, which may deadlock in a process with threads, and Prefect has many.
The kernel sends the signal when the *thread* that forked ends: start the command from the thread that waits for it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec


def tether(starter: int) -> None:
    """Have the kernel kill this process when its parent ends; exit at once where `starter` has ended already.

    A shell starts what it runs in the background with SIGINT ignored, and children inherit that; here it means stop.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:
        sys.exit(f"error: the process that started this one ({starter}) has ended")


if __name__ == "__main__":
    tether(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell on purpose
