"""Promotion: which packaged model `hstuflow:latest` is, and the versioned pointer registry/champion.json that says so.

    python -m components promote     # the flow's last step
    python -m components serve       # what `make serve` runs

A Bento and its model arrive in the BentoML store by one rename each, and `latest` moves after them, so whatever stops a
promotion, `latest` names a whole Bento, and the same command finishes the job. (`bentoml import` copies in place, file
by file, and moves `latest` by creation time, which a second promotion of an older Bento would not.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from components.console import log
from components.errors import StateError
from components.files import read_json, replacing_file, write_json


def promote(*, artifacts: Path, reports: Path, registry: Path) -> bool:
    """Make the packaged model the champion; return False, and change nothing, where the gate refused it.

    Raises:
        StateError: there is no package, or export, package.json and validation report do not belong together.
    """
    packaged = _read(artifacts / "package.json")
    if packaged["verdict"] == "refused":
        log.warning("%s was refused by the gate: the champion stays what it is", packaged["tag"])
        return False
    profile = _read(reports / "validation.json")["profile"]
    install(artifacts / "hstuflow.bento", packaged)
    champion = _champion(packaged, registry)
    write_json(registry / "profile.json", profile)
    write_json(registry / "champion.json", champion)
    if packaged["verdict"] == "inconclusive":
        log.warning("%s is promoted, but the gate could not tell it from the popularity baseline", packaged["tag"])
    log.info("champion: %s, before it: %s", champion["tag"], champion["previous"] or "none")
    return True


def install(export: Path, packaged: dict[str, Any]) -> None:
    """Put the export's Bento and model into the BentoML store unless they are there, then let `latest` name the Bento.

    Raises:
        StateError: the export is missing or is not the one that package.json describes.
    """
    store = bentoml_store()
    bento = store / "bentos" / _path_of(packaged["tag"])
    model = store / "models" / _path_of(packaged["model_tag"])
    if not (bento.exists() and model.exists()):
        _check_export(export, packaged)
        (store / "tmp").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store / "tmp") as scratch, tarfile.open(export) as archive:
            content = Path(scratch) / "bento"
            archive.extractall(content, filter="data")
            _move(content / "models" / _path_of(packaged["model_tag"]), model)
            shutil.rmtree(content / "models")
            _move(content, bento)
    point_latest(bento)


def serve(*, artifacts: Path, registry: Path, host: str, port: int) -> NoReturn:
    """Become `bentoml serve` of the champion; fetches it from the export where the store lacks it.

    Raises:
        StateError: nothing was promoted yet, or the champion is neither in the store nor in artifacts/.
    """
    champion = ensure_champion(artifacts=artifacts, registry=registry)
    log.info("%s at http://%s:%d (verdict: %s)", champion["tag"], host, port, champion["verdict"])
    latest = f"{champion['tag'].split(':')[0]}:latest"
    command = [sys.executable, "-P", "-m", "bentoml", "serve", latest, "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, os.environ | {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"})  # noqa: S606


def ensure_champion(*, artifacts: Path, registry: Path) -> dict[str, Any]:
    """Return registry/champion.json after making sure that the store's `latest` is the champion; see `serve`."""
    pointer = registry / "champion.json"
    if not pointer.exists():
        raise StateError("nothing was promoted yet", where=str(pointer), todo="Run `make run`")
    champion: dict[str, Any] = read_json(pointer)
    bento = bentoml_store() / "bentos" / _path_of(champion["tag"])
    if bento.exists():
        point_latest(bento)
        return champion
    packaged = _read(artifacts / "package.json")
    if packaged["tag"] != champion["tag"]:
        raise StateError(
            "the champion is not in the BentoML store, and the export is another one",
            where=str(artifacts / "package.json"),
            observed=packaged["tag"],
            expected=champion["tag"],
            todo="Run `python -m components promote`, or fetch the champion's export with `dvc pull`",
        )
    install(artifacts / "hstuflow.bento", packaged)
    return champion


def bentoml_store() -> Path:
    """Return BentoML's home, as BentoML finds it."""
    return Path(os.environ.get("BENTOML_HOME", "~/bentoml")).expanduser()


def point_latest(bento: Path) -> None:
    """Let <name>:latest be `bento`, a folder of the store."""
    pointer = bento.parent / "latest"
    if not pointer.exists() or pointer.read_text(encoding="utf-8").strip() != bento.name:
        with replacing_file(pointer) as temporary:
            temporary.write_text(bento.name, encoding="utf-8")


def _champion(packaged: dict[str, Any], registry: Path) -> dict[str, Any]:
    names = ("tag", "model_tag", "verdict", "data_hash", "git_commit", "metrics")
    champion = {name: packaged[name] for name in names}
    pointer = registry / "champion.json"
    if not pointer.exists():
        return champion | {"previous": None}
    now: dict[str, Any] = read_json(pointer)
    return now if now["tag"] == packaged["tag"] else champion | {"previous": now["tag"]}


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
        source.rename(target)


def _path_of(tag: str) -> Path:
    name, _, version = tag.partition(":")
    return Path(name) / version


def _read(file: Path) -> Any:  # noqa: ANN401 - JSON
    if not file.exists():
        raise StateError("is missing", where=str(file), todo="Run `dvc repro`")
    return read_json(file)
