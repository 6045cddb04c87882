"""The losses against torch's cross-entropy, their gradients, their negatives, and that they can be minimised."""

import math

import pytest
import torch
from made_models import made_batch, model_settings
from torch.nn.functional import cross_entropy, normalize

from components.errors import SettingsError
from components.model import build_model
from components.model.losses import make_loss
from components.model.softmax import SampledPerRow, SampledTable, softmax_loss

NUM_ITEMS = 40
LOSSES = ["full", "shared", "sampled"]


def made_vectors(num_rows, dim=6, seed=0):
    """Rows, items, targets of which one in 41 is missing."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    items = torch.randn(NUM_ITEMS, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, NUM_ITEMS, (num_rows,), generator=generator)
    return normalize(y).requires_grad_(), normalize(items).requires_grad_(), targets


def loss_and_gradients(loss, y, items):
    return [loss.detach(), *torch.autograd.grad(loss, (y, items))]


@pytest.mark.parametrize("num_rows", [1, 127, 128, 300])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_full_is_the_cross_entropy_over_the_catalogue(num_rows, temperature):
    y, items, targets = made_vectors(num_rows, seed=1)
    found = make_loss(model_settings(loss="full", temperature=temperature), NUM_ITEMS)(y, items, targets, None)
    expected = cross_entropy(y @ items.T / temperature, targets, ignore_index=-1)
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_full_in_small_blocks_is_the_same(monkeypatch):
    y, items, targets = made_vectors(50)
    full = make_loss(model_settings(loss="full"), NUM_ITEMS)
    expected = loss_and_gradients(full(y, items, targets, None), y, items)
    monkeypatch.setattr("components.model.softmax._FLOATS_PER_BLOCK", 3 * NUM_ITEMS)
    for a, b in zip(loss_and_gradients(full(y, items, targets, None), y, items), expected, strict=True):
        torch.testing.assert_close(a, b)


def sampled_cross_entropy(y, items, targets, negatives, weight, temperature):
    """Column 0 is the target; a negative counts `weight` times, or not at all where it is the target."""
    positive = (y * items[targets]).sum(1, keepdim=True) / temperature
    negative = (y[:, None, :] * items[negatives]).sum(2) / temperature + math.log(weight)
    negative = negative.masked_fill(negatives == targets[:, None], -math.inf)
    return cross_entropy(torch.cat([positive, negative], dim=1), torch.zeros_like(targets))


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_shared_negatives_are_a_weighted_cross_entropy_without_the_target(weight):
    y, items, targets = made_vectors(150)
    targets = targets.clamp(min=0)
    negatives = torch.tensor([3, 3, 17, 0, 39, 5])
    competitors = SampledTable(targets, weight, items=negatives)
    found = softmax_loss(y, items[targets], items[negatives], competitors, 0.05)
    expected = sampled_cross_entropy(y, items, targets, negatives.expand(150, -1), weight, 0.05)
    assert (targets[:, None] == negatives).any()
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_negatives_per_position_are_a_cross_entropy_without_the_target():
    y, items, targets = made_vectors(150)
    targets = targets.clamp(min=0)
    negatives = torch.randint(NUM_ITEMS, (150, 9), generator=torch.Generator().manual_seed(2))
    found = softmax_loss(y, items[targets], items, SampledPerRow(targets, negatives), 0.05)
    expected = sampled_cross_entropy(y, items, targets, negatives, 1.0, 0.05)
    assert (targets[:, None] == negatives).any()
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    y, items, targets = made_vectors(12, dim=3)
    loss = make_loss(model_settings(loss=name, temperature=0.3, num_negatives=5), NUM_ITEMS)
    assert torch.autograd.gradcheck(
        lambda y, items: 3 * loss(y, items, targets, torch.Generator().manual_seed(3)), (y, items)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_positions_without_a_target_do_not_count(name):
    y, items, targets = made_vectors(60)
    loss = make_loss(model_settings(loss=name), NUM_ITEMS)
    some = targets >= 0
    assert not some.all()
    with_gaps, without = (
        loss_and_gradients(loss(rows, items, wanted, torch.Generator().manual_seed(3)), y, items)
        for rows, wanted in ((y, targets), (y[some], targets[some]))
    )
    for a, b in zip(with_gaps, without, strict=True):
        torch.testing.assert_close(a, b)
    assert (with_gaps[1][~some] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_rows", [0, 3])
def test_a_batch_without_targets_has_loss_zero_and_no_gradient(name, num_rows):
    y, items, _ = made_vectors(num_rows)
    loss = make_loss(model_settings(loss=name), NUM_ITEMS)(y, items, torch.full((num_rows,), -1), None)
    assert all((part == 0).all() for part in loss_and_gradients(loss, y, items))


@pytest.mark.parametrize("name", ["shared", "sampled"])
def test_the_generator_decides_the_negatives(name):
    y, items, targets = made_vectors(60)
    loss = make_loss(model_settings(loss=name), NUM_ITEMS)
    first, again, other = (loss(y, items, targets, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2))
    assert first == again != other


def test_shared_negatives_estimate_the_full_loss():
    """The sum inside the logarithm is unbiased, so with many negatives the losses meet; unweighted they are far off."""
    y, items, targets = made_vectors(200)
    full, shared = (
        make_loss(model_settings(loss=name, temperature=0.3, num_negatives=20_000), NUM_ITEMS)
        for name in ("full", "shared")
    )
    estimate = shared(y, items, targets, torch.Generator().manual_seed(1)).item()
    assert estimate == pytest.approx(full(y, items, targets, None).item(), rel=0.01)


@pytest.mark.parametrize("temperature", [0.05, 0.005])
def test_float32_stays_finite_at_low_temperatures(temperature):
    y, items, targets = made_vectors(64)
    y, items = (x.detach().float().requires_grad_() for x in (y, items))
    loss = make_loss(model_settings(loss="full", temperature=temperature), NUM_ITEMS)(y, items, targets, None)
    expected = cross_entropy(y @ items.T / temperature, targets, ignore_index=-1)
    for a, b in zip(loss_and_gradients(loss, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("model_name", ["hstu", "sasrec"])
def test_a_model_learns_to_predict_a_made_cycle(name, model_name):
    """Item i is always followed by item i + 1; after 60 steps the right one is on top nearly everywhere."""
    torch.manual_seed(0)
    settings = model_settings(loss=name, dim=16, head_dim_qk=8, head_dim_v=8, dropout=0.0)
    model, loss = build_model(model_name, settings, 12), make_loss(settings, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    batch = made_batch([20, 15, 9, 20])
    start = torch.tensor([0, 3, 7, 5]).repeat_interleave(batch.offsets.diff())
    batch.items.copy_((start + torch.arange(64)) % 12)
    targets = (batch.items + 1) % 12
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(batch), model.item_vectors(), targets, generator).backward()
        optimizer.step()
    guesses = (model(batch) @ model.item_vectors().T).argmax(1)
    assert (guesses == targets).float().mean() > 0.95


def test_an_unknown_loss_is_refused():
    with pytest.raises(SettingsError, match=r"observed hinge, expected full \| shared \| sampled"):
        make_loss(model_settings(loss="hinge"), NUM_ITEMS)
