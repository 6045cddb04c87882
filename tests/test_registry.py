"""`latest` is a whole Bento and follows the champion; a promotion that was stopped is finished by the next one."""

import contextlib
import hashlib
import io
import json
import logging
import os
import socket
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from made_challenges import write_challenge
from made_ports import free_port

from components import registry
from components.champion import locked
from components.decisions import read_decisions
from components.errors import StateError
from components.files import write_json

WRITES = [
    "mv2",
    "v2",
    "profile.json",
    "decisions.jsonl",
    "champion.json",
    "latest",
]  # model and Bento folder, then the pointers


class Workspace:
    """A folder with artifacts/, reports/, registry/ and a BentoML store, and Bentos that hold one file each."""

    def __init__(self, root):
        self.root, self.store = root, root / "bentoml"
        self.folders = {"artifacts": root / "artifacts", "reports": root / "reports", "registry": root / "registry"}

    def package(self, version, verdict="accepted", name="hstuflow", data="d", challenge="passed"):
        self.validate({"success": True, "profile": {"of": version}})
        write_json(self.folders["reports"] / "gate.json", {"reasons": [f"{version} was judged"]})
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
        rest = {"name": name, "checkpoint_hash": "c", "data_hash": data, "git_commit": "g", "metrics": {}}
        write_json(self.folders["artifacts"] / "package.json", packaged | rest)
        with contextlib.suppress(StateError):  # a champion.json that a test has damaged
            write_challenge(self.root, challenge)

    def validate(self, report):
        write_json(self.folders["reports"] / "validation.json", report)

    def promote(self, **options):
        return registry.promote(**self.folders, **options)

    def rollback(self, **options):
        return registry.rollback(registry=self.folders["registry"], **options)

    def ensure_champion(self):
        return registry.ensure_champion(artifacts=self.folders["artifacts"], registry=self.folders["registry"])

    def serve(self, host="127.0.0.1", port=None):
        folders = {name: self.folders[name] for name in ("artifacts", "registry")}
        registry.serve(**folders, host=host, port=free_port() if port is None else port)

    @property
    def champion(self):
        return json.loads((self.folders["registry"] / "champion.json").read_text())

    @property
    def decisions(self):
        return [(one["what"], one["tag"], (one["champion"] or {}).get("tag")) for one in self.read_decisions()]

    def read_decisions(self):
        return read_decisions(self.folders["registry"])

    @property
    def profile(self):
        return json.loads((self.folders["registry"] / "profile.json").read_text())

    @property
    def latest(self):
        bento = self.store / "bentos" / "hstuflow"
        version = (bento / "latest").read_text()
        assert (bento / version / "bento.yaml").read_text() == version
        assert (bento / version / "src" / "service.py").exists()
        assert (self.store / "models" / "hstuflow" / f"m{version}" / "model.yaml").exists()
        return version

    def everything(self):
        files = [path for path in self.root.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    return Workspace(tmp_path)


def test_promotion_installs_bento_and_model_and_moves_latest(workspace):
    workspace.package("v1")
    assert workspace.promote()
    assert workspace.latest == "v1"
    assert (workspace.champion["tag"], workspace.champion["previous"]) == ("hstuflow:v1", None)
    assert workspace.profile == {"of": "v1"}

    workspace.package("v2")
    assert workspace.promote()
    assert workspace.latest == "v2"
    assert (workspace.champion["tag"], workspace.champion["previous"]) == ("hstuflow:v2", "hstuflow:v1")
    assert not list((workspace.store / "tmp").iterdir())


def test_bento_and_model_are_on_the_disk_before_the_champion_is_named(workspace, record_syncs):
    workspace.package("v1")
    synced = record_syncs((workspace.folders["registry"] / "champion.json").exists)
    workspace.promote()
    bento, model = workspace.store / "bentos" / "hstuflow" / "v1", workspace.store / "models" / "hstuflow" / "mv1"
    stored = [path for folder in (bento, model) for path in (folder.parent, folder, *folder.rglob("*"))]
    assert {path.stat().st_ino for path in stored} <= {inode for inode, named in synced if not named}


def test_promoting_an_older_bento_again_moves_latest_back(workspace):
    for version in ("v1", "v2", "v1"):
        workspace.package(version)
        workspace.promote()
    assert workspace.latest == "v1"
    assert workspace.champion["previous"] == "hstuflow:v2"


def test_promoting_the_champion_again_changes_no_content_and_announces_nothing(workspace, caplog):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    before = workspace.everything()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert workspace.promote()
    assert caplog.messages == ["hstuflow:v2 is the champion already"]
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
    log = workspace.folders["registry"] / "decisions.jsonl"
    with caplog.at_level(logging.WARNING):
        assert not workspace.promote()
    after = workspace.everything()
    lines = after.pop(log)[1].splitlines(keepends=True)
    assert b"".join(lines[:-1]) == before.pop(log)[1]
    assert after == before
    assert "hstuflow-candidate:v2 was refused" in caplog.text
    assert workspace.decisions[-1] == ("refused", "hstuflow-candidate:v2", "hstuflow:v1")
    assert workspace.read_decisions()[-1]["reasons"] == ["v2 was judged"]
    assert not workspace.promote()
    assert log.read_bytes().splitlines(keepends=True) == lines  # the same night once more decides nothing new


def test_an_inconclusive_model_is_promoted_with_its_label_and_a_warning(workspace, caplog):
    workspace.package("v1", verdict="inconclusive")
    with caplog.at_level(logging.WARNING):
        assert workspace.promote()
    assert workspace.champion["verdict"] == "inconclusive"
    assert "the gate could not tell hstuflow:v1 from the best baseline" in caplog.text


@pytest.fixture
def stop_before(monkeypatch):
    """A function: run `action` until it would rename a file or folder to `name`; returns the names that it came to."""

    def run(action, name):
        names = []

        def stopping(step):
            def run_step(self, target):
                names.append(target.name)
                if target.name == name:
                    raise KeyboardInterrupt
                return step(self, target)

            return run_step

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", stopping(Path.rename))
            patch.setattr(Path, "replace", stopping(Path.replace))
            with contextlib.suppress(KeyboardInterrupt):
                action()
        return names

    return run


def test_a_promotion_fills_the_store_then_names_profile_champion_and_latest(workspace, stop_before):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2")
    assert stop_before(workspace.promote, "nothing") == WRITES


@pytest.mark.parametrize("write", WRITES)
def test_a_promotion_stopped_before_any_write_leaves_whole_bentos_and_is_finished_by_the_next(
    workspace, stop_before, write
):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2")
    assert stop_before(workspace.promote, write)[-1] == write
    assert workspace.latest == "v1"
    assert workspace.champion["tag"] == ("hstuflow:v2" if write == "latest" else "hstuflow:v1")
    assert workspace.profile == {"of": "v1" if write in ("mv2", "v2", "profile.json") else "v2"}
    assert workspace.ensure_champion() == workspace.champion

    workspace.promote()
    assert workspace.latest == "v2"
    assert workspace.champion["previous"] == "hstuflow:v1"
    assert workspace.profile == {"of": "v2"}
    assert workspace.decisions == [("promoted", f"hstuflow:{v}", f"hstuflow:{v}") for v in ("v1", "v2")]


def test_a_refused_model_after_a_stopped_promotion_still_brings_latest_to_the_champion(workspace, stop_before):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2")
    stop_before(workspace.promote, "latest")
    workspace.package("v3", verdict="refused", name="hstuflow-candidate")
    assert not workspace.promote()
    assert (workspace.champion["tag"], workspace.latest) == ("hstuflow:v2", "v2")


def test_a_refused_model_leaves_a_store_alone_that_lacks_the_champion(workspace):
    workspace.package("v1")
    workspace.promote()
    workspace.store.rename(workspace.root / "lost")
    workspace.package("v2", verdict="refused", name="hstuflow-candidate")
    assert not workspace.promote()
    assert not workspace.store.exists()


def test_rolling_back_brings_the_champion_before_back_and_once_more_the_one_before_that(workspace):
    champions = []
    for version in ("v1", "v2", "v3"):
        workspace.package(version)
        workspace.promote()
        champions.append(workspace.champion)
    assert workspace.rollback(why="too slow") == champions[1] == workspace.champion
    assert workspace.latest == "v2"
    assert workspace.profile == {"of": "v3"}  # the log did not change
    assert workspace.decisions[-1] == ("rolled back", "hstuflow:v3", "hstuflow:v2")
    assert workspace.read_decisions()[-1]["reasons"] == ["too slow"]
    assert workspace.rollback() == champions[0]
    assert workspace.latest == "v1"
    with pytest.raises(StateError, match="there is no champion before hstuflow:v1"):
        workspace.rollback()
    assert workspace.rollback(to="hstuflow:v3") == champions[2]


def test_what_was_rolled_back_is_promoted_again_only_when_told_to(workspace, caplog):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    workspace.rollback(why="wrong titles")
    before = workspace.everything()
    with caplog.at_level(logging.WARNING):
        assert not workspace.promote()  # the next night: nothing new to promote
    assert "hstuflow:v2 was rolled back on" in caplog.text
    assert "(wrong titles)" in caplog.text
    assert workspace.everything() == before
    assert workspace.promote(again=True)
    assert (workspace.latest, workspace.champion["previous"]) == ("v2", "hstuflow:v1")
    workspace.rollback()
    workspace.package("v3")
    assert workspace.promote()  # a new candidate needs no telling
    assert (workspace.latest, workspace.champion["previous"]) == ("v3", "hstuflow:v1")


@pytest.mark.parametrize("write", ["decisions.jsonl", "latest", "champion.json"])
def test_a_rollback_stopped_before_any_write_is_finished_by_the_same_command(workspace, stop_before, write):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    assert stop_before(workspace.rollback, write)[-1] == write
    assert workspace.champion["tag"] == "hstuflow:v2"
    workspace.rollback()
    assert (workspace.latest, workspace.champion["tag"]) == ("v1", "hstuflow:v1")
    assert [what for what, _, _ in workspace.decisions] == ["promoted", "promoted", "rolled back"]


def test_rolling_back_to_what_is_not_there_is_one_sentence_and_changes_nothing(workspace):
    with pytest.raises(StateError, match=r"nothing was promoted yet\. Run `make run`"):
        workspace.rollback()
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    (workspace.store / "bentos" / "hstuflow" / "v1").rename(workspace.root / "lost")
    before = workspace.everything()
    with pytest.raises(StateError, match="hstuflow:v2 is the champion"):
        workspace.rollback(to="hstuflow:v2")
    with pytest.raises(StateError, match="never was the champion: expected one of hstuflow:v1, hstuflow:v2"):
        workspace.rollback(to="hstuflow:v9")
    with pytest.raises(StateError, match=r"hstuflow:v1 is not in the BentoML store\. Fetch its export \(git commit g"):
        workspace.rollback()
    assert workspace.everything() == before


@pytest.mark.parametrize("damaged", ["<<<<<<< HEAD", "[]", "3", '{"time": "2026"}'])
def test_a_damaged_line_of_the_decisions_is_named(workspace, damaged):
    workspace.package("v1")
    workspace.promote()
    log = workspace.folders["registry"] / "decisions.jsonl"
    log.write_text(log.read_text() + damaged + "\n")
    with pytest.raises(StateError, match=r"decisions\.jsonl:2: .*Mend the line by hand"):
        workspace.rollback()


@pytest.mark.parametrize("report", [{"success": False, "profile": {"of": "v2"}}, {"success": True, "profile": None}])
def test_a_model_whose_log_failed_validation_is_not_promoted(workspace, report):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2")
    workspace.validate(report)
    before = workspace.everything()
    with pytest.raises(StateError, match=r"validation\.json: the log failed validation.*then run `dvc repro`"):
        workspace.promote()
    assert workspace.everything() == before


@pytest.mark.parametrize("damaged", ["<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n", "null\n", "{}\n", "\udcff"])
@pytest.mark.parametrize("command", ["promote", "ensure_champion"])
def test_a_damaged_champion_json_is_named_with_what_to_do(workspace, damaged, command):
    workspace.package("v1")
    workspace.promote()
    pointer = workspace.folders["registry"] / "champion.json"
    pointer.write_text(damaged, errors="surrogateescape")
    with pytest.raises(StateError, match=r"champion\.json: .*Run `git checkout HEAD .*champion\.json`, or remove it"):
        getattr(workspace, command)()


def test_an_export_that_package_json_does_not_describe_is_refused(workspace):
    workspace.package("v1")
    (workspace.folders["artifacts"] / "hstuflow.bento").write_bytes(b"another")
    with pytest.raises(StateError, match=r"is not the export that package\.json describes"):
        workspace.promote()
    (workspace.folders["artifacts"] / "hstuflow.bento").unlink()
    with pytest.raises(StateError, match=r"hstuflow.bento: is missing"):
        workspace.promote()
    assert not (workspace.store / "bentos").exists()
    assert not workspace.everything().keys() & set(workspace.folders["registry"].iterdir())


@pytest.mark.parametrize(
    "missing", ["artifacts/package.json", "reports/gate.json", "reports/validation.json", "reports/challenge.json"]
)
def test_promotion_names_what_an_earlier_step_did_not_leave(workspace, missing):
    workspace.package("v1")
    (workspace.root / missing).unlink()
    with pytest.raises(StateError, match="is missing"):
        workspace.promote()


def test_serving_before_any_promotion_says_what_to_run(workspace):
    with pytest.raises(StateError, match=r"nothing was promoted yet\. Run `make run`"):
        workspace.ensure_champion()


def test_serving_after_a_refused_first_run_names_the_candidate_and_how_to_look_at_it(workspace):
    workspace.package("v1", verdict="refused", name="hstuflow-candidate")
    workspace.promote()
    with pytest.raises(StateError) as caught:
        workspace.ensure_champion()
    export = workspace.folders["artifacts"] / "hstuflow.bento"
    assert "the gate refused the candidate hstuflow-candidate:v1. Open reports/report.html" in str(caught.value)
    assert f"`bentoml import {export}`, then `bentoml serve hstuflow-candidate:v1`" in str(caught.value)
    assert "make run" not in str(caught.value)


@pytest.mark.parametrize("lost", ["bentos", "models", "bentos/hstuflow/v1", "models/hstuflow/mv1"])
def test_serving_fetches_what_the_store_lacks_of_the_champion(workspace, lost):
    workspace.package("v1")
    workspace.promote()
    (workspace.store / lost).rename(workspace.root / "lost")
    workspace.ensure_champion()
    assert (workspace.store / "bentos" / "hstuflow" / "v1" / "bento.yaml").read_text() == "v1"
    assert (workspace.store / "models" / "hstuflow" / "mv1" / "model.yaml").read_text() == "v1"


@pytest.mark.parametrize("verdict", ["failed", "undecided"])
def test_what_the_challenge_keeps_out_changes_nothing_but_the_log(workspace, caplog, verdict):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2", challenge=verdict)
    before = workspace.everything()
    with caplog.at_level(logging.WARNING):
        assert not workspace.promote()
    after = workspace.everything()
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"decisions.jsonl"}
    assert workspace.read_decisions()[-1]["reasons"] == [f"challenge {verdict}", f"{verdict} by hand"]
    assert f"hstuflow:v2 is not promoted, the champion stays what it is: challenge {verdict}" in caplog.text
    workspace.package("v2", challenge="passed")
    assert workspace.promote()


