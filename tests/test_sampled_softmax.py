"""The fused softmax with negatives drawn per row, against float64 autograd of its definition and against torch."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from components.model import softmax
from components.model.softmax import SampledPerRow, softmax_loss
from kernels.cpu import library as cpu_library
from kernels.sampled_softmax import can_fuse, sampled_softmax

pytestmark = pytest.mark.skipif(bool(cpu_library.obstacle()), reason=cpu_library.obstacle())


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory is full of NaN: what the operator forgets to write shows."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *size: x.new_full(size, math.nan))


@pytest.fixture
def threads():
    """Calls to torch.set_num_threads that are undone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def made_problem(num_rows=40, num_samples=9, num_items=12, dim=50):
    """Unit rows and items in float64, targets, and samples with repetitions and the row's own target among them."""
    generator = torch.Generator().manual_seed(num_rows + num_samples + num_items + dim)
    y = normalize(torch.randn(num_rows, dim, generator=generator, dtype=torch.float64))
    table = normalize(torch.randn(num_items, dim, generator=generator, dtype=torch.float64))
    targets = torch.randint(num_items, (num_rows,), generator=generator)
    samples = torch.randint(num_items, (num_rows, num_samples), generator=generator)
    samples[::3, -1] = targets[::3]
    return y, table, targets, samples


def fused(y, table, targets, samples, *, scale, weight=1.0):
    """Losses and their gradients by rows, positives and table, the factor 1 / T included."""
    y, table = y.float(), table.float()
    losses, gradients = sampled_softmax(
        y, table[targets], table, targets, samples, scale=scale, weight=weight, wants_gradients=True
    )
    return [losses, *(scale * gradient for gradient in gradients)]


def defined(y, table, targets, samples, *, scale, weight=1.0):
    """The same by float64 autograd: column 0 is the target, a sample that equals it is taken out."""
    y, positives, table = (x.clone().requires_grad_() for x in (y, table[targets], table))
    own = scale * (y * positives).sum(1, keepdim=True)
    others = scale * (y[:, None, :] * table[samples]).sum(2) + math.log(weight)
    others = others.masked_fill(samples == targets[:, None], -math.inf)
    losses = cross_entropy(torch.cat([own, others], dim=1), torch.zeros_like(targets), reduction="none")
    return [losses.detach(), *torch.autograd.grad(losses.sum(), (y, positives, table))]


def assert_agree(found, expected, tolerance=1e-5):
    """Errors in units of the largest value, or of 0.1: scores up to 20 are rounded by 1e-6."""
    for a, b in zip(found, expected, strict=True):
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * max(largest, 0.1))


@pytest.mark.parametrize(
    ("num_rows", "num_samples", "num_items", "dim"),
    [
        (0, 3, 5, 16),
        (1, 1, 1, 1),
        (7, 1, 3706, 50),
        (7, 128, 5, 130),
        (129, 3, 5, 1),
        (129, 128, 3706, 50),
        (129, 128, 1, 16),
        (33, 17, 40, 300),
    ],
)
def test_losses_and_gradients_are_those_of_the_definition(num_rows, num_samples, num_items, dim):
    problem = made_problem(num_rows, num_samples, num_items, dim)
    assert_agree(fused(*problem, scale=20.0), defined(*problem, scale=20.0))


def test_a_sample_may_stand_for_several_items():
    problem = made_problem()
    assert_agree(fused(*problem, scale=2.0, weight=2.5), defined(*problem, scale=2.0, weight=2.5))


def test_a_row_whose_samples_are_all_its_target_has_no_loss():
    y, table, targets, _ = made_problem()
    losses, *gradients = fused(y, table, targets, targets[:, None].repeat(1, 20), scale=20.0)
    assert_agree([losses, *gradients], [torch.zeros_like(x, dtype=torch.float64) for x in (losses, *gradients)])


@pytest.mark.parametrize("scale", [200.0, 1e4])
def test_low_temperatures_stay_finite(scale):
    """float32 rounds a score of 200 by 1e-5, and the losses with it: hence the tolerance."""
    problem = made_problem(num_rows=129, num_samples=128, num_items=3706)
    found = fused(*problem, scale=scale)
    assert all(x.isfinite().all() for x in found)
    if scale == 200.0:
        assert_agree(found, defined(*problem, scale=scale), tolerance=1e-4)


