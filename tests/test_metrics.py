"""Ranks, HR, NDCG, MRR under ties; averages per user; bootstrap and sign-flip test."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components import metrics
from components.metrics import (
    Ranks,
    average_by_user,
    bootstrap_interval,
    expected_hit_rate,
    expected_mrr,
    expected_ndcg,
    measure,
    metric_names,
    rank_targets,
    sign_flip_test,
)

CUTOFFS = (1, 3, 10)


def ranks_of(scores, target):
    return rank_targets(torch.tensor([scores], dtype=torch.float32), torch.tensor([target]))


def metrics_by_hand(scores, target, k):
    """Put the target at every place among its equals; average HR@k, NDCG@k and reciprocal rank over these."""
    above = sum(score > scores[target] for score in scores)
    equal = sum(score == scores[target] for score in scores)
    places = range(above + 1, above + equal + 1)
    hits = [float(place <= k) for place in places]
    gains = [1 / math.log2(place + 1) if place <= k else 0.0 for place in places]
    return [sum(values) / equal for values in (hits, gains, [1 / place for place in places])]


rankings = st.lists(st.integers(0, 4), min_size=1, max_size=12).flatmap(
    lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
)


def test_metrics_of_an_untied_target_are_those_of_its_rank():
    ranks = ranks_of([0.9, 0.1, 0.5, 0.7], 2)  # third
    assert (ranks.above.item(), ranks.tied.item()) == (2, 0)
    assert [expected_hit_rate(ranks, k).item() for k in (2, 3)] == [0.0, 1.0]
    assert expected_ndcg(ranks, 2).item() == 0.0
    assert expected_ndcg(ranks, 3).item() == pytest.approx(0.5)  # 1 / log2(4)
    assert expected_mrr(ranks).item() == pytest.approx(1 / 3)


def test_a_tie_across_the_cutoff_counts_half():
    ranks = ranks_of([0.9, 0.5, 0.5, 0.1], 1)  # second or third
    assert expected_hit_rate(ranks, 2).item() == 0.5
    assert expected_ndcg(ranks, 2).item() == pytest.approx(0.5 / math.log2(3))
    assert expected_mrr(ranks).item() == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.parametrize("num_items", [1, 7, 200])
def test_a_constant_scorer_gets_chance_level_exactly(num_items):
    ranks = rank_targets(torch.zeros(3, num_items), torch.tensor([0, num_items // 2, num_items - 1]))
    for k in CUTOFFS:
        places = range(1, min(k, num_items) + 1)
        assert expected_hit_rate(ranks, k).tolist() == pytest.approx([len(places) / num_items] * 3)
        assert expected_ndcg(ranks, k).tolist() == pytest.approx(
            [sum(1 / math.log2(place + 1) for place in places) / num_items] * 3
        )
    assert expected_mrr(ranks).tolist() == pytest.approx([sum(1 / n for n in range(1, num_items + 1)) / num_items] * 3)


@given(rankings, st.integers(1, 15))
def test_metrics_are_the_mean_over_all_orders_of_the_tied_items(ranking, k):
    scores, target = ranking
    ranks = ranks_of(scores, target)
    found = [expected_hit_rate(ranks, k), expected_ndcg(ranks, k), expected_mrr(ranks)]
    assert [value.item() for value in found] == pytest.approx(metrics_by_hand(scores, target, k))


@given(rankings, st.randoms(use_true_random=False))
def test_permuting_the_items_changes_nothing(ranking, random):
    scores, target = ranking
    order = list(range(len(scores)))
    random.shuffle(order)
    permuted = ranks_of([scores[item] for item in order], order.index(target))
    assert torch.equal(measure(permuted, CUTOFFS), measure(ranks_of(scores, target), CUTOFFS))


@given(rankings)
def test_metrics_lie_between_0_and_1_and_grow_with_k(ranking):
    values = dict(zip(metric_names(CUTOFFS), measure(ranks_of(*ranking), CUTOFFS)[0].tolist(), strict=True))
    assert all(0 <= value <= 1 for value in values.values())
    for name in ("hr", "ndcg"):
        assert values[f"{name}@1"] <= values[f"{name}@3"] <= values[f"{name}@10"]
    assert all(values[f"ndcg@{k}"] <= values[f"hr@{k}"] + 1e-12 for k in CUTOFFS)


def test_an_unknown_target_is_a_miss_in_every_metric():
    ranks = rank_targets(torch.zeros(1, 1), torch.tensor([-1]))
    assert measure(ranks, CUTOFFS).tolist() == [[0.0] * len(metric_names(CUTOFFS))]


def test_no_targets_give_no_rows():
    ranks = Ranks(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert measure(ranks, CUTOFFS).shape == (0, 7)


@pytest.mark.parametrize(("scores", "above"), [([math.nan, 0.5, 0.1], 1), ([0.1, math.nan, 0.2], 2)])
def test_a_score_that_is_not_a_number_never_helps_the_target(scores, above):
    ranks = ranks_of(scores, 1)
    assert (ranks.above.item(), ranks.tied.item()) == (above, 0)


def test_every_user_counts_the_same_however_many_targets_they_have():
    values, user_of_target = torch.tensor([[1.0], [0.0], [0.0], [0.6]]), torch.tensor([4, 4, 4, 9])
    users, means = average_by_user(values, user_of_target)
    assert users.tolist() == [4, 9]
    assert means.flatten().tolist() == pytest.approx([1 / 3, 0.6])
    assert torch.equal(average_by_user(values[:, 0], user_of_target)[1], means[:, 0])


def test_the_interval_has_the_width_that_the_central_limit_theorem_says():
    values = torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(values, samples=4000, confidence=0.95, seed=1)
    expected = 2 * 1.96 * values.std(0) / math.sqrt(400)
    assert (high - low).tolist() == pytest.approx(expected.tolist(), rel=0.05)
    assert ((low < values.mean(0)) & (values.mean(0) < high)).all()


def test_the_interval_is_the_same_for_the_same_seed_and_in_any_block_size(monkeypatch):
    values = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values, samples=200, confidence=0.9, seed=1)
    monkeypatch.setattr(metrics, "_RESAMPLED_CELLS", 50 * 7)
    for left, right in zip(whole, bootstrap_interval(values, samples=200, confidence=0.9, seed=1), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    other, _ = bootstrap_interval(values, samples=200, confidence=0.9, seed=2)
    assert not torch.equal(other, whole[0])


@settings(max_examples=30)
@given(st.floats(0, 1), st.integers(1, 40))
def test_users_that_all_agree_leave_no_interval(value, num_users):
    low, high = bootstrap_interval(torch.full((num_users, 1), value), samples=100, confidence=0.95, seed=1)
    assert low.item() == pytest.approx(value)
    assert high.item() == pytest.approx(value)


def test_a_paired_interval_sees_a_difference_that_two_separate_ones_do_not():
    model = torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
    options = {"samples": 1000, "confidence": 0.95, "seed": 1}
    low_of_model, _ = bootstrap_interval(model, **options)
    _, high_of_other = bootstrap_interval(model - 0.01, **options)
    low_of_difference, _ = bootstrap_interval(model - (model - 0.01), **options)
    assert low_of_model < high_of_other
    assert low_of_difference > 0


def test_the_sign_flip_test_agrees_with_counting_all_signs():
    differences = torch.tensor([3.0, 1.0, 2.0, -0.5, 4.0])
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)
    exact = ((signs @ differences).abs() >= differences.sum().abs()).double().mean().item()
    assert sign_flip_test(differences, samples=20_000, seed=1) == pytest.approx(exact, abs=0.01)


def test_the_sign_flip_test_is_sure_of_no_difference_and_never_says_0():
    assert sign_flip_test(torch.zeros(10), samples=100, seed=1) == 1.0
    assert sign_flip_test(torch.ones(60), samples=99, seed=1) == pytest.approx(0.01)
