"""DVC's cache and its local remotes as what they are, files: which objects hold a person, and which go with them.

    <cache>/files/md5/<2 hex>/<30 hex>        a file, named by its MD5
    <cache>/files/md5/<2 hex>/<30 hex>.dir    a folder: JSON, [{"md5": ..., "relpath": ...}]

A folder that lists a file which has to go cannot be checked out any more, so it goes too, with all that no other folder
lists: sequences name users in one file, and have their events in another.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from components.errors import StateError
from components.files import read_json
from components.person import Person, holds

_TODO = "See `dvc doctor`"


@dataclass(frozen=True)
class Stores:
    """local: folders of objects, cache first; elsewhere: remotes that are no local folder."""

    local: list[Path]
    elsewhere: list[str]


def find_stores() -> Stores:
    """Ask DVC for its cache and its remotes; none where the working directory is no DVC repository."""
    if not Path(".dvc").is_dir():
        return Stores([], [])
    listed = run_dvc("remote", "list").splitlines()
    remotes = [line.removesuffix("(default)").split(maxsplit=1) for line in listed if line.strip()]
    local = [Path(run_dvc("cache", "dir").strip()), *(Path(url.strip()) for _, url in remotes if "://" not in url)]
    folders = [folder / "files" / "md5" for folder in local]
    return Stores([folder for folder in folders if folder.is_dir()], [name for name, url in remotes if "://" in url])


def find_objects(store: Path, person: Person, keep: Collection[str] = ()) -> list[Path]:
    """Return the objects that hold the person, and those that are of no use without them; `keep` are MD5s to leave."""
    objects = {file.parent.name + file.name: file for file in store.glob("??/*") if file.is_file()}
    folders = {name: _list(file) for name, file in objects.items() if name.endswith(".dir")}
    held = {name for name, file in objects.items() if name not in folders and holds(file, person)} - set(keep)
    broken = {name for name, listed in folders.items() if listed & held}
    still = set().union(*(listed for name, listed in folders.items() if name not in broken))
    useless = set().union(*(folders[name] for name in broken)) - still - set(keep)
    return [objects[name] for name in sorted(held | broken | useless) if name in objects]


def hash_object(file: Path) -> str:
    """Return the name under which DVC keeps a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def run_dvc(*arguments: str) -> str:
    """Run dvc to its end; return what it printed. Raises StateError with its words where it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    wide = {**os.environ, "COLUMNS": "10000"}  # else a long path is on a line of its own
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or "not a word of dvc").splitlines()[-1]
        raise StateError("failed", where=f"dvc {' '.join(arguments)}", observed=words[:200], todo=_TODO)
    return done.stdout


def _list(folder: Path) -> set[str]:
    return {entry["md5"] for entry in read_json(folder)}
