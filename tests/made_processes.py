"""The processes that work in a scratch repository: found by where they are and by the words of their command."""

import time

import psutil


def processes(repository, words=()):
    """The living processes that work in the repository and whose command line has all `words`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(repository.root) and set(words) <= set(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def the_one(repository, *words):
    """The single python process with these words; a shell that runs the same command is not one."""
    [process] = [p for p in processes(repository, words) if p.exe() == psutil.Process().exe()]
    return process


def wait_until_gone(found):
    """Return once all of them have ended by themselves; pytest's timeout ends a test where they do not."""
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found):
        time.sleep(0.1)
