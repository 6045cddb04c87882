"""gated_norm_triton against the definition in float64: odd shapes, strides, dtypes. How to run: made_interpreted.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_interpreted import DEVICE
from torch.nn.functional import layer_norm

from kernels import gated_norm, gated_norm_torch, gated_norm_triton
from kernels.dropout_mask import dropout_mask

EPS, SEED = 1e-6, 1234
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _fresh_tensors_hold_nan(monkeypatch):
    """What an operator does not write is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.nan))


def make(num_rows, width, dtype=FLOAT32, seed=0):
    """Return grad, o, u: slices of one fused tensor, as in the model, with NaN between them."""
    generator = torch.Generator().manual_seed(seed)
    fused = torch.full((num_rows, 3, width + 5), torch.nan, dtype=dtype)
    fused[:, :, :width] = torch.randn(num_rows, 3, width, generator=generator).to(dtype)
    return fused.to(DEVICE)[:, :, :width].unbind(1)


def run(backend, grad, o, u, dropout):
    y = backend.forward(o, u, EPS, dropout, SEED)
    return y, *backend.backward(grad, o, u, EPS, dropout, SEED)


def expected(grad, o, u, dropout):
    return run(gated_norm_torch, grad.double(), o.double(), u.double(), dropout)


def errors(found, right):
    """Return the root mean square error of each tensor."""
    return [float((a - b).detach().square().mean().sqrt()) for a, b in zip(found, right, strict=True)]


def assert_right(grad, o, u, dropout):
    found = run(gated_norm_triton, grad, o, u, dropout)
    for tensor, right in zip(found, expected(grad, o, u, dropout), strict=True):
        assert tensor.is_contiguous()
        assert tensor.dtype == o.dtype
        # A row of few elements all but cancels in the gradient of o: no relative error there.
        assert (tensor - right).abs().max() <= 2e-6 * max(1, right.abs().max()), (tuple(o.shape), dropout)


