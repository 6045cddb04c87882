"""Promotion: which packaged model `hstuflow:latest` is, and the versioned pointer registry/champion.json that says so.

    python -m components promote     # the flow's last step
    python -m components serve       # what `make serve` runs

registry/champion.json is the truth; `latest` follows it, in `promote` only. Model and Bento arrive in the BentoML store
by one rename each, then profile.json, champion.json and at last `latest` are replaced: whatever stops a promotion, both
pointers name a whole Bento, and the same command finishes the job. (`bentoml import` copies in place, file by file, and
moves `latest` by creation time, which a second promotion of an older Bento would not.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from components.console import log
from components.errors import StateError
from components.files import read_json, replacing_file, write_json


def promote(*, artifacts: Path, reports: Path, registry: Path) -> bool:
    """Make the packaged model the champion; return False, and keep the champion, where the gate refused it.

    Either way `latest` is the champion afterwards, where the store holds it.

    Raises:
        StateError: there is no package, the log failed validation, champion.json is damaged, or export and package.json
            do not belong together.
    """
    packaged = _read(artifacts / "package.json")
    before = _read_champion(registry)
    if before is not None and _is_stored(before):
        point_latest(before["tag"])
    if packaged["verdict"] == "refused":
        log.warning("%s was refused by the gate: the champion stays what it is", packaged["tag"])
        return False
    profile = _read_profile(reports / "validation.json")
    install(artifacts / "hstuflow.bento", packaged)
    champion = _succeed(packaged, before)
    write_json(registry / "profile.json", profile)
    write_json(registry / "champion.json", champion)
    point_latest(champion["tag"])
    _announce(champion, before)
    return True


def install(export: Path, packaged: dict[str, Any]) -> None:
    """Put the export's Bento and model into the BentoML store unless both are there; `latest` stays what it is.

    Raises:
        StateError: the export is missing or is not the one that package.json describes.
    """
    if _is_stored(packaged):
        return
    _check_export(export, packaged)
    store = bentoml_store()
    (store / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store / "tmp") as scratch, tarfile.open(export) as archive:
        content = Path(scratch) / "bento"
        # Python before 3.11.4 has no filters; there the hash alone says that the archive is ours.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(content)  # noqa: S202
        _move(content / "models" / _path_of(packaged["model_tag"]), _model_folder(packaged["model_tag"]))
        shutil.rmtree(content / "models")
        _move(content, _bento_folder(packaged["tag"]))


def serve(*, artifacts: Path, registry: Path, host: str, port: int) -> NoReturn:
    """Become `bentoml serve` of the champion; fetches it from the export where the store lacks it.

    Raises:
        StateError: the port is taken, nothing was promoted yet, champion.json is damaged, or the champion is neither in
            the store nor in artifacts/.
    """
    _require_free(host, port)
    champion = ensure_champion(artifacts=artifacts, registry=registry)
    _warn_of_other_data(champion, artifacts / "package.json")
    log.info("%s at http://%s:%d (verdict: %s)", champion["tag"], host, port, champion["verdict"])
    command = [sys.executable, "-P", "-m", "bentoml", "serve", champion["tag"], "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, os.environ | {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"})  # noqa: S606


def ensure_champion(*, artifacts: Path, registry: Path) -> dict[str, Any]:
    """Return registry/champion.json after making sure that the store holds the champion and its model; see `serve`."""
    champion = _read_champion(registry)
    if champion is None:
        raise _nothing_promoted(artifacts, registry / "champion.json")
    if _is_stored(champion):
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


def point_latest(tag: str) -> None:
    """Let <name>:latest be the stored Bento `tag`."""
    bento = _bento_folder(tag)
    pointer = bento.parent / "latest"
    if not pointer.exists() or pointer.read_text(encoding="utf-8").strip() != bento.name:
        with replacing_file(pointer) as temporary:
            temporary.write_text(bento.name, encoding="utf-8")


def _require_free(host: str, port: int) -> None:
    """Raise StateError where `bentoml serve` could not listen; it would say so with a traceback of 40 lines."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
            probe.bind((host, port))
    except OSError as error:
        raise StateError(
            "cannot listen here",
            where=f"{host}:{port}",
            observed=error.strerror,
            todo=f"End what holds the port, or choose another one: `make serve PORT={port + 1}`",
        ) from error


