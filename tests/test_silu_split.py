"""silu_split: C++ against plain torch in float64, forward and backward, and what must not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import assert_threads_change_nothing, needs_cpp, normal
from torch.library import opcheck
from torch.nn.functional import silu

from kernels import silu_split

pytestmark = needs_cpp


def run(h, widths, grads, backend):
    """Return the parts and the gradient of h."""
    h = h.detach().requires_grad_()
    parts = silu_split(h, widths, backend=backend)
    torch.autograd.backward(list(parts), grads)
    return [*(part.detach() for part in parts), h.grad]


@given(num_rows=st.integers(0, 40), widths=st.lists(st.integers(1, 60), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_cpp_is_within_2e6_of_float64_forward_and_backward(num_rows, widths):
    h = 4 * normal(num_rows, sum(widths))
    grads = [normal(num_rows, width, seed=1) for width in widths]
    expected = run(h, widths, grads, "torch")
    found = run(h.float(), widths, [grad.float() for grad in grads], "cpu")
    for tensor, right in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor.double(), right, rtol=2e-6, atol=2e-6)


def test_large_values_neither_overflow_nor_turn_into_nan():
    h = torch.tensor([[-1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30]])
    value, slope = run(h, [8], [torch.ones(1, 8)], "cpu")
    torch.testing.assert_close(value, torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 88.0, 200.0, 1e30]]), rtol=0, atol=1e-7)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]]))


def test_strided_views_and_expanded_gradients_are_taken():
    h = normal(100, 40).float().T
    grads = [torch.ones(1, 1).expand(40, 30), normal(70, 40).float().T]
    for tensor, right in zip(run(h, [30, 70], grads, "cpu"), run(h, [30, 70], grads, "torch"), strict=True):
        torch.testing.assert_close(tensor, right)


def test_a_part_that_is_not_used_gets_a_gradient_of_zero():
    h = normal(5, 20).float().requires_grad_()
    silu_split(h, [8, 12], backend="cpu")[1].sum().backward()
    assert (h.grad[:, :8] == 0).all()
    assert (h.grad[:, 8:] != 0).all()


def test_threads_change_nothing():
    h, grads = normal(5_000, 40).float(), [normal(5_000, 40).float()]
    assert_threads_change_nothing(lambda: run(h, [40], grads, "cpu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_plain_torch(dtype):
    h = normal(5, 20).to(dtype)
    assert torch.equal(torch.cat(silu_split(h, [8, 12]), dim=1), silu(h))


def test_a_backend_that_does_not_exist_is_refused_without_gradients_too():
    with torch.no_grad(), pytest.raises(ValueError, match="backend is 'nonsense'"):
        silu_split(torch.zeros(3, 20), [8, 12], backend="nonsense")


def test_without_gradients_plain_torch_gives_the_same_within_2e6():
    h = normal(57, 30)
    with torch.no_grad():
        parts = silu_split(h.float(), [10, 20])
    assert [tuple(part.shape) for part in parts] == [(57, 10), (57, 20)]
    torch.testing.assert_close(torch.cat(parts, dim=1).double(), silu(h), rtol=2e-6, atol=2e-6)


def test_the_operators_pass_opcheck():
    h, grads = normal(9, 30).float(), [normal(9, 10).float(), normal(9, 20).float()]
    opcheck(torch.ops.hstuflow.silu_split.default, (h.clone().requires_grad_(), [10, 20]))
    opcheck(torch.ops.hstuflow.silu_split_backward.default, (grads, h))


@pytest.mark.parametrize("h", [torch.zeros(3, 21), torch.zeros(20)], ids=["too wide", "no matrix"])
def test_parts_that_do_not_add_up_are_named(h):
    with pytest.raises(ValueError, match=r"expected \(L, 20\) for parts of \[8, 12\]"):
        silu_split(h, [8, 12])
