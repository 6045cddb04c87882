"""The checkpoint of another git revision or DVC experiment, out of DVC's cache: nothing is checked out or trained.

git says which commit is meant and which model it packages (package.model of its params.yaml); `dvc get` takes the
folder that its dvc.lock pins from the cache, or from a remote where there is one. Commands run in the working
directory, the repository's root.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.console import log
from components.errors import StateError


def find_commit(revision: str) -> str | None:
    """Return the hash of the commit that a branch, a tag, HEAD~1 or a DVC experiment names; None where none has it.

    Of several experiments of one name the newest is meant. Outside git there is none.
    """
    found = _run("git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode != 0:
        pattern = f"refs/exps/*/*/{revision}"
        newest = ("--sort=-committerdate", "--count=1", "--format=%(objectname)")
        found = _run("git", "for-each-ref", *newest, pattern)
    return found.stdout.strip() or None


def fetch_checkpoint(commit: str, revision: str, *, checkpoints: Path, scratch: Path) -> Path:
    """Fetch the checkpoint of the model that `commit` packages into `scratch`; return its folder.

    Raises:
        StateError: the revision has no such checkpoint, or neither cache nor remote holds it.
    """
    wanted, folder = checkpoints / _packaged_model(commit, revision), scratch / commit
    if folder.is_dir():
        return folder
    log.info("fetching %s of %s with `dvc get`", wanted, revision)
    command = ("get", ".", wanted.as_posix(), "--rev", commit, "--out", str(folder), "--quiet")
    done = _run(sys.executable, "-m", "dvc", *command)
    if done.returncode != 0:
        raise StateError(
            f"neither DVC's cache nor a remote holds {wanted} of this revision",
            where=revision,
            observed=_find_error(done.stderr),
            todo=f"Run `dvc pull` where a remote has it; else train it again: `git checkout {revision}`, `dvc repro`",
        )
    return folder


def _packaged_model(commit: str, revision: str) -> str:
    """Return package.model of the revision's own params.yaml."""
    shown = _run("git", "show", f"{commit}:./params.yaml")
    try:
        return str(YAML(typ="safe").load(shown.stdout)["package"]["model"])
    except (YAMLError, LookupError, TypeError):  # TypeError: an empty file
        raise StateError(
            "does not say which model it packages",
            where=f"{revision}:params.yaml",
            expected="package.model",
            todo="Name the checkpoint's folder instead",
        ) from None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; one that is not installed fails as if it had said so itself."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", f"ERROR: {error}")


def _find_error(stderr: str) -> str:
    """Return the last line that begins with ERROR, which is what dvc has to say."""
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return lines[-1].removeprefix("ERROR: ")[:200] if lines else "not a word of dvc"
