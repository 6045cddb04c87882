"""A night's results handed on by a real git and a real dvc: what another machine then has."""

import json
import logging
import subprocess

import pytest

from components.errors import StateError
from components.files import write_json
from flows import sharing

pytestmark = pytest.mark.slow  # dvc takes 2 s a command


def run(*command, where):
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout.strip()


def share():
    return sharing.share.fn()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A clone of a bare repository, with a pinned log and a registry; the working directory."""
    monkeypatch.setattr(sharing, "get_run_logger", lambda: logging.getLogger("test"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "night")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "night@localhost")
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", "origin.git", where=tmp_path)
    run("git", "clone", "--quiet", "origin.git", "here", where=tmp_path)
    root = tmp_path / "here"
    monkeypatch.chdir(root)
    run("git", "switch", "--quiet", "--create", "main", where=root)
    run("dvc", "init", "--quiet", where=root)
    run("git", "commit", "--quiet", "--message", "begin", where=root)
    run("git", "push", "--quiet", "--set-upstream", "origin", "main", where=root)
    return root


def make_night(root, content):
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "part.csv").write_text(content)
    run("dvc", "add", "--quiet", "data", where=root)
    decision = {"time": "t", "what": "promoted", "tag": f"hstuflow:{content}", "candidate": {}, "champion": None}
    (root / "registry").mkdir(exist_ok=True)
    write_json(root / "registry" / "champion.json", {"tag": f"hstuflow:{content}"})
    (root / "registry" / "decisions.jsonl").write_text(json.dumps(decision | {"reasons": []}) + "\n")


def test_another_machine_needs_git_and_dvc_pull_only(here, tmp_path):
    run("dvc", "remote", "add", "--quiet", "--default", "storage", str(tmp_path / "remote"), where=here)
    run("git", "commit", "--quiet", "--all", "--message", "remote", where=here)
    make_night(here, "one")
    (here / "notes.txt").write_text("a person's own file")
    run("git", "add", "notes.txt", where=here)
    assert share() == "committed, pushed"
    run("git", "clone", "--quiet", "origin.git", "there", where=tmp_path)
    there = tmp_path / "there"
    run("dvc", "pull", "--quiet", where=there)
    assert (there / "data" / "part.csv").read_text() == "one"
    assert (there / "registry" / "champion.json").read_bytes() == (here / "registry" / "champion.json").read_bytes()
    assert run("git", "log", "-1", "--format=%s", where=there) == "Night: hstuflow:one promoted"
    assert not (there / "notes.txt").exists()
    assert share() == "nothing new to commit, pushed"
    make_night(here, "two")
    assert share() == "committed, pushed"
    run("git", "pull", "--quiet", where=there)
    run("dvc", "pull", "--quiet", where=there)
    assert (there / "data" / "part.csv").read_text() == "two"


def test_without_a_remote_nothing_is_committed(here):
    make_night(here, "one")
    with pytest.raises(StateError, match=r"no default DVC remote.*dvc remote add --default"):
        share()
    assert run("git", "log", "-1", "--format=%s", where=here) == "begin"
