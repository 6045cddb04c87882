"""gated_norm: torch against the formula and finite differences, C++ against float64, and what must not matter."""

from itertools import product

import pytest
import torch
from made_rows import BACKENDS, assert_threads_change_nothing, needs_cpp, normal
from torch.library import opcheck
from torch.nn.functional import layer_norm

from kernels import gated_norm
from kernels.dropout_mask import dropout_mask

EPS = 1e-6
SHAPES = list(product([0, 1, 7, 129], [1, 16, 25, 50, 130]))


def run(backend, o, u, grad, dropout=0.2, seed=17):
    """Return y and the gradients of o and u."""
    o, u = (x.detach().requires_grad_() for x in (o, u))
    y = torch.ops.hstuflow.gated_norm(o, u, torch.tensor(seed), EPS, dropout, backend)
    y.backward(grad)
    return y.detach(), o.grad, u.grad


def assert_close(found, expected):
    """Within 1e-5 of the largest value, or of 1 where an exact gradient cancels to less."""
    for tensor, right in zip(found, expected, strict=True):
        assert tensor.shape == right.shape
        scale = max([1.0, *right.abs().flatten().tolist()])
        assert ((tensor - right).abs() <= 1e-5 * scale).all()


def test_the_torch_backend_is_the_formula():
    o, u = normal(20, 12), normal(20, 12, seed=1)
    y = torch.ops.hstuflow.gated_norm(o, u, torch.tensor(5), EPS, 0.3, "torch")
    torch.testing.assert_close(y, layer_norm(o, (12,), eps=EPS) * u * dropout_mask(o, 0.3, 5))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_finite_differences_agree_with_the_gradients(dropout):
    z = normal(6, 30).requires_grad_()

    def gated(z):
        return torch.ops.hstuflow.gated_norm(z[:, 3:12], z[:, 20:29], torch.tensor(8), EPS, dropout, "torch")

    assert torch.autograd.gradcheck(gated, z)


@needs_cpp
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("num_rows", "width"), SHAPES)
def test_cpp_is_within_1e5_of_float64_forward_and_backward(num_rows, width, dropout):
    o, u, grad = 3 * normal(num_rows, width) + 1, normal(num_rows, width, seed=1), normal(num_rows, width, seed=2)
    expected = run("torch", o, u, grad, dropout)
    assert_close(run("cpu", o.float(), u.float(), grad.float(), dropout), expected)


@needs_cpp
def test_cpp_takes_views_of_any_strides():
    z, expanded = normal(40, 200).float(), torch.ones(1, 1).expand(40, 50)
    views = [(z[:, :50], z[:, 100:150], expanded), (z.T[:40, :25], z[:, ::8], z[:, 3:28])]
    for o, u, grad in views:
        assert_close(run("cpu", o, u, grad), run("torch", o.double(), u.double(), grad.double()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped_is_dropped_in_both_directions_and_by_the_same_mask_everywhere(backend):
    o, u, grad = (normal(64, 50, seed=s).float() for s in range(3))
    y, _, grad_u = run(backend, o, u, grad, dropout=0.5)
    kept = dropout_mask(o, 0.5, 17) > 0
    assert torch.equal(y != 0, kept)
    assert torch.equal(grad_u != 0, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_variance_stay_finite(backend):
    o = torch.cat([torch.zeros(3, 18), torch.full((3, 18), 1e4)])
    for tensor in run(backend, o, torch.ones(6, 18), normal(6, 18).float()):
        assert tensor.isfinite().all()
    assert (run(backend, o, torch.ones(6, 18), torch.ones(6, 18))[0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_no_other(backend, poison):
    o, u, grad = (normal(9, 21, seed=s).float() for s in range(3))
    o[4, 2] = poison
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    for tensor in run(backend, o, u, grad, dropout=0.0):
        assert tensor[4].isnan().any()
        assert tensor[others].isfinite().all()


@needs_cpp
def test_threads_change_nothing():
    o, u, grad = (normal(5_000, 25, seed=s).float() for s in range(3))
    assert_threads_change_nothing(lambda: run("cpu", o, u, grad))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(backend, dtype):
    o, u, grad = (normal(30, 50, seed=s).to(dtype) for s in range(3))
    expected = run("torch", o.float(), u.float(), grad.float())
    for tensor, right in zip(run(backend, o, u, grad), expected, strict=True):
        assert torch.equal(tensor, right.to(dtype))


# ---- the public function


def test_a_seed_of_torch_makes_training_reproducible():
    o, u = normal(30, 8), normal(30, 8, seed=1)
    torch.manual_seed(3)
    first, second = (gated_norm(o, u, dropout=0.5, training=True) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, gated_norm(o, u, dropout=0.5, training=True))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", ["reference", "auto", *BACKENDS])
def test_without_dropout_it_is_exact_and_draws_no_number(backend):
    o, u = normal(30, 8), normal(30, 8, seed=1)
    state = torch.get_rng_state()
    for dropout, training in ((0.0, True), (0.5, False)):
        y = gated_norm(o, u, dropout=dropout, training=training, backend=backend)
        torch.testing.assert_close(y, layer_norm(o, (8,), eps=EPS) * u, rtol=1e-14, atol=1e-14)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("training", [False, True])
def test_with_and_without_gradients_it_gives_the_same(backend, training):
    o, u = normal(30, 50).float(), normal(30, 50, seed=1).float()
    torch.manual_seed(5)
    with_gradients = gated_norm(o, u, dropout=0.5, training=training, backend=backend)
    torch.manual_seed(5)
    with torch.no_grad():
        without = gated_norm(o, u, dropout=0.5, training=training, backend=backend)
    torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operators_pass_opcheck(backend, dtype):
    o, u, grad = (normal(7, 9, seed=s).to(dtype) for s in range(3))
    rest = torch.tensor(5), EPS, 0.3, backend
    opcheck(torch.ops.hstuflow.gated_norm.default, (o.clone().requires_grad_(), u.clone().requires_grad_(), *rest))
    opcheck(torch.ops.hstuflow.gated_norm_backward.default, (grad, o, u, *rest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u_LW": torch.zeros(3, 5)}, r"shapes \(3, 4\), \(3, 5\)"),
        ({"o_LW": torch.zeros(12), "u_LW": torch.zeros(12)}, r"shapes \(12,\)"),
        ({"u_LW": torch.zeros(3, 4, dtype=torch.float64)}, "u torch.float64"),
        ({"u_LW": torch.zeros(3, 4, device="meta")}, "u is on meta"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"backend": "fast"}, "'fast'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    arguments = {"o_LW": torch.zeros(3, 4), "u_LW": torch.zeros(3, 4), "dropout": 0.2, "training": True}
    with pytest.raises(ValueError, match=message):
        gated_norm(**(arguments | changes))