def test_a_challenge_against_an_earlier_champion_does_not_promote(workspace):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    workspace.package("v3")
    workspace.rollback()  # while the challenge against v2 was held
    before = workspace.everything()
    words = r"challenge\.json: .*observed hstuflow:v3 against hstuflow:v2, expected hstuflow:v3 against hstuflow:v1"
    with pytest.raises(StateError, match=words):
        workspace.promote()
    assert workspace.everything() == before


def test_a_decision_of_earlier_versions_has_no_challenge_and_is_still_read(workspace):
    workspace.package("v1")
    workspace.promote()
    log = workspace.folders["registry"] / "decisions.jsonl"
    old = {name: value for name, value in json.loads(log.read_text()).items() if name != "challenge"}
    log.write_text(json.dumps(old) + "\n")
    workspace.package("v2")
    assert workspace.promote()
    assert workspace.decisions == [("promoted", f"hstuflow:{v}", f"hstuflow:{v}") for v in ("v1", "v2")]


@pytest.mark.parametrize("first", ["promote", "rollback"])
def test_of_two_promotions_or_rollbacks_at_once_the_second_waits_and_then_sees_what_the_first_did(workspace, first):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    workspace.package("v3")
    outcome = []

    def second():
        try:
            outcome.append(workspace.promote())
        except StateError as error:
            outcome.append(error)

    waiting = threading.Thread(target=second)
    with locked(workspace.folders["registry"]):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert workspace.champion["tag"] == "hstuflow:v2"
        if first == "rollback":  # what the holder of the lock does meanwhile
            write_json(workspace.folders["registry"] / "champion.json", workspace.champion | {"tag": "hstuflow:v1"})
    waiting.join()
    if first == "promote":
        assert outcome == [True]
        assert workspace.champion["tag"] == "hstuflow:v3"
    else:
        assert "is about another candidate or another champion" in str(outcome[0])


