"""What a person may type for a model, and what is meant by it."""

import shutil
from pathlib import Path

import pytest
from made_comparisons import checkpoint
from made_evaluations import make_root

from components.comparison.contenders import find_contender, find_side
from components.errors import InputError, StateError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A BentoML store with a Bento, its model, and `latest`, as promotion leaves it."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    bentos, models = (tmp_path / "bentoml" / kind / "hstuflow" for kind in ("bentos", "models"))
    (bentos / "b1").mkdir(parents=True)
    (models / "m1").mkdir(parents=True)
    (bentos / "b1" / "bento.yaml").write_text(
        "name: hstuflow\nlabels:\n  hr@10: '0.2'\nmodels:\n- tag: hstuflow:m1\n  module: ''\n  alias: checkpoint\n"
    )
    (bentos / "latest").write_text("b1")
    return models


def find(name, tmp_path):
    return find_contender(name, checkpoints=tmp_path / "checkpoints", scratch=tmp_path)


@pytest.mark.parametrize("tag", ["hstuflow:b1", "hstuflow:latest", "hstuflow:m1"])
def test_a_tag_of_a_bento_or_of_a_model_means_the_checkpoint_in_the_store(store, tmp_path, tag):
    assert find(tag, tmp_path).folder == store / "m1"


@pytest.mark.parametrize("tag", ["hstuflow:b2", "other:latest", "hstuflow:"])
def test_a_tag_that_the_store_lacks_is_refused(store, tmp_path, tag):
    with pytest.raises(StateError, match=f"{tag}: is not in the BentoML store.*bentoml list"):
        find(tag, tmp_path)


def test_a_bento_without_its_model_is_refused(store, tmp_path):
    (store / "m1").rmdir()
    with pytest.raises(StateError, match="is not in the BentoML store"):
        find("hstuflow:b1", tmp_path)


def test_a_folder_comes_before_a_tag_before_a_baseline_before_a_revision(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("popularity", tmp_path).folder is None
    for name in ("popularity", "hstuflow:b1"):
        Path(name).mkdir()
        assert find(name, tmp_path).folder == Path(name)


@pytest.mark.parametrize("name", ["nonsense", "--help", "artifacts/checkpoints/time_split/nowhere"])
def test_a_name_that_means_nothing_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match=f"{name}: is no model that can be found.*git revision.*popularity_recent"):
        find(name, tmp_path)


def test_one_model_counts_once_and_a_baseline_stands_alone(tmp_path):
    root = make_root(tmp_path / "root")
    copied = shutil.copytree(checkpoint(root), tmp_path / "copy")
    options = {"checkpoints": tmp_path, "scratch": tmp_path}
    with pytest.raises(InputError, match="names the same model twice"):
        find_side(f"{checkpoint(root)},{copied}", **options)
    with pytest.raises(InputError, match="a baseline has no seeds"):
        find_side(f"popularity,{copied}", **options)
    with pytest.raises(InputError, match="names no model"):
        find_side(" , ", **options)
