"""Package the checkpoint: an exported Bento that serves it anywhere, and artifacts/package.json that says what it is.

    python -m components package

The same checkpoint, code, verdict and commit give the same tag and the same bytes; all that the service says of itself
is part of what the tag is a hash of. The Bento is built in a store of its own: `hstuflow:latest` in the user's store
stays the champion until `promote` (components/registry.py).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from components.console import log
from components.errors import StateError
from components.files import hash_files, read_json, replacing_file, write_json
from components.settings import PackageSettings

if TYPE_CHECKING:
    from components.serving.item_map import ItemMap

ROOT = Path(__file__).resolve().parent.parent
BENTOFILE = ROOT / "bentofile.yaml"
BUILDER = ROOT / "components" / "bento_builder.py"


@dataclass(frozen=True)
class Commit:
    """Where the code stands in git."""

    name: str  # ends in -dirty where packaged files differ from it; "unknown" outside git
    time: int  # seconds; 0 outside git


@dataclass(frozen=True)
class Candidate:
    """A trained and judged model on its way into a Bento."""

    checkpoint: Path
    checkpoint_hash: str
    model: str
    protocol: str
    verdict: str
    metrics: dict[str, Any]  # metric -> value, low, high
    data_hash: str
    name: str  # of the Bento and of its model
    commit: Commit
    item_map: ItemMap | None  # how items that training did not know get their vectors
    item_table: dict[str, Any] = field(default_factory=lambda: {"values": "float32"})  # components/item_table.py

    @property
    def model_version(self) -> str:
        """The model's tag after the colon: the same for the same checkpoint, judgement and commit.

        A store keeps the first entry of a tag, so all that the entry says has to be in its tag.
        """
        return _version(self.name, self.checkpoint_hash, _metadata(self))

    def bento_version(self, code_hash: str) -> str:
        """The Bento's tag after the colon: the same for the same model and code."""
        return _version(self.model_version, code_hash)


def package(settings: PackageSettings, *, artifacts: Path, reports: Path) -> dict[str, Any]:
    """Build the Bento, export it to artifacts/hstuflow.bento, write and return artifacts/package.json.

    A refused model is built as <name>-candidate: a verdict is data, not a failure.

    Raises:
        StateError: checkpoint or reports are missing or belong to another model, or the build failed.
    """
    candidate = read_candidate(settings, artifacts=artifacts, reports=reports)
    with tempfile.TemporaryDirectory(prefix="hstuflow-package-") as name:
        scratch = Path(name)
        candidate = stage_checkpoint(candidate, settings, scratch / "checkpoint", artifacts=artifacts)
        stage_sources(scratch / "sources")
        version = candidate.bento_version(hash_files([scratch / "sources"]))
        level = logging.INFO if candidate.verdict == "accepted" else logging.WARNING
        log.log(level, "packaging %s:%s, which the gate finds %s", candidate.name, version, candidate.verdict)
        build_bento(scratch, candidate, version)
        write_archive(scratch / "bento", artifacts / "hstuflow.bento", candidate.commit.time)
    packaged = {
        "name": candidate.name,
        "tag": f"{candidate.name}:{version}",
        "model_tag": f"{candidate.name}:{candidate.model_version}",
        "verdict": candidate.verdict,
        "bento_sha256": hashlib.sha256((artifacts / "hstuflow.bento").read_bytes()).hexdigest(),
        "checkpoint_hash": candidate.checkpoint_hash,
        "data_hash": candidate.data_hash,
        "git_commit": candidate.commit.name,
        "metrics": candidate.metrics,
        "item_table": candidate.item_table,
        "item_map": _worth(candidate),
    }
    write_json(artifacts / "package.json", packaged)
    return packaged


def read_candidate(settings: PackageSettings, *, artifacts: Path, reports: Path) -> Candidate:
    """Collect the checkpoint that the gate judged and what evaluation said of it.

    Raises:
        StateError: something is missing, or the gate judged another model.
    """
    gate = _read(reports / "gate.json")
    if gate["model"] != settings.model:
        raise StateError(
            "judges another model",
            where=str(reports / "gate.json"),
            observed=gate["model"],
            expected=f"{settings.model} (package.model in params.yaml)",
            todo="Run `dvc repro`",
        )
    checkpoint = artifacts / "checkpoints" / gate["protocol"] / settings.model
    facts = _read(checkpoint / "checkpoint.json")
    return Candidate(
        checkpoint=checkpoint.resolve(),
        checkpoint_hash=hash_files([checkpoint]),
        model=settings.model,
        protocol=gate["protocol"],
        verdict=gate["verdict"],
        metrics=_read(reports / "metrics.json")[gate["protocol"]][settings.model],
        data_hash=facts["data_hash"],
        name=settings.name + ("-candidate" if gate["verdict"] == "refused" else ""),
        commit=find_commit(),
        item_map=_fit_item_map(checkpoint),
    )


def stage_checkpoint(candidate: Candidate, settings: PackageSettings, folder: Path, *, artifacts: Path) -> Candidate:
    """Return the candidate as it is packaged: with its item table in `folder` in fewer bits, where settings ask for it.

    Raises:
        StateError: what that costs cannot be measured.
    """
    if settings.item_table == "float32":
        return candidate
    from components.item_table import write_quantized  # torch takes seconds

    sequences = artifacts / "sequences" / candidate.protocol
    facts = write_quantized(candidate.checkpoint, folder, settings.item_table, sequences)
    return replace(candidate, checkpoint=folder, item_table=facts)


