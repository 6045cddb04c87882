"""Two models on the same users: the difference, its interval, and what must not matter to them."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from components.metrics import bootstrap_interval, sign_flip_test
from components.ranking.paired import FEW_USERS, Paired, compare_users

PAIRS = st.integers(1, 40).flatmap(
    lambda users: arrays("float64", (2, users), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
)


def compare(a_U, b_U, seed=1):
    return compare_users(torch.as_tensor(a_U), torch.as_tensor(b_U), samples=200, confidence=0.9, seed=seed)


def test_it_is_the_mean_difference_with_the_bootstrap_interval_and_the_sign_flip_test():
    random = torch.Generator().manual_seed(0)
    b_U = torch.rand(50, generator=random, dtype=torch.float64)
    a_U = b_U + 0.02 + 0.1 * torch.rand(50, generator=random, dtype=torch.float64)
    found, difference_U = compare(a_U, b_U), (a_U - b_U).sort().values
    low, high = bootstrap_interval(difference_U[:, None], samples=200, confidence=0.9, seed=1)
    assert found.difference == pytest.approx(float((a_U - b_U).mean()), abs=5e-7)
    assert (found.low, found.high) == pytest.approx((low.item(), high.item()), abs=5e-7)
    assert found.p_value == pytest.approx(sign_flip_test(difference_U, samples=200, seed=1), abs=5e-7)
    assert (found.confidence, found.num_users) == (0.9, 50)


def test_identical_models_differ_by_exactly_0_and_p_is_1():
    found = compare([0.1, 0.5, 0.9] * 20, [0.1, 0.5, 0.9] * 20)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.better is None


@given(PAIRS, st.randoms(use_true_random=False))
def test_permuting_the_users_changes_nothing(pair, chance):
    order = list(range(pair.shape[1]))
    chance.shuffle(order)
    assert compare(*pair) == compare(*pair[:, order])


@given(PAIRS)
def test_swapping_the_models_turns_the_signs_and_nothing_else(pair):
    there, back = compare(*pair), compare(*pair[::-1])
    if there.difference != 0:  # else neither side comes first
        assert (there.difference, there.low, there.high) == (-back.difference, -back.high, -back.low)
        assert {there.better, back.better} in ({"a", "b"}, {None})
    assert there.p_value == back.p_value


def test_a_difference_of_nothing_but_rounding_has_p_1_from_both_sides():
    a_U, b_U = (torch.tensor(values * 20, dtype=torch.float64) for values in ([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]))
    assert compare(a_U, b_U).p_value == compare(b_U, a_U).p_value == 1.0


def test_pairing_finds_what_the_spread_of_the_users_hides():
    users_U = torch.linspace(0, 1, 100, dtype=torch.float64)
    found = compare(users_U + 0.01 + 0.005 * torch.sin(users_U * 99), users_U)
    assert found.better == "a"
    assert found.high - found.low < 0.01 < users_U.std()


@pytest.mark.parametrize(
    ("low", "high", "p_value", "num_users", "better"),
    [
        (0.01, 0.02, 0.5, FEW_USERS, "a"),
        (-0.02, -0.01, 0.5, FEW_USERS, "b"),
        (0.0, 0.02, 0.01, FEW_USERS, None),
        (-0.02, 0.0, 0.01, FEW_USERS, None),
        (0.01, 0.02, 0.5, FEW_USERS - 1, None),
        (0.01, 0.02, 0.01, FEW_USERS - 1, "a"),
        (-0.02, -0.01, 0.01, FEW_USERS - 1, "b"),
    ],
)
def test_the_interval_decides_and_with_few_users_the_test_has_to_agree(low, high, p_value, num_users, better):
    assert Paired((low + high) / 2, low, high, 0.95, p_value, num_users).better == better


@pytest.mark.parametrize(("a_U", "b_U"), [([], []), ([0.1, 0.2], [0.1]), ([0.1], [[0.1, 0.2]])])
def test_without_the_same_users_on_both_sides_there_is_no_answer(a_U, b_U):
    with pytest.raises(ValueError, match="same users on both sides"):
        compare(a_U, b_U)
