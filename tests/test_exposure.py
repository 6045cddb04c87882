"""Inserted items get their share of the places and not all of them: the length of mapped vectors."""

import json

import numpy as np
import pytest
import torch
from made_items import load_with_map

from components.catalogue import NewItem
from components.serving.exposure import Asked, find_length
from components.serving.item_map import Metadata, load_item_map

Q, X, D, FOLDS = 40, 200, 8, 5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def made():
    """Histories in a narrow cone, trained items mostly away from it, mapped ones right in it."""
    draw = np.random.default_rng(0)
    middle = np.eye(D)[0]
    y_QD = unit(middle + 0.15 * draw.standard_normal((Q, D)))
    trained = unit(-0.3 * middle + 0.6 * draw.standard_normal((X, D)))
    mapped = unit(0.5 * middle + 0.6 * draw.standard_normal((X, D)))
    asked = Asked([draw.choice(X, 5, replace=False) for _ in range(Q)], y_QD)
    return asked, trained, mapped, np.array_split(draw.permutation(X), FOLDS)


def share(shown, trained, parts, asked):
    """By sorting everything."""
    taken = 0
    for part, rows in zip(parts, np.split(shown, np.cumsum([len(p) for p in parts])[:-1]), strict=True):
        vectors = trained.copy()
        vectors[part] = rows
        for had, y_D in zip(asked.rows, asked.y_QD, strict=True):
            scores = vectors @ y_D
            scores[had] = -np.inf
            taken += np.isin(np.argsort(-scores)[:10], part).sum()
    return taken / (10 * len(parts) * len(asked.rows))


def test_held_out_items_take_their_share_of_the_places_and_hardly_less(made):
    asked, trained, mapped, parts = made
    length = find_length(mapped, parts, trained, asked)
    assert share(mapped, trained, parts, asked) > 0.5
    assert 1 / FOLDS - 0.02 < share(length * mapped, trained, parts, asked) <= 1 / FOLDS
    assert 0 < length < 1


def test_items_that_take_no_more_than_their_share_stay_as_they_are(made):
    asked, trained, _, parts = made
    own = trained[np.concatenate(parts)]
    assert share(own, trained, parts, asked) == pytest.approx(1 / FOLDS)
    assert find_length(own, parts, trained, asked) == 1


def test_where_all_other_scores_are_negative_no_length_helps(made):
    asked, trained, mapped, parts = made
    away = unit(trained - 3 * np.eye(D)[0])
    assert (asked.y_QD @ away.T).max() < 0
    assert find_length(mapped, parts, away, asked) == 1


def test_fewer_items_than_places_are_no_trouble(made):
    asked, trained, mapped, _ = made
    few = Asked([rows[rows < 7] for rows in asked.rows], asked.y_QD)
    parts = [np.array([0, 4]), np.array([1, 5]), np.array([2, 6]), np.array([3])]
    assert 0 <= find_length(mapped[:7], parts, trained[:7], few) <= 1


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_with_map(tmp_path_factory.mktemp("exposure") / "checkpoint")


def test_an_inserted_item_s_scores_are_its_cosines_times_the_length(loaded):
    recommender, item_map = loaded
    items = [NewItem("new", "Laughter (1991)", {"genres": ["Comedy"]})]
    rows_MD = item_map.vectors([Metadata(item.title, item.attributes) for item in items])
    whole, half = recommender.with_items(items, rows_MD), recommender.with_items(items, rows_MD, 0.5)
    history = [("item-3", 5), ("new", 9)]
    y_1D = whole.encode(*whole.read(history), 20)
    assert torch.equal(half.encode(*half.read(history), 20), y_1D)  # in histories it counts as before
    scores, halves = (one.rank(y_1D, ["item-3", "item-5", "new"]) for one in (whole, half))
    assert halves == (*scores[:2], pytest.approx(scores[2] / 2))


def test_a_map_keeps_its_length_and_one_of_an_earlier_package_has_none(loaded, tmp_path):
    item_map = loaded[1]
    item_map.save(tmp_path)
    assert load_item_map(tmp_path, dim=8).worth == item_map.worth
    facts = json.loads((tmp_path / "item_map.json").read_text())
    del facts["worth"]["length"]
    (tmp_path / "item_map.json").write_text(json.dumps(facts))
    assert load_item_map(tmp_path, dim=8).worth.length == 1