def _fit_item_map(checkpoint: Path) -> ItemMap | None:
    from components.recommender import Recommender  # torch takes seconds
    from components.serving.item_map import fit_item_map

    recommender = Recommender.load(checkpoint, exact_up_to=sys.maxsize)  # few are asked, so no index is built
    rows_XD = recommender.model.embedding.item.weight.detach().numpy()
    item_map = fit_item_map(recommender.catalogue, rows_XD, recommender.ask_made())
    if item_map is None:
        log.warning("titles and attributes say nothing about the items' vectors: the service will take no new items")
    return item_map


def stage_sources(folder: Path) -> None:
    """Copy bentofile.yaml and the files it includes, nothing else, into `folder`.

    BentoML would walk the whole repository, environment and data included, and would import the service from there:
    then a file that bentofile.yaml forgets is missed by the first request instead of by the build.

    Raises:
        StateError: bentofile.yaml includes what is not there.
    """
    folder.mkdir()
    shutil.copyfile(BENTOFILE, folder / BENTOFILE.name)
    for pattern in YAML(typ="safe").load(BENTOFILE)["include"]:
        files = sorted(ROOT.glob(pattern.lstrip("/")))
        if not files:
            raise StateError("includes a file that does not exist", where=str(BENTOFILE), observed=pattern)
        for file in files:
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def build_bento(scratch: Path, candidate: Candidate, bento_version: str) -> None:
    """Run bento_builder.py on scratch/sources, in the store scratch/home; leaves the Bento in scratch/bento.

    Raises:
        StateError: the build failed.
    """
    (scratch / "item_map").mkdir()
    if candidate.item_map is not None:
        candidate.item_map.save(scratch / "item_map")
    request = {
        "name": candidate.name,
        "bento_version": bento_version,
        "model_version": candidate.model_version,
        "labels": _labels(candidate),
        "metadata": _metadata(candidate),
        "folders": [str(candidate.checkpoint), str(scratch / "item_map")],
        "export": str(scratch / "bento"),
    }
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {"BENTOML_HOME": str(scratch / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    # -P: without it the builder's own folder, components/, would come first in sys.path.
    done = subprocess.run(
        [sys.executable, "-P", str(BUILDER), str(scratch / "request.json")],
        cwd=scratch / "sources",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        log.error("%s", done.stderr.strip())
        raise StateError(
            "the Bento could not be built", where=BENTOFILE.name, todo="The lines above are what BentoML says of it"
        )


def write_archive(bento: Path, target: Path, time: int) -> None:
    """Pack an exported Bento into what `bentoml import` reads: tar, xz. The same files give the same bytes.

    Every creation time in it becomes `time`. xz -1: weights hardly compress, and it is 5 times as fast as xz -6.
    """
    moment = dt.datetime.fromtimestamp(time, dt.UTC).isoformat(sep=" ")
    for file in [*bento.glob("bento.yaml"), *bento.glob("models/*/*/model.yaml")]:
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(r"(?m)^([ -]*creation_time:) .*$", rf"\1 {moment}", text), encoding="utf-8")

    def normalize(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with replacing_file(target) as temporary, tarfile.open(temporary, "w:xz", preset=1) as archive:
        archive.add(bento, arcname=".", filter=normalize)  # sorted by name


def find_commit() -> Commit:
    """Return the commit the packaged files come from."""
    log_line = _git("log", "-1", "--format=%H %ct").split()
    if len(log_line) != 2:  # not a git repository, or no git here
        return Commit("unknown", 0)
    changed = _git("status", "--porcelain", "--", "bentofile.yaml", "components", "kernels")
    return Commit(log_line[0] + ("-dirty" if changed else ""), int(log_line[1]))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _labels(candidate: Candidate) -> dict[str, str]:
    """Short strings, for `bentoml list` and `bentoml models list`; the metadata has them in full."""
    metrics = {name: f"{metric['value']:.4f}" for name, metric in candidate.metrics.items()}
    return metrics | {
        "verdict": candidate.verdict,
        "model": candidate.model,
        "protocol": candidate.protocol,
        "data_hash": candidate.data_hash[:12],
        "git_commit": candidate.commit.name[:12],
    }


def _metadata(candidate: Candidate) -> dict[str, Any]:
    """What components/service.py puts into its answers, and the metrics."""
    return {
        "name": candidate.model,
        "protocol": candidate.protocol,
        "verdict": candidate.verdict,
        "data_hash": candidate.data_hash,
        "git_commit": candidate.commit.name,
        "metrics": candidate.metrics,
        "item_table": candidate.item_table,
        "item_map": _worth(candidate) or {},  # BentoML keeps no None
    }


def _worth(candidate: Candidate) -> dict[str, float] | None:
    return None if candidate.item_map is None else asdict(candidate.item_map.worth)


def _version(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path) -> Any:  # noqa: ANN401 - JSON
    if not file.exists():
        raise StateError("is missing", where=str(file), todo="Run `dvc repro`")
    return read_json(file)
