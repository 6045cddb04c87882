"""The dropout mask against its definition in Python integers, its statistics, and the operator that applies it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import BACKENDS, assert_threads_change_nothing, needs_cpp
from torch.library import opcheck

from kernels import dropout
from kernels.dropout_mask import dropout_mask


def mix(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def mask_by_hand(num_rows, width, share, seed):
    """The head of dropout_mask.py, in Python's unbounded integers."""
    half, threshold = -(-width // 2), round(65536 * share)

    def element(row, column):
        word = mix((mix((mix(seed) + row) % 2**32) + 0x9E3779B9 * (column % half)) % 2**32)
        bits = word >> 16 if column >= half else word & 0xFFFF
        return 65536 / (65536 - threshold) if bits >= threshold else 0.0

    return torch.tensor([[element(row, column) for column in range(width)] for row in range(num_rows)])


def applied(x, share, seed, backend):
    return torch.ops.hstuflow.dropout(x, torch.tensor(seed), share, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    num_rows=st.integers(0, 9),
    width=st.integers(1, 70),
    share=st.floats(0, 0.9999),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_mask_is_the_documented_one_element_by_element(backend, num_rows, width, share, seed):
    expected = mask_by_hand(num_rows, width, share, seed).reshape(num_rows, width)
    assert torch.equal(applied(torch.ones(num_rows, width), share, seed, backend), expected)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.9])
def test_the_dropped_share_is_the_one_asked_for_and_the_mean_stays_one(share):
    num_rows, width = 40_000, 51
    mask = dropout_mask(torch.empty(num_rows, width, dtype=torch.float64), share, seed=7)
    dropped = (mask == 0).double()
    sigma = math.sqrt(share * (1 - share) / mask.numel())
    assert abs(dropped.mean() - share) < 4 * sigma + 2**-17
    assert mask.mean().item() == pytest.approx(1.0, abs=4 * sigma / (1 - share))
    # Of 51 columns and of 40,000 rows, none strays further than such a number of normal variables does.
    by_column = (dropped.mean(0) - share).abs().max() / math.sqrt(share * (1 - share) / num_rows)
    assert by_column < 4.5
    assert (dropped.mean(1).var() * width / (share * (1 - share))).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("other", ["next seed", "next row", "next column", "other half of the word"])
def test_masks_are_uncorrelated(other):
    here = dropout_mask(torch.empty(20_000, 64, dtype=torch.float64), 0.5, seed=3) - 1  # +-1
    there = {
        "next seed": dropout_mask(torch.empty(20_000, 64, dtype=torch.float64), 0.5, seed=4) - 1,
        "next row": here.roll(1, 0),
        "next column": here.roll(1, 1),
        "other half of the word": here.roll(32, 1),
    }[other]
    assert abs((here * there).mean()) < 4 / math.sqrt(here.numel() / 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_dropped_where_the_value_was_and_scaled_alike(backend):
    x = torch.full((60, 33), 2.0, requires_grad=True)
    y = dropout(x, 0.3, training=True, backend=backend)
    y.sum().backward()  # its gradient is one number, expanded
    assert torch.equal(x.grad, y.detach() / 2)
    assert 0 < (x.grad == 0).double().mean() < 0.6


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views_are_taken(backend):
    wide = torch.randn(20, 90)
    for x in (wide[:, 7:40], wide.T[:, ::2]):
        assert torch.equal(applied(x, 0.4, 11, backend), x * dropout_mask(x, 0.4, 11))


def test_the_default_generator_decides():
    x = torch.ones(30, 40)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_outside_training_or_at_a_share_of_zero():
    x = torch.randn(5, 6)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert torch.equal(state, torch.get_rng_state())


@needs_cpp
def test_threads_change_nothing():
    x = torch.randn(5_000, 50)
    assert_threads_change_nothing(lambda: [applied(x, 0.2, 5, "cpu")])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_operator_passes_opcheck_and_keeps_the_dtype(backend, dtype):
    x = torch.randn(7, 9, dtype=dtype, requires_grad=True)
    opcheck(torch.ops.hstuflow.dropout.default, (x, torch.tensor(5), 0.3, backend))
    assert applied(x, 0.3, 5, backend).dtype == dtype


@pytest.mark.parametrize(
    ("x", "share", "message"),
    [
        (torch.zeros(3), 0.1, r"x has shape \(3,\)"),
        (torch.zeros(3, 3), 1.0, "share is 1.0"),
        (torch.zeros(3, 3), -0.1, "-0.1"),
    ],
    ids=["shape", "one", "negative"],
)
def test_arguments_that_do_not_fit_are_named(x, share, message):
    with pytest.raises(ValueError, match=message):
        dropout(x, share, training=True)