def test_promotion_alone_moves_latest_and_brings_it_back_to_the_champion(workspace):
    for version in ("v1", "v2"):
        workspace.package(version)
        workspace.promote()
    latest = workspace.store / "bentos" / "hstuflow" / "latest"
    latest.write_text("v1")  # what a `bentoml build` or `bentoml import` by hand may do
    workspace.ensure_champion()
    assert workspace.latest == "v1"
    workspace.promote()
    assert workspace.latest == "v2"


def test_serving_a_champion_that_is_nowhere_here_is_refused(workspace):
    workspace.package("v1")
    workspace.promote()
    workspace.store.rename(workspace.root / "lost")
    workspace.package("v2")
    with pytest.raises(StateError, match="observed hstuflow:v2, expected hstuflow:v1"):
        workspace.ensure_champion()


@pytest.fixture
def started(monkeypatch):
    """The list of what `serve` became, instead of becoming it."""
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    return started


def test_serve_becomes_bentoml_serve_of_the_champion_itself(workspace, started):
    workspace.package("v1")
    workspace.promote()
    port = free_port()
    workspace.serve(port=port)
    ((program, command, environment),) = started
    assert program == sys.executable
    assert command[1:] == ["-P", "-m", "bentoml", "serve", "hstuflow:v1", "--host", "127.0.0.1", "--port", str(port)]
    assert (environment["BENTOML_DO_NOT_TRACK"], environment["OMP_NUM_THREADS"]) == ("True", "1")
    assert json.loads(Path(environment["HSTUFLOW_FOLLOW"]).read_text()) == workspace.champion
    assert Path(environment["HSTUFLOW_FOLLOW"]).is_absolute()  # BentoML changes the folder