def _nothing_promoted(artifacts: Path, pointer: Path) -> StateError:
    """Return the error for a missing champion.json: the gate refused the only candidate, or nothing ran so far."""
    package = artifacts / "package.json"
    packaged = _read(package) if package.exists() else None
    if packaged is None or packaged["verdict"] != "refused":
        return StateError("nothing was promoted yet", where=str(pointer), todo="Run `make run`")
    return StateError(
        f"nothing was promoted yet, the gate refused the candidate {packaged['tag']}",
        where=str(pointer),
        todo="Open reports/report.html; to look at the candidate anyway: "
        f"`bentoml import {artifacts / 'hstuflow.bento'}`, then `bentoml serve {packaged['tag']}`",
    )


def _warn_of_other_data(champion: dict[str, Any], package: Path) -> None:
    """Say in one line that the champion was trained on another log than the last package, where it was."""
    packaged = _read(package) if package.exists() else champion
    if packaged["data_hash"] != champion["data_hash"]:
        log.warning(
            "serving %s, not the last candidate %s (%s): that was trained on other data, %s, the champion on %s",
            champion["tag"],
            packaged["tag"],
            packaged["verdict"],
            packaged["data_hash"][:12],
            champion["data_hash"][:12],
        )


def _succeed(packaged: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Return champion.json's content once `packaged` follows the champion `before`."""
    names = ("tag", "model_tag", "verdict", "data_hash", "git_commit", "metrics")
    champion = {name: packaged[name] for name in names}
    if before is None:
        return champion | {"previous": None}
    return champion | {"previous": before["previous" if before["tag"] == champion["tag"] else "tag"]}


def _announce(champion: dict[str, Any], before: dict[str, Any] | None) -> None:
    if champion["verdict"] == "inconclusive":
        log.warning("the gate could not tell %s from the best baseline", champion["tag"])
    if before is not None and before["tag"] == champion["tag"]:
        log.info("%s is the champion already", champion["tag"])
    else:
        log.info("champion: %s, before it: %s", champion["tag"], champion["previous"] or "none")


def _read_champion(registry: Path) -> dict[str, Any] | None:
    """Return registry/champion.json, None where nothing was promoted yet.

    Raises:
        StateError: it is damaged; it is versioned in git, so a merge may leave its markers in it.
    """
    pointer = registry / "champion.json"
    if not pointer.exists():
        return None
    todo = f"Run `git checkout HEAD {pointer}`, or remove it and run `python -m components promote`"
    champion = _read(pointer, todo)
    names = {"tag", "model_tag", "verdict", "data_hash", "previous"}
    observed = set(champion) if isinstance(champion, dict) else set()
    if not names <= observed:
        raise StateError("lacks keys", where=str(pointer), observed=sorted(observed), expected=sorted(names), todo=todo)
    return dict(champion)


def _read_profile(report: Path) -> dict[str, Any]:
    """Return the profile of the log that the model was trained on.

    Raises:
        StateError: the log failed validation, so the package is one of an earlier log.
    """
    validation = _read(report)
    if validation["success"] is not True or validation["profile"] is None:
        raise StateError(
            "the log failed validation, so the packaged model is an earlier log's and is not promoted",
            where=str(report),
            todo="See `complaints` there, mend the log (or `validate` in params.yaml), then run `dvc repro`",
        )
    return dict(validation["profile"])


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


def _is_stored(tags: dict[str, Any]) -> bool:
    """Say whether the BentoML store holds both the Bento `tag` and its model `model_tag`."""
    return _bento_folder(tags["tag"]).exists() and _model_folder(tags["model_tag"]).exists()


def _bento_folder(tag: str) -> Path:
    return bentoml_store() / "bentos" / _path_of(tag)


def _model_folder(tag: str) -> Path:
    return bentoml_store() / "models" / _path_of(tag)


def _path_of(tag: str) -> Path:
    name, _, version = tag.partition(":")
    return Path(name) / version


def _read(file: Path, todo: str = "Run `dvc repro`") -> Any:  # noqa: ANN401 - JSON
    if not file.exists():
        raise StateError("is missing", where=str(file), todo=todo)
    try:
        return read_json(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise StateError("is not JSON", where=str(file), observed=str(error), todo=todo) from error
