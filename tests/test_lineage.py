"""From the tag in an answer to what made the model: data, code, parameters, metrics, decisions."""

import json

import pytest
from made_challenges import write_challenge
from made_checkpoints import write_judged

from components import packaging, registry
from components.errors import StateError
from components.lineage import lineage
from components.settings import PackageSettings

KEYS = ("a", "b", "c")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace whose model was packaged, promoted, rolled back and promoted again into the store root/bentoml."""
    root = tmp_path_factory.mktemp("lineage")
    write_judged(root, KEYS, verdict="accepted")
    folders = {"artifacts": root / "artifacts", "reports": root / "reports"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(root / "bentoml"))
        patch.setattr(packaging, "find_commit", lambda: packaging.Commit("c" * 40, 1_760_000_000))
        packaging.package(PackageSettings(model="hstu", name="hstuflow"), **folders)
        write_challenge(root)
        registry.promote(**folders, registry=root / "registry")
    return root


@pytest.fixture
def trace(root, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(root / "bentoml"))
    return lambda tag, **options: lineage(tag, registry=root / "registry", **options)


def test_bento_model_and_latest_lead_to_the_same_lineage(root, trace):
    packaged = json.loads((root / "artifacts" / "package.json").read_text())
    found = [trace(tag) for tag in (packaged["tag"], packaged["model_tag"], "hstuflow:latest")]
    assert found[0] == found[1] == found[2]
    for name in ("model_tag", "verdict", "data_hash", "git_commit", "metrics"):
        assert found[0][name] == packaged[name]
    trained = json.loads((root / "artifacts/checkpoints/time_split/hstu/checkpoint.json").read_text())
    assert found[0]["settings"] == trained["settings"]
    assert [(one["what"], one["tag"]) for one in found[0]["decisions"]] == [("promoted", packaged["tag"])]


def test_a_person_reads_what_and_why_and_a_program_reads_the_file(root, trace, tmp_path, capsys):
    packaged = json.loads((root / "artifacts" / "package.json").read_text())
    found = trace(packaged["tag"], out=tmp_path / "lineage.json")
    assert json.loads((tmp_path / "lineage.json").read_text()) == found
    printed = capsys.readouterr().out
    for fact in (packaged["data_hash"], "c" * 40, "promoted", "max_len 6"):
        assert fact in printed


def test_a_tag_that_the_store_lacks_is_named(trace):
    with pytest.raises(StateError, match="hstuflow:nothing: is not in the BentoML store"):
        trace("hstuflow:nothing")