def test_serve_keeps_its_model_where_the_environment_says_so(workspace, started, monkeypatch):
    monkeypatch.setenv("HSTUFLOW_FOLLOW", "")
    workspace.package("v1")
    workspace.promote()
    workspace.serve()
    assert started[0][2]["HSTUFLOW_FOLLOW"] == ""


def warnings_of(caplog):
    """The warnings alone: the level of the root logger is another test's business."""
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_serve_warns_that_the_champion_is_not_the_refused_candidate_of_another_log(workspace, started, caplog):
    workspace.package("v1", data="old")
    workspace.promote()
    workspace.package("v2", verdict="refused", name="hstuflow-candidate", data="new")
    workspace.promote()
    caplog.clear()
    workspace.serve()
    assert warnings_of(caplog) == [
        "serving hstuflow:v1, not the last candidate hstuflow-candidate:v2 (refused): "
        "that was trained on other data, new, the champion on old"
    ]
    assert "hstuflow:v1" in started[0][1]


@pytest.mark.parametrize("packaged", [True, False])
def test_serve_warns_of_nothing_where_the_data_is_the_same_or_nothing_is_packaged(workspace, started, caplog, packaged):
    workspace.package("v1")
    workspace.promote()
    workspace.package("v2", verdict="refused", name="hstuflow-candidate")
    if not packaged:
        (workspace.folders["artifacts"] / "package.json").unlink()
    workspace.serve()
    assert len(started) == 1
    assert not warnings_of(caplog)


def test_serve_on_a_taken_port_is_one_sentence_and_names_no_address_as_served(workspace, started, caplog):
    workspace.package("v1")
    workspace.promote()
    caplog.clear()
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.INFO):
        port = taken.getsockname()[1]
        with pytest.raises(StateError) as caught:
            workspace.serve(port=port)
    assert str(caught.value) == (
        f"127.0.0.1:{port}: cannot listen here: observed Address already in use. "
        f"End what holds the port, or choose another one: `make serve PORT={port + 1}`"
    )
    assert not caplog.messages
    assert not started
