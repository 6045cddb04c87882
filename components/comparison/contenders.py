"""From what a person types to a checkpoint folder: who is to be compared.

    artifacts/checkpoints/time_split/hstu   a folder that exists
    hstuflow:latest                         a tag of the BentoML store (it has a colon): a Bento's, or a model's
    popularity_recent                       a baseline
    HEAD~1                                  a git revision or DVC experiment, whose checkpoint DVC's cache holds

The first of these that fits is meant; names separated by commas are one side, checkpoints of several seeds. Neither
BentoML nor DVC is imported: a store is folders (components/bento_store.py), and `dvc get` runs in a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.baselines import BASELINES
from components.bento_store import find_tagged
from components.comparison.revisions import fetch_checkpoint, find_commit
from components.errors import InputError
from components.files import hash_files, reading


@dataclass(frozen=True)
class Contender:
    """A model under the name it was asked for: its checkpoint's folder, or None for a baseline."""

    name: str
    folder: Path | None


def find_side(names: str, *, checkpoints: Path, scratch: Path) -> list[Contender]:
    """Find the contenders named in `names`, separated by commas; a baseline stands alone.

    A revision's checkpoint is fetched into `scratch`; `checkpoints` is the folder that holds one folder a model.

    Raises:
        InputError: there is no name, a name means nothing here, or several do not make a side.
        StateError: the BentoML store or DVC's cache lacks what is named.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise InputError("names no model", observed=repr(names), expected="a checkpoint, tag, baseline or revision")
    side = [find_contender(name, checkpoints=checkpoints, scratch=scratch) for name in listed]
    folders = [contender.folder for contender in side if contender.folder is not None]
    if len(side) > 1 and len(folders) < len(side):
        raise InputError("a baseline has no seeds to average over", observed=", ".join(listed), expected="it alone")
    if len({_hash_weights(folder) for folder in folders}) < len(folders):
        raise InputError("one side names the same model twice; a seed counts once", observed=", ".join(listed))
    return side


def find_contender(name: str, *, checkpoints: Path, scratch: Path) -> Contender:
    """Find one contender; see `find_side`."""
    if Path(name).is_dir():
        return Contender(name, Path(name))
    if ":" in name:
        return Contender(name, find_tagged(name))
    if name in BASELINES:
        return Contender(name, None)
    commit = find_commit(name)
    if commit is None:
        raise InputError(
            "is no model that can be found",
            where=name,
            expected=f"a checkpoint folder, Bento tag, git revision, DVC experiment, or {', '.join(BASELINES)}",
        )
    return Contender(name, fetch_checkpoint(commit, name, checkpoints=checkpoints, scratch=scratch))


def _hash_weights(folder: Path) -> str:
    """Return what two names of one model have in common, wherever they lie."""
    weights = folder / "weights.safetensors"
    with reading(weights, todo="Name a folder that holds checkpoint.json and the weights"):
        return hash_files([weights])
