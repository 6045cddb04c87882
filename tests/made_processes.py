"""The processes that work in a scratch repository: found by where they are and by the words of their command."""

import time

import psutil

from components.fitting.lifeline import is_gone


def processes(repository, words=(), executable=None):
    """The living processes that work in the repository and whose command line has all `words`."""
    found = []
    for process in psutil.process_iter():
        try:
            is_here = process.cwd() == str(repository.root) and set(words) <= set(process.cmdline())
            if is_here and (executable is None or process.exe() == executable):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def pythons(repository, *words):
    """The python processes with these words; a shell that runs the same command is none."""
    return processes(repository, words, psutil.Process().exe())


def the_one(repository, *words):
    """The single python process with these words."""
    [process] = pythons(repository, *words)
    return process


def wait_until_gone(found):
    """Return once all of them have ended by themselves; pytest's timeout ends a test where they do not."""
    while not all(map(is_gone, found)):
        time.sleep(0.1)
