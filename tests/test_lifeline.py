"""Whose end ends a trainer: every `sh -c` above it, the first ancestor that is none, and the flow."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from components.errors import SettingsError
from components.fitting.lifeline import PARENT_VARIABLE, find_ancestors, is_gone, is_shell_command

ROOT = Path(__file__).parent.parent
SHOW = "from components.fitting.lifeline import find_ancestors; print(*(p.pid for p in find_ancestors()))"


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["sh", "-c", "python -m components train"], True),
        (["/bin/bash", "--noprofile", "--norc", "-c", "x"], True),
        (["bash", "-euo", "pipefail", "-c", "x"], True),
        (["-bash"], False),
        (["bash", "--rcfile", "x"], False),
        (["dvc", "-c", "x"], False),
        ([], False),
    ],
)
def test_a_shell_is_passed_over_only_when_it_runs_one_command(command_line, expected):
    assert is_shell_command(command_line) is expected


def ancestors_of(command, **environment):
    """Run a command that prints the ancestors its Python watches; return them and the command's own process id."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, "SHOW": SHOW, "PY": sys.executable, **environment},
    ) as process:
        printed, _ = process.communicate()
        assert process.returncode == 0
        return [int(pid) for pid in printed.split()], process.pid


def test_a_direct_parent_is_watched_and_nobody_above_it():
    assert ancestors_of([sys.executable, "-c", SHOW])[0] == [os.getpid()]


def test_shells_between_are_watched_together_with_whoever_started_them():
    nested = """sh -c '"$PY" -c "$SHOW"; true'; true"""  # `; true` keeps a shell from replacing itself
    watched, outer = ancestors_of(["sh", "-c", nested])
    assert len(watched) == 3
    assert watched[1:] == [outer, os.getpid()]


def test_the_flow_that_the_environment_names_is_watched_too():
    watched, _ = ancestors_of([sys.executable, "-c", SHOW], **{PARENT_VARIABLE: "1"})
    assert watched == [os.getpid(), 1]


@pytest.mark.parametrize("value", ["nonsense", "999999999", "-1"])
def test_a_flow_that_has_ended_before_it_could_be_watched_is_an_error(monkeypatch, value):
    monkeypatch.setenv(PARENT_VARIABLE, value)
    with pytest.raises(SettingsError, match=f"HSTUFLOW_PARENT_PID: names no living process: observed {value}"):
        find_ancestors()


def test_an_ended_process_is_gone_even_before_anybody_waited_for_it():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert not is_gone(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert is_gone(process)
    child.communicate()
    assert is_gone(process)
