"""Coverage, Gini, novelty, diversity and debiased NDCG, each against a value worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.metrics import Ranks, average_by_user, expected_ndcg
from components.ranking.beyond import MAX_WEIGHT, TOP, debias, diversity, gini, mark_genres, measure_beyond, novelty
from components.ranking.targets import Targets

counts = st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any)


def made_targets(users, items):
    nothing = np.zeros(len(users), dtype=np.int64)
    return Targets(nothing, np.array(users), np.array(items), *[nothing] * 5)


def test_gini_is_0_where_all_are_equal_and_nearly_1_where_one_has_all():
    assert gini(torch.tensor([3, 3, 3, 3])) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(3 / 4)
    assert math.isnan(gini(torch.tensor([0, 0])))


@given(counts)
def test_gini_is_half_the_mean_difference_over_the_mean(times):
    values = np.array(times, dtype=float)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini(torch.tensor(times)) == pytest.approx(expected, abs=1e-9)


def test_novelty_is_the_mean_surprise_of_what_is_listed():
    lists = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    assert novelty(lists, np.array([4, 2, 2]))[:2].tolist() == pytest.approx([(1 + 2) / 2, 2])
    assert novelty(lists, np.array([4, 2, 2]))[2].isnan()


def test_diversity_is_the_mean_distance_of_the_pairs_that_have_genres():
    genres = mark_genres(["a|b", "b|c", None, "a|b", ""])
    lists = torch.tensor([[0, 1, 3], [0, 1, 2], [0, 2, 4], [0, 3, -1]])
    found = diversity(lists, genres)
    assert found[[0, 1, 3]].tolist() == pytest.approx([(2 / 3 + 2 / 3 + 0) / 3, 2 / 3, 0])
    assert found[2].isnan()


def test_the_debiased_gain_weighs_a_rare_item_s_target_more_up_to_the_limit():
    targets = made_targets([7, 7, 8, 9], [0, 1, 2, -1])
    weights = np.array([1, 2, MAX_WEIGHT, MAX_WEIGHT]) / np.array([2, 2, 1, 1])  # item 1: a quarter of the events
    gains = torch.tensor([0.2, 0.4, 0.6, 0.0]).double()
    expected = (weights * gains.numpy()).sum() / weights.sum()
    assert debias(gains, targets, np.array([40_000, 10_000, 1])) == pytest.approx(expected)


def test_among_equally_frequent_items_nothing_is_to_be_debiased():
    targets, gains = made_targets([1, 1, 1, 2], [0, 1, 2, 0]), torch.tensor([0.1, 0.2, 0.6, 0.5]).double()
    plain = average_by_user(gains, torch.from_numpy(targets.users))[1].mean()
    assert debias(gains, targets, np.array([5, 5, 5])) == pytest.approx(float(plain))


@pytest.fixture
def ranked():
    """Two users with a known target each, and a cold one without a list."""
    top = torch.full((3, TOP), -1)
    top[0, :2], top[1, :2] = torch.tensor([0, 1]), torch.tensor([0, 2])
    ranks = Ranks(torch.tensor([0, 2, -1]), torch.zeros(3, dtype=torch.int64))
    return made_targets([1, 2, 2], [0, 1, -1]), {"filtered": ranks, "unfiltered": ranks, "top": top}


def test_all_figures_of_a_scorer_come_together(ranked):
    found = measure_beyond(*ranked, np.array([8, 4, 4]), ["a", "b", "a|b"])
    assert found["coverage@10"] == 1
    assert found["gini@10"] == pytest.approx(1 / 6, abs=1e-6)  # 1, 1, 2 times
    assert found["novelty@10"] == 1.5
    assert found["diversity@10"] == 0.75
    weights, gains = np.array([1, math.sqrt(2) / 2, MAX_WEIGHT / 2]), expected_ndcg(ranked[1]["filtered"], 10)
    assert found["ndcg_debiased@10"] == pytest.approx((weights * gains.numpy()).sum() / weights.sum(), abs=1e-6)


def test_without_genres_diversity_is_not_made_up(ranked):
    assert measure_beyond(*ranked, np.array([8, 4, 4]), [None] * 3)["diversity@10"] is None
