"""A Bento holds what serving needs and no more, is the same for the same input, and leaves the user's store alone."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from made_checkpoints import write_checkpoint, write_judged
from made_items import KEYS, fit, write_structured
from ruamel.yaml import YAML

from components import packaging
from components.errors import StateError
from components.recommender import Recommender
from components.serving.item_map import load_item_map
from components.settings import PackageSettings

SETTINGS = PackageSettings(model="hstu", name="hstuflow")


def package(root):
    return packaging.package(SETTINGS, artifacts=root / "artifacts", reports=root / "reports")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """artifacts/ and reports/ with a packaged model in them, built while BENTOML_HOME was root/store."""
    root = tmp_path_factory.mktemp("packaged")
    write_judged(root, ["10", "20", "30"], key_type="int")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(root / "store"))
        package(root)
    return root


@pytest.fixture(scope="module")
def packaged(root):
    return json.loads((root / "artifacts" / "package.json").read_text())


@pytest.fixture(scope="module")
def bento(root):
    """The unpacked export."""
    with tarfile.open(root / "artifacts" / "hstuflow.bento") as archive:
        archive.extractall(root / "unpacked")  # noqa: S202 - our own; Python 3.11.2 knows no filter
    return root / "unpacked"


def files_below(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_package_json_describes_the_export(root, packaged):
    export = root / "artifacts" / "hstuflow.bento"
    assert packaged["bento_sha256"] == hashlib.sha256(export.read_bytes()).hexdigest()
    assert re.fullmatch(r"hstuflow:[0-9a-f]{16}", packaged["tag"])
    assert re.fullmatch(r"hstuflow:[0-9a-f]{16}", packaged["model_tag"])
    assert (packaged["name"], packaged["verdict"], packaged["data_hash"]) == ("hstuflow", "accepted", "d" * 64)
    assert packaged["metrics"]["ndcg@10"]["value"] == 0.1141


def test_packaging_leaves_the_users_store_alone(root):
    assert not (root / "store").exists()


def test_the_bento_holds_the_sources_that_bentofile_yaml_includes_and_no_others(bento):
    included = YAML(typ="safe").load(packaging.BENTOFILE)["include"]
    expected = {str(f.relative_to(packaging.ROOT)) for name in included for f in packaging.ROOT.glob(name.lstrip("/"))}
    assert files_below(bento / "src") - {"bentofile.yaml"} == expected


def test_the_bento_holds_the_checkpoint_as_it_is_with_labels_and_facts(root, packaged, bento):
    model = bento / "models" / packaged["model_tag"].replace(":", "/")
    checkpoint = root / "artifacts" / "checkpoints" / "time_split" / "hstu"
    for name in files_below(checkpoint):
        assert (model / name).read_bytes() == (checkpoint / name).read_bytes()
    entry = YAML(typ="safe").load(model / "model.yaml")
    expected = {"verdict": "accepted", "model": "hstu", "protocol": "time_split", "data_hash": "d" * 12}
    assert expected.items() <= entry["labels"].items()
    assert entry["labels"]["ndcg@10"] == "0.1141"
    assert entry["metadata"]["git_commit"] == packaged["git_commit"]
    assert all(len(label) <= 20 for label in entry["labels"].values())


def test_the_bento_pins_what_it_installs_and_needs_no_orchestration(bento):
    installed = (bento / "env" / "python" / "requirements.txt").read_text().split()
    pins = (packaging.ROOT / "constraints.txt").read_text().split()
    assert set(installed) <= set(pins)
    names = {line.split("==")[0] for line in installed}
    assert names == {
        "bentoml",
        "faiss-cpu",
        "fastapi",
        "httptools",
        "numpy",
        "prometheus-client",
        "pyarrow",
        "pydantic",
        "redis",
        "safetensors",
        "torch",
        "uvloop",
    }


def test_packaging_again_gives_the_same_bytes(root, packaged):
    before = (root / "artifacts" / "hstuflow.bento").read_bytes()
    assert package(root) == packaged
    assert (root / "artifacts" / "hstuflow.bento").read_bytes() == before


def test_the_export_is_what_bentoml_import_reads(root, packaged):
    environment = os.environ | {"BENTOML_HOME": str(root / "elsewhere"), "BENTOML_DO_NOT_TRACK": "True"}
    export = root / "artifacts" / "hstuflow.bento"
    subprocess.run([sys.executable, "-m", "bentoml", "import", str(export)], env=environment, check=True, cwd=root)
    assert (root / "elsewhere" / "bentos" / packaged["tag"].replace(":", "/") / "bento.yaml").exists()
    assert (root / "elsewhere" / "models" / packaged["model_tag"].replace(":", "/") / "weights.safetensors").exists()


def test_the_map_for_new_items_goes_into_the_bento_and_says_what_it_is_worth(tmp_path):
    write_judged(tmp_path, KEYS)
    folder = tmp_path / "artifacts" / "checkpoints" / "time_split" / "hstu"
    shutil.rmtree(folder)
    checkpoint = write_structured(folder)
    packaged = package(tmp_path)
    assert packaged["item_map"]["cosine"] > packaged["item_map"]["cosine_of_mean"]
    with tarfile.open(tmp_path / "artifacts" / "hstuflow.bento") as archive:
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 - our own; Python 3.11.2 knows no filter
    model = tmp_path / "unpacked" / "models" / packaged["model_tag"].replace(":", "/")
    item_map, expected = load_item_map(model, dim=8), fit(Recommender.load(checkpoint))
    assert (item_map.weights_FD == expected.weights_FD).all()
    assert YAML(typ="safe").load(model / "model.yaml")["metadata"]["item_map"] == packaged["item_map"]


def test_a_model_whose_metadata_says_nothing_is_packaged_without_a_map(packaged):
    assert packaged["item_map"] is None


def test_a_refused_model_is_packaged_as_a_candidate_with_a_warning(tmp_path, caplog):
    write_judged(tmp_path, ["a", "b"], verdict="refused")
    with caplog.at_level(logging.WARNING):
        packaged = package(tmp_path)
    assert "which the gate finds refused" in caplog.text
    assert packaged["verdict"] == "refused"
    for tag in (packaged["tag"], packaged["model_tag"]):
        assert tag.startswith("hstuflow-candidate:")
    with tarfile.open(tmp_path / "artifacts" / "hstuflow.bento") as archive:
        assert f"name: {packaged['name']}\n" in archive.extractfile("./bento.yaml").read().decode()


def test_a_source_file_missing_in_bentofile_yaml_fails_the_build_and_keeps_the_old_export(
    tmp_path, monkeypatch, caplog
):
    write_judged(tmp_path, ["a", "b"])
    (tmp_path / "artifacts" / "hstuflow.bento").write_bytes(b"old")
    forgetful = tmp_path / "bentofile.yaml"
    forgetful.write_text(packaging.BENTOFILE.read_text().replace("  - /components/dataset.py\n", ""))
    monkeypatch.setattr(packaging, "BENTOFILE", forgetful)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(StateError, match="the Bento could not be built"),
    ):
        package(tmp_path)
    assert "No module named 'components.dataset'" in caplog.text
    assert (tmp_path / "artifacts" / "hstuflow.bento").read_bytes() == b"old"
    assert not (tmp_path / "artifacts" / "package.json").exists()


def test_bentofile_yaml_that_includes_what_is_not_there_is_refused(tmp_path, monkeypatch):
    wrong = tmp_path / "bentofile.yaml"
    wrong.write_text("include: [/components/nowhere.py]\n")
    monkeypatch.setattr(packaging, "BENTOFILE", wrong)
    with pytest.raises(StateError, match=r"observed /components/nowhere\.py"):
        packaging.stage_sources(tmp_path / "sources")


@pytest.mark.parametrize(
    "missing", ["reports/gate.json", "reports/metrics.json", "artifacts/checkpoints/time_split/hstu/checkpoint.json"]
)
def test_packaging_names_what_an_earlier_step_did_not_leave(tmp_path, missing):
    write_judged(tmp_path, ["a", "b"])
    (tmp_path / missing).unlink()
    with pytest.raises(StateError, match=re.escape(f"{missing}: is missing")):
        package(tmp_path)


def test_a_gate_that_judged_another_model_is_refused(tmp_path):
    write_judged(tmp_path, ["a", "b"])
    settings = PackageSettings(model="sasrec", name="hstuflow")
    with pytest.raises(StateError, match="observed hstu, expected sasrec"):
        packaging.read_candidate(settings, artifacts=tmp_path / "artifacts", reports=tmp_path / "reports")


def test_the_tag_follows_checkpoint_code_verdict_metrics_and_commit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "find_commit", lambda: packaging.Commit("a" * 40, 5))

    def candidate(root, **options):
        write_judged(root, ["a", "b"], **options)
        return packaging.read_candidate(SETTINGS, artifacts=root / "artifacts", reports=root / "reports")

    first, same = candidate(tmp_path / "1"), candidate(tmp_path / "2")
    assert first.model_version == same.model_version
    assert first.bento_version("code") == same.bento_version("code") != first.bento_version("other code")
    others = [candidate(tmp_path / "3", seed=2), candidate(tmp_path / "4", verdict="inconclusive")]
    monkeypatch.setattr(packaging, "find_commit", lambda: packaging.Commit("b" * 40, 6))
    others.append(candidate(tmp_path / "5"))
    assert len({first.model_version, *(other.model_version for other in others)}) == 4
    assert len({each.bento_version("code") for each in (first, *others)}) == 4


def test_the_package_stage_depends_on_all_that_goes_into_the_bento(bento):
    stage = YAML(typ="safe").load(packaging.ROOT / "dvc.yaml")["stages"]["package"]
    covered = tuple(stage["deps"])
    forgotten = {file for file in files_below(bento / "src") if not file.startswith(covered)}
    assert forgotten == {"components/__init__.py"}  # a docstring


def test_a_sasrec_checkpoint_is_served_from_the_same_files(tmp_path):
    """bentofile.yaml includes every model that params.yaml can package."""
    sources = tmp_path / "sources"
    packaging.stage_sources(sources)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", ["a", "b"], model="sasrec")
    load = "import pathlib, sys; from components import recommender; recommender.load_model(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", load, str(checkpoint)], cwd=sources, check=True)


def test_outside_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert packaging.find_commit() == packaging.Commit("unknown", 0)


def test_the_commit_is_named_dirty_once_packaged_code_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "ROOT", tmp_path)

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "bentofile.yaml").write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "m", "--date", "2026-01-01T00:00:00Z")
    (tmp_path / "params.yaml").write_text("not packaged")
    clean = packaging.find_commit()
    assert re.fullmatch("[0-9a-f]{40}", clean.name)
    assert clean.time > 0
    (tmp_path / "bentofile.yaml").write_text("b")
    assert packaging.find_commit() == packaging.Commit(f"{clean.name}-dirty", clean.time)
