"""`latest` is always a whole Bento, and the champion; a promotion that was stopped is finished by the next one."""

import hashlib
import io
import json
import logging
import os
import sys
import tarfile
from pathlib import Path

import pytest

from components import registry
from components.errors import StateError
from components.files import write_json


class Workspace:
    """A folder with artifacts/, reports/, registry/ and a BentoML store, and Bentos that hold one file each."""

    def __init__(self, root):
        self.root, self.store = root, root / "bentoml"
        self.folders = {"artifacts": root / "artifacts", "reports": root / "reports", "registry": root / "registry"}
        write_json(root / "reports" / "validation.json", {"profile": {"events": 3}})

    def package(self, version, verdict="accepted", name="hstuflow"):
        export = self.folders["artifacts"] / "hstuflow.bento"
        export.parent.mkdir(exist_ok=True)
        with tarfile.open(export, "w:xz") as archive:
            for path in ("bento.yaml", "src/service.py", f"models/{name}/m{version}/model.yaml"):
                member = tarfile.TarInfo(f"./{path}")
                member.size = len(version)
                archive.addfile(member, io.BytesIO(version.encode()))
        packaged = {
            "tag": f"{name}:{version}",
            "model_tag": f"{name}:m{version}",
            "verdict": verdict,
            "bento_sha256": hashlib.sha256(export.read_bytes()).hexdigest(),
        }
        rest = {"name": name, "checkpoint_hash": "c", "data_hash": "d", "git_commit": "g", "metrics": {}}
        write_json(self.folders["artifacts"] / "package.json", packaged | rest)

    def promote(self):
        return registry.promote(**self.folders)

    def ensure_champion(self):
        return registry.ensure_champion(artifacts=self.folders["artifacts"], registry=self.folders["registry"])

    @property
    def champion(self):
        return json.loads((self.folders["registry"] / "champion.json").read_text())

    @property
    def latest(self):
        bento = self.store / "bentos" / "hstuflow"
        version = (bento / "latest").read_text()
        assert (bento / version / "bento.yaml").read_text() == version
        assert (bento / version / "src" / "service.py").exists()
        assert (self.store / "models" / "hstuflow" / f"m{version}" / "model.yaml").exists()
        return version

    def everything(self):
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in self.root.rglob("*") if p.is_file()}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    return Workspace(tmp_path)


def test_promotion_installs_bento_and_model_and_moves_latest(workspace):
    workspace.package("v1")
    assert workspace.promote()
    assert workspace.latest == "v1"
    assert (workspace.champion["tag"], workspace.champion["previous"]) == ("hstuflow:v1", None)
    assert json.loads((workspace.folders["registry"] / "profile.json").read_text()) == {"events": 3}

    workspace.package("v2")
    assert workspace.promote()
    assert workspace.latest == "v2"
    assert (workspace.champion["tag"], workspace.champion["previous"]) == ("hstuflow:v2", "hstuflow:v1")
    assert not list((workspace.store / "tmp").iterdir())


def test_promoting_an_older_bento_again_moves_latest_back(workspace):
    for version in ("v1", "v2", "v1"):
        workspace.package(version)
        workspace.promote()
    assert workspace.latest == "v1"
    assert workspace.champion["previous"] == "hstuflow:v2"


def test_promoting_the_champion_again_changes_no_content(workspace):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    before = workspace.everything()
    workspace.promote()
    assert {path: content for path, (_, content) in workspace.everything().items()} == {
        path: content for path, (_, content) in before.items()
    }
    store = [path for path in before if path.is_relative_to(workspace.store)]
    assert all(workspace.everything()[path] == before[path] for path in store)  # not even touched


def test_a_refused_model_changes_nothing_and_says_so(workspace, caplog):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2", verdict="refused", name="hstuflow-candidate")
    before = workspace.everything()
    with caplog.at_level(logging.WARNING):
        assert not workspace.promote()
    assert workspace.everything() == before
    assert "hstuflow-candidate:v2 was refused" in caplog.text


def test_an_inconclusive_model_is_promoted_with_its_label_and_a_warning(workspace, caplog):
    workspace.package("v1", verdict="inconclusive")
    with caplog.at_level(logging.WARNING):
        assert workspace.promote()
    assert workspace.champion["verdict"] == "inconclusive"
    assert "could not tell it from the popularity baseline" in caplog.text


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_a_promotion_stopped_anywhere_leaves_the_old_champion_whole_and_is_finished_by_the_next(
    workspace, monkeypatch, stopped_at
):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2")
    steps = []

    def stop_before(step):
        def stopping(self, target):
            steps.append(target)
            if len(steps) == stopped_at:
                raise KeyboardInterrupt
            return step(self, target)

        return stopping

    with monkeypatch.context() as patch:  # model folder, Bento folder, pointer: each arrives by one of these
        patch.setattr(Path, "rename", stop_before(Path.rename))
        patch.setattr(Path, "replace", stop_before(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            workspace.promote()
    assert workspace.latest == "v1"
    assert workspace.champion["tag"] == "hstuflow:v1"

    workspace.promote()
    assert workspace.latest == "v2"
    assert workspace.champion["previous"] == "hstuflow:v1"


def test_an_export_that_package_json_does_not_describe_is_refused(workspace):
    workspace.package("v1")
    (workspace.folders["artifacts"] / "hstuflow.bento").write_bytes(b"another")
    with pytest.raises(StateError, match=r"is not the export that package\.json describes"):
        workspace.promote()
    (workspace.folders["artifacts"] / "hstuflow.bento").unlink()
    with pytest.raises(StateError, match=r"hstuflow.bento: is missing"):
        workspace.promote()
    assert not (workspace.store / "bentos").exists()
    assert not workspace.folders["registry"].exists()


@pytest.mark.parametrize("missing", ["artifacts/package.json", "reports/validation.json"])
def test_promotion_names_what_an_earlier_step_did_not_leave(workspace, missing):
    workspace.package("v1")
    (workspace.root / missing).unlink()
    with pytest.raises(StateError, match="is missing"):
        workspace.promote()


def test_serving_before_any_promotion_says_what_to_run(workspace):
    with pytest.raises(StateError, match="nothing was promoted yet"):
        workspace.ensure_champion()


def test_serving_fetches_the_champion_where_the_store_lacks_it_and_mends_latest(workspace):
    workspace.package("v1")
    workspace.promote()
    workspace.store.rename(workspace.root / "lost")
    workspace.ensure_champion()
    assert workspace.latest == "v1"
    (workspace.store / "bentos" / "hstuflow" / "latest").write_text("v0")  # what `bentoml delete` or a build may do
    workspace.ensure_champion()
    assert workspace.latest == "v1"


def test_serving_a_champion_that_is_nowhere_here_is_refused(workspace):
    workspace.package("v1")
    workspace.promote()
    workspace.store.rename(workspace.root / "lost")
    workspace.package("v2")
    with pytest.raises(StateError, match="observed hstuflow:v2, expected hstuflow:v1"):
        workspace.ensure_champion()


def test_serve_becomes_bentoml_serve_of_latest(workspace, monkeypatch):
    workspace.package("v1")
    workspace.promote()
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    registry.serve(artifacts=workspace.folders["artifacts"], registry=workspace.folders["registry"], host="::1", port=1)
    ((program, command, environment),) = started
    assert program == sys.executable
    assert command[1:] == ["-P", "-m", "bentoml", "serve", "hstuflow:latest", "--host", "::1", "--port", "1"]
    assert (environment["BENTOML_DO_NOT_TRACK"], environment["OMP_NUM_THREADS"]) == ("True", "1")
