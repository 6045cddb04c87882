"""The BentoML store as what it is, folders: bentos/<name>/<version>, models/<name>/<version>, bentos/<name>/latest.

    install(artifacts / "hstuflow.bento", packaged)   # packaged: package.json
    point_latest(packaged["tag"])

Model and Bento arrive by one rename each. (`bentoml import` copies in place, file by file, and moves `latest` by
creation time, which a second promotion of an older Bento would not.) BentoML is not imported: that takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.errors import StateError
from components.files import folder_beside, place_folder, reading, replacing_file
from components.locks import held


def install(export: Path, packaged: dict[str, Any]) -> None:
    """Put the export's Bento and model into the BentoML store unless both are there; `latest` stays what it is.

    Raises:
        StateError: the export is missing or is not the one that package.json describes.
    """
    if is_stored(packaged):
        return
    _check_export(export, packaged)
    store = bentoml_store()
    # Containers may share the store: whose process is alive cannot be told there, so one installs at a time.
    installing = held(store / ".hstuflow.lock", lambda: f"another installation into {store}")
    with installing, folder_beside(store / "tmp" / "hstuflow") as content, tarfile.open(export) as archive:
        # Python before 3.11.4 has no filters; there the hash alone says that the archive is ours.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(content)  # noqa: S202
        _move(content / "models" / _path_of(packaged["model_tag"]), _model_folder(packaged["model_tag"]))
        shutil.rmtree(content / "models")
        _move(content, _bento_folder(packaged["tag"]))


def unpack_model(export: Path, packaged: dict[str, Any], scratch: Path) -> Path:
    """Unpack the model alone out of the export into `scratch`; return its folder, which is a checkpoint.

    Raises:
        StateError: as `install`.
    """
    _check_export(export, packaged)
    inside = f"models/{_path_of(packaged['model_tag']).as_posix()}/"
    with tarfile.open(export) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        members = [member for member in archive if member.name.removeprefix("./").startswith(inside)]
        archive.extractall(scratch, members)  # noqa: S202
    return scratch / inside


def is_stored(tags: dict[str, Any]) -> bool:
    """Say whether the BentoML store holds both the Bento `tag` and its model `model_tag`."""
    return _bento_folder(tags["tag"]).exists() and _model_folder(tags["model_tag"]).exists()


def bentoml_store() -> Path:
    """Return BentoML's home, as BentoML finds it."""
    return Path(os.environ.get("BENTOML_HOME", "~/bentoml")).expanduser()


def point_latest(tag: str) -> None:
    """Let <name>:latest be the stored Bento `tag`."""
    bento = _bento_folder(tag)
    pointer = bento.parent / "latest"
    if not pointer.exists() or pointer.read_text(encoding="utf-8").strip() != bento.name:
        with replacing_file(pointer) as temporary:
            temporary.write_text(bento.name, encoding="utf-8")


def find_tagged(tag: str) -> Path:
    """Return the folder of the checkpoint that the Bento or the model `tag` holds; <name>:latest is the champion.

    Raises:
        StateError: the store holds neither, or a Bento without its model.
    """
    name, _, version = tag.partition(":")
    store = bentoml_store()
    bentos, models = store / "bentos" / name, store / "models" / name
    if version == "latest" and (bentos / version).is_file():
        version = (bentos / version).read_text(encoding="utf-8").strip()
    bento = bentos / version / "bento.yaml"
    folder = store / "models" / _model_of(bento) if bento.is_file() else models / version
    if not version or not folder.is_dir():
        raise StateError(
            "is not in the BentoML store",
            where=tag,
            observed=f"no {folder}",
            todo="`bentoml list` and `bentoml models list` show what is there; `make serve` brings the champion in",
        )
    return folder


def _model_of(bento: Path) -> Path:
    """Return <name>/<version> of the model that components/service.py asks for as `checkpoint`."""
    with reading(bento, todo="Package and promote again: `make run`"):
        models = YAML(typ="safe").load(bento.read_text(encoding="utf-8"))["models"]
        [tag] = [str(model["tag"]) for model in models if model.get("alias") == "checkpoint"]
    return _path_of(tag)


def _check_export(export: Path, packaged: dict[str, Any]) -> None:
    if not export.exists():
        raise StateError("is missing", where=str(export), todo="Run `dvc repro package`")
    observed = hashlib.sha256(export.read_bytes()).hexdigest()
    if observed != packaged["bento_sha256"]:
        raise StateError(
            "is not the export that package.json describes",
            where=str(export),
            observed=f"sha256 {observed[:12]}",
            expected=packaged["bento_sha256"][:12],
            todo="Run `dvc repro package`",
        )


def _move(source: Path, target: Path) -> None:
    """Rename a folder into the store; what is there already has the same content, its version being a hash of it."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        place_folder(source, target)


def _bento_folder(tag: str) -> Path:
    return bentoml_store() / "bentos" / _path_of(tag)


def _model_folder(tag: str) -> Path:
    return bentoml_store() / "models" / _path_of(tag)


def _path_of(tag: str) -> Path:
    name, _, version = tag.partition(":")
    return Path(name) / version
