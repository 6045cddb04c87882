"""The map from an item's metadata to its vector: what it learns, when there is none, and damage."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint
from made_items import GENRES, TITLES, load_with_map

from components.errors import StateError
from components.recommender import Recommender
from components.serving import item_map as module
from components.serving.item_map import Metadata, describe_items, fit_item_map, load_item_map, name_features


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_with_map(tmp_path_factory.mktemp("map") / "checkpoint")


def rows_of(recommender):
    return recommender.model.embedding.item.weight.detach().numpy()


def test_a_title_has_its_words_and_its_last_year_as_features():
    names = name_features(Metadata("2001: A Space Odyssey (1968)", {"genres": ("Sci-Fi", "Drama")}))
    assert names == {
        *("word 2001", "word a", "word space", "word odyssey", "year 1968", "decade 196"),
        *("genres=Sci-Fi", "genres=Drama"),
    }


def test_the_weights_are_those_of_a_dense_ridge_on_directions(loaded):
    recommender, item_map = loaded
    names = [name_features(item) for item in describe_items(recommender.catalogue)]
    dense = np.array([[1.0, *(name in has for name in item_map.features)] for has in names])
    rows = rows_of(recommender).astype(np.float64)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    penalty = np.diag([1e-9] + [item_map.worth.strength] * len(item_map.features))
    expected = np.linalg.inv(dense.T @ dense + penalty) @ dense.T @ directions
    np.testing.assert_allclose(item_map.weights_FD, expected, atol=1e-6)


def test_blocks_of_items_change_nothing(loaded, monkeypatch):
    recommender, item_map = loaded
    monkeypatch.setattr(module, "_BLOCK", 7)
    again = fit_item_map(recommender.catalogue, rows_of(recommender), None)
    np.testing.assert_allclose(again.weights_FD, item_map.weights_FD, atol=1e-9)


def test_held_out_items_are_nearer_to_their_mapped_vector_than_to_the_mean(loaded):
    worth = loaded[1].worth
    assert worth.cosine > worth.cosine_of_mean + 0.1
    assert worth.cosine <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["Action", "Comedy", "Drama", "Horror"]), min_size=1, max_size=4), st.text(max_size=20))
def test_a_mapped_vector_is_as_long_as_a_typical_trained_one(loaded, genres, title):
    [row] = loaded[1].vectors([Metadata(title, {"genres": genres})])
    assert abs(float(row.norm()) - np.median(np.linalg.norm(rows_of(loaded[0]), axis=1))) < 1e-5


def test_the_spread_gives_held_out_vectors_the_trained_ones_distance_to_the_mean():
    random = np.random.default_rng(0)
    mean = np.array([1.0, 0, 0, 0])
    true = module._directions(mean + random.normal(size=(500, 4)))
    mapped = mean + 0.3 * (true - mean)  # shrunk
    spread = module._find_spread(mapped, true, mean)
    made = module._directions(mean + spread * (mapped - mean))
    assert abs((made @ mean).mean() - (true @ mean).mean()) < 1e-3


def test_there_is_no_map_where_metadata_tells_nothing(tmp_path):
    keys = [f"{number}" for number in range(60)]
    silent = Recommender.load(write_checkpoint(tmp_path / "silent", keys, titles=keys))
    assert fit_item_map(silent.catalogue, rows_of(silent), None) is None
    random = Recommender.load(write_checkpoint(tmp_path / "random", keys, titles=TITLES, genres=GENRES, seed=5))
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32) * 0.01 + 1.0
    assert fit_item_map(random.catalogue, rows, None) is None


def test_there_is_no_map_where_all_items_are_described_alike(tmp_path):
    """Then a mapped vector is the mean but for rounding, of which a test of significance may be sure."""
    keys = [f"{number}" for number in range(500)]
    titles = [f"Product {key}" for key in keys]
    alike = Recommender.load(write_checkpoint(tmp_path / "alike", keys, titles=titles))
    for seed in range(12):
        rows = np.random.default_rng(seed).normal(size=(500, 8)).astype(np.float32) * 0.1 + 0.1
        assert fit_item_map(alike.catalogue, rows, None) is None


def test_a_saved_map_makes_the_same_vectors(loaded, tmp_path):
    loaded[1].save(tmp_path)
    again = load_item_map(tmp_path, dim=8)
    items = [Metadata("Film (1991)", {"genres": ["Drama"]}), Metadata("", {})]
    assert (again.vectors(items) == loaded[1].vectors(items)).all()
    assert again.worth == loaded[1].worth
    assert load_item_map(tmp_path / "elsewhere", dim=8) is None


def test_a_map_that_does_not_fit_is_refused_in_one_sentence(loaded, tmp_path):
    loaded[1].save(tmp_path)
    with pytest.raises(StateError, match="does not fit the model"):
        load_item_map(tmp_path, dim=9)
    (tmp_path / "item_map.safetensors").write_bytes(b"no weights")
    with pytest.raises(StateError, match="cannot be read"):
        load_item_map(tmp_path, dim=8)
    (tmp_path / "item_map.safetensors").unlink()
    with pytest.raises(StateError, match="is missing"):
        load_item_map(tmp_path, dim=8)
    (tmp_path / "item_map.json").write_text(json.dumps({"features": {}}))
    with pytest.raises(StateError, match="cannot be read"):
        load_item_map(tmp_path, dim=8)


@pytest.mark.parametrize(
    "change",
    [{"worth": None}, {"worth": {"more": 1}}, {"features": None}, {"features": [1]}, {"norm": None}, {"norm": -1.0}],
    ids=str,
)
def test_facts_of_a_map_that_are_none_are_refused_in_one_sentence(loaded, tmp_path, change):
    loaded[1].save(tmp_path)
    facts = json.loads((tmp_path / "item_map.json").read_text())
    (tmp_path / "item_map.json").write_text(json.dumps(facts | change))
    with pytest.raises(StateError, match="cannot be read"):
        load_item_map(tmp_path, dim=8)


def test_a_map_with_weights_that_are_no_numbers_is_refused(loaded, tmp_path):
    replace(loaded[1], mean_D=np.full_like(loaded[1].mean_D, np.nan)).save(tmp_path)
    with pytest.raises(StateError, match="holds what is no number"):
        load_item_map(tmp_path, dim=8)