def test_strided_inputs_are_fine():
    y, table, targets, samples = made_problem()
    wide_y, wide_table = (torch.cat([x, x], dim=1)[:, : x.shape[1]] for x in (y.float(), table.float()))
    strided = wide_y, wide_table, targets.repeat_interleave(2)[::2], samples.T.contiguous().T
    assert not any(x.is_contiguous() for x in strided)
    for a, b in zip(fused(*strided, scale=20.0), fused(y, table, targets, samples, scale=20.0), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_threads_changes_no_bit(threads):
    problem = made_problem(num_rows=129, num_samples=128, num_items=100, dim=130)  # enough to be shared out
    threads(1)
    alone = fused(*problem, scale=20.0)
    threads(3)
    for a, b in zip(fused(*problem, scale=20.0), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("item", [-1, 12])
def test_an_item_outside_the_table_is_an_error(item):
    y, table, targets, samples = made_problem(num_items=12)
    samples[5, 2] = item
    with pytest.raises(IndexError, match="no row of a table of 12"):
        fused(y, table, targets, samples, scale=20.0)


@pytest.mark.parametrize(
    "change",
    [
        {"y_MD": torch.zeros(4, 2)},
        {"positives_MD": torch.zeros(3, 3)},
        {"table_XD": torch.zeros(5, 2)},
        {"targets_M": torch.zeros(3, dtype=torch.int64)},
        {"items_MC": torch.zeros(4, 2, dtype=torch.int32)},
        {"table_XD": torch.zeros(5, 3, dtype=torch.float64)},
    ],
    ids=lambda change: "".join(change),
)
def test_tensors_that_do_not_fit_together_are_refused(change):
    fitting = {
        "y_MD": torch.zeros(4, 3),
        "positives_MD": torch.zeros(4, 3),
        "table_XD": torch.zeros(5, 3),
        "targets_M": torch.zeros(4, dtype=torch.int64),
        "items_MC": torch.zeros(4, 2, dtype=torch.int64),
    }
    sampled_softmax(**fitting, scale=1.0, weight=1.0, wants_gradients=True)
    with pytest.raises(ValueError, match=r"do not fit together|expected float32 and int64"):
        sampled_softmax(**(fitting | change), scale=1.0, weight=1.0, wants_gradients=True)


def loss_and_gradients(y, table, targets, samples):
    y, table = (x.float().requires_grad_() for x in (y, table))
    loss = softmax_loss(y, table[targets], table, SampledPerRow(targets, samples), 0.05)
    return [loss.detach(), *torch.autograd.grad(3 * loss, (y, table))]


def test_the_training_loss_is_the_same_with_and_without_the_library(monkeypatch):
    problem = made_problem(num_rows=300, num_samples=128, num_items=500)
    calls = []
    monkeypatch.setattr(softmax, "sampled_softmax", lambda *a, **k: calls.append(1) or sampled_softmax(*a, **k))
    with_library = loss_and_gradients(*problem)
    assert calls
    monkeypatch.setattr(cpu_library, "obstacle", lambda: "no C++ compiler found")
    without = loss_and_gradients(*problem)
    assert len(calls) == 1
    assert with_library[0].item() == pytest.approx(without[0].item(), rel=1e-6)
    assert_agree(with_library[1:], [x.double() for x in without[1:]])


def test_without_gradients_the_losses_are_the_same():
    y, table, targets, samples = made_problem()
    y, table = y.float().requires_grad_(), table.float()
    loss = softmax_loss(y, table[targets], table, SampledPerRow(targets, samples), 0.05)
    with torch.no_grad():
        assert torch.equal(softmax_loss(y, table[targets], table, SampledPerRow(targets, samples), 0.05), loss)


def test_other_dtypes_are_left_to_torch():
    assert can_fuse(torch.empty(1, 1), "auto")
    assert not can_fuse(torch.empty(1, 1), "torch")
    assert not can_fuse(torch.empty(1, 1, dtype=torch.float64), "auto")
    assert not can_fuse(torch.empty(1, 1, device="meta"), "auto")
