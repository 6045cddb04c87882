"""A disk that fills up in the middle of a step: one sentence, nothing half-written, and the same command afterwards.

The limit on the size of a file stands for it: the system refuses a write in the same way, and no disk has to be filled.
"""

import errno
import os
import resource
import subprocess
import sys

import pytest
from made_repository import COLUMNS, write_table

from components.__main__ import _is_full_disk
from components.files import hash_files

pytestmark = pytest.mark.slow

TRAIN = ("train", "--model", "hstu", "--protocol", "time_split")
OUTS = {"ingest": "data", "train": "artifacts/checkpoints/time_split/hstu", "package": "artifacts/hstuflow.bento"}


@pytest.fixture
def repository(finished, tmp_path):
    """A finished repository whose log, model and package are all to be made anew."""
    repository = finished[0].copy(tmp_path)
    repository.use(train={"hstu": {"seed": 2}})
    return repository


def options_of(step, folder):
    if step == "ingest":
        log, _ = write_table(folder, users=400, seed=2)
        return ["ingest", "--source", "table", "--path", str(log), "--columns", COLUMNS, "--replace"]
    return list(TRAIN) if step == "train" else [step]


def run(repository, words, most_bytes=None):
    def limit():
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.run(
        [sys.executable, "-m", "components", *words],
        cwd=repository.root,
        env=repository.environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


@pytest.mark.parametrize("step", list(OUTS))
def test_a_step_without_room_says_so_and_the_same_command_then_succeeds(repository, tmp_path, step):
    words, out = options_of(step, tmp_path), repository.root / OUTS[step]
    before = hash_files([out])
    failed = run(repository, words, most_bytes=2_000)
    assert failed.returncode == 2, failed.stderr
    assert "error: there is no room on the disk" in failed.stderr, failed.stderr
    assert "Traceback" not in failed.stderr
    assert hash_files([out]) == before
    done = run(repository, words)
    assert done.returncode == 0, done.stderr
    assert step == "package" or hash_files([out]) != before


def test_other_failures_are_not_taken_for_a_full_disk():
    assert not _is_full_disk(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not _is_full_disk(ValueError("no space between words"))


def test_a_library_s_own_words_around_the_system_s_are_recognised():
    assert _is_full_disk(RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"))
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert _is_full_disk(wrapped)