@given(num_rows=st.integers(1, 70), width=st.integers(3, 140), dropout=st.sampled_from([0.0, 0.2, 0.9]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_output_and_gradients_are_those_of_the_definition(num_rows, width, dropout):
    assert_right(*make(num_rows, width), dropout)


@pytest.mark.parametrize(("num_rows", "width"), [(2000, 1), (3, 1024), (2, 4097), (2, 8191), (2, 8192)])
def test_narrow_and_wide_rows(num_rows, width):
    assert_right(*make(num_rows, width), 0.3)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("width", [50, 64, 300])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_half_precision_is_at_most_twice_as_far_off_as_torch_in_that_dtype(dtype, width, dropout):
    grad, o, u = make(40, width, dtype)
    right = expected(grad, o, u, dropout)
    leaves = [x.clone().requires_grad_() for x in (o, u)]
    y = layer_norm(leaves[0], (width,), eps=EPS) * leaves[1]
    if dropout:
        y = y * dropout_mask(y, dropout, SEED)
    torchs = y, *torch.autograd.grad(y, leaves, grad)
    # The interpreter cuts bfloat16 off instead of rounding it: an error twice as large.
    both = errors(run(gated_norm_triton, grad, o, u, dropout), right), errors(torchs, right)
    assert all(ours <= 2 * theirs for ours, theirs in zip(*both, strict=True)), both


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_strides_do_not_matter(dtype):
    dense = [x.contiguous() for x in make(37, 50, dtype)]
    grad, o, u = dense
    spread = torch.full((37, 2**20), torch.nan, dtype=dtype, device=DEVICE)[:, :50].copy_(u)
    for strided in ((grad, o.t().contiguous().t(), u), (grad, o, spread), make(37, 50, dtype)):
        for a, b in zip(run(gated_norm_triton, *strided, 0.2), run(gated_norm_triton, *dense, 0.2), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(), (50,), (37, 1)], ids=str)
def test_a_broadcast_gradient_is_taken(shape):
    _, o, u = make(37, 50)
    assert_right(torch.full(shape, 0.7, device=DEVICE).expand(37, 50), o, u, 0.2)


def test_rows_beyond_2_31_elements_are_found():
    num_rows, width, stride = 2200, 64, 2**20 - 64
    assert (num_rows - 64) * stride > 2**31
    storage = torch.UntypedStorage(2 * num_rows * stride, device=DEVICE)  # 4 GiB of addresses, hardly any touched
    _, o, u = (x.contiguous() for x in make(num_rows, width, BFLOAT16))
    far = torch.tensor([], dtype=BFLOAT16, device=DEVICE).set_(storage, 0, (num_rows, width), (stride, 1)).copy_(o)
    assert torch.equal(
        gated_norm_triton.forward(far, u, EPS, 0.0, SEED)[-64:], gated_norm_triton.forward(o, u, EPS, 0.0, SEED)[-64:]
    )


@pytest.mark.parametrize("width", [1, 2, 25, 64, 8192])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_the_mask_is_that_of_the_other_backends_element_by_element(width, seed):
    ones = torch.ones(9, width, device=DEVICE)
    o = torch.randn(9, width, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    _, grad_u = gated_norm_triton.backward(ones, o, ones, EPS, 0.3, seed)
    y = gated_norm_triton.forward(o, ones, EPS, 0.3, seed)
    normed = gated_norm_triton.forward(o, ones, EPS, 0.0, seed)
    mask = dropout_mask(ones, 0.3, seed)
    torch.testing.assert_close(y, normed * mask, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_u, normed * mask, rtol=1e-6, atol=0)
    assert torch.equal(y == 0, (mask == 0) | (normed == 0))


def test_the_share_that_is_dropped_and_the_scale_of_the_rest():
    num_rows, width, dropout = 300, 100, 0.2
    o = torch.tensor([1.0, -1.0], device=DEVICE).repeat(num_rows, width // 2)
    y = gated_norm_triton.forward(o, o, 1e-12, dropout, SEED)  # o is its own norm, o * o = 1
    deviation = (dropout * (1 - dropout) / (num_rows * width)) ** 0.5
    assert abs(float((y == 0).float().mean()) - dropout) < 4 * deviation
    torch.testing.assert_close(y[y > 0], torch.full_like(y[y > 0], 1 / (1 - dropout)), rtol=1e-4, atol=0)
    assert abs(float(y.mean()) - 1) < 4 * deviation / (1 - dropout)


def test_nothing_is_dropped_where_dropout_is_0():
    grad, o, u = make(33, 50)
    some = gated_norm_triton.forward(o, u, EPS, 0.5, SEED)
    all_ = gated_norm_triton.forward(o, u, EPS, 0.0, SEED)
    assert bool((all_ != 0).all())
    assert torch.equal(some[some != 0], 2 * all_[some != 0])
    for seed in (1, 2):
        assert torch.equal(gated_norm_triton.forward(o, u, EPS, 0.0, seed), all_)
    assert_right(grad, o, u, 0.0)


def test_the_same_call_gives_the_same_bits_and_a_row_does_not_depend_on_the_rows_after_it():
    grad, o, u = make(50, 64)
    found = run(gated_norm_triton, grad, o, u, 0.2)
    for a, b, c in zip(
        found,
        run(gated_norm_triton, grad, o, u, 0.2),
        run(gated_norm_triton, grad[:7], o[:7], u[:7], 0.2),
        strict=True,
    ):
        assert torch.equal(a, b)
        assert torch.equal(a[:7], c)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 8193), FLOAT32), ((5, 7), torch.float64), ((5, 0), FLOAT32)], ids=str
)
def test_what_the_kernels_do_not_take_is_left_to_torch(shape, dtype):
    inputs = make(*shape, dtype)
    for a, b in zip(run(gated_norm_triton, *inputs, 0.2), run(gated_norm_torch, *inputs, 0.2), strict=True):
        assert torch.equal(a, b)


def test_no_rows_give_no_rows():
    assert [tuple(x.shape) for x in run(gated_norm_triton, *make(0, 50), 0.2)] == [(0, 50)] * 3


def test_the_operator_reaches_these_kernels_and_torch_agrees():
    found = {}
    for backend in ("triton", "torch"):
        grad, o, u = (x.clone().requires_grad_() for x in make(20, 50))
        torch.manual_seed(3)
        y = gated_norm(o, u, dropout=0.4, training=True, backend=backend)
        found[backend] = y.detach(), *torch.autograd.grad(y, [o, u], grad.detach())
    assert 0.2 < float((found["triton"][0] == 0).float().mean()) < 0.6
    assert max(errors(found["triton"], found["torch"])) < 1e-6
