"""Time buckets: the thresholds against exact rational arithmetic, and the fast look-up against the definition."""

from fractions import Fraction
from itertools import product

import pytest
import torch

from kernels.time_buckets import TIME_THRESHOLDS, fast_time_buckets, time_buckets


def exp_between(x: Fraction) -> tuple[Fraction, Fraction]:
    """Bounds of exp(x), x >= 0: the Taylor sum of 60 terms for x / 128 and its remainder, both to the 128th power."""
    step = x / 128
    term, total = Fraction(1), Fraction(1)
    for k in range(1, 60):
        term *= step / k
        total += term
    return total**128, (total + 2 * term) ** 128


@pytest.mark.parametrize("b", range(1, 129))
def test_a_threshold_is_the_first_integer_from_exp_of_0301_b_on(b):
    low, high = exp_between(Fraction(301, 1000) * b)
    threshold = TIME_THRESHOLDS[b - 1]
    assert threshold - 1 < low
    assert high <= threshold


@pytest.mark.parametrize(
    ("gap", "bucket"),
    [(0, 0), (1, 0), (2, 2), (3, 3), (-3, 3), (86_400, 37), (365 * 86_400, 57), (2**62, 128)],
)
def test_a_gap_falls_into_the_bucket_that_the_formula_gives(gap, bucket):
    assert time_buckets(torch.tensor([gap])).item() == bucket


def test_the_bucket_changes_exactly_at_its_threshold():
    thresholds = torch.tensor(TIME_THRESHOLDS[1:])  # the first two are both 2
    numbers = torch.arange(2, 129)
    assert torch.equal(time_buckets(thresholds), numbers)
    assert (time_buckets(thresholds - 1) < numbers).all()


def gaps_near(centres, reach):
    return torch.tensor([c + step for c, step in product(centres, range(-reach, reach + 1))])


@pytest.mark.parametrize(
    "gaps",
    [
        torch.arange(-3, 200_000),
        gaps_near(TIME_THRESHOLDS, 50),
        gaps_near([2**e + 2 ** max(e - 3, 0) * m for e, m in product(range(62), range(8))], 40),
        gaps_near([-threshold for threshold in TIME_THRESHOLDS], 2),
        torch.randint(2**62, (100_000,), generator=torch.Generator().manual_seed(1)) >> torch.arange(100_000) % 62,
    ],
    ids=["small", "thresholds", "float32 slices", "negative", "random"],
)
def test_the_fast_look_up_agrees_with_the_definition(gaps):
    assert torch.equal(fast_time_buckets(gaps), time_buckets(gaps))


def test_the_fast_look_up_keeps_the_shape():
    assert fast_time_buckets(torch.zeros(2, 3, 4, dtype=torch.int64)).shape == (2, 3, 4)
    assert fast_time_buckets(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5)


def test_the_tables_are_where_the_gaps_are():
    assert fast_time_buckets(torch.zeros(2, 3, dtype=torch.int64, device="meta")).device.type == "meta"
