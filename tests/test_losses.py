"""The losses against torch's cross-entropy, their gradients, their negatives, and that they can be minimised."""

import math

import pytest
import torch
from made_models import made_batch, model_settings
from torch.nn.functional import cross_entropy, normalize

from components.errors import SettingsError
from components.model import build_model
from components.model.heads import make_head
from components.model.losses import make_loss
from components.model.softmax import SampledPerRow, SampledTable, softmax_loss

NUM_ITEMS = 40
LOSSES = ["full", "shared", "sampled", "in_batch", "gbce"]


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


@pytest.mark.parametrize("name", ["shared", "sampled", "gbce"])
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


@pytest.mark.parametrize(("name", "head"), [*((name, "dot") for name in LOSSES), ("full", "mixture")])
@pytest.mark.parametrize("model_name", ["hstu", "sasrec"])
def test_a_model_learns_to_predict_a_made_cycle(name, head, model_name):
    """Item i is always followed by item i + 1; after so many steps the right one is on top nearly everywhere."""
    torch.manual_seed(0)
    settings = model_settings(loss=name, head=head, dim=16, head_dim_qk=8, head_dim_v=8, dropout=0.0)
    model = build_model(model_name, settings, 12)
    loss = make_loss(settings, 12, head=model.head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    batch = made_batch([20, 15, 9, 20])
    start = torch.tensor([0, 3, 7, 5]).repeat_interleave(batch.offsets.diff())
    batch.items.copy_((start + torch.arange(64)) % 12)
    targets = (batch.items + 1) % 12
    generator = torch.Generator().manual_seed(0)
    for _ in range(150 if name == "gbce" else 60):  # a binary loss tells less about the order of two items
        optimizer.zero_grad()
        loss(model(batch), model.item_vectors(), targets, generator).backward()
        optimizer.step()
    guesses = model.score(model(batch)).argmax(1)
    assert (guesses == targets).float().mean() > 0.95


def test_an_unknown_loss_is_refused():
    with pytest.raises(SettingsError, match=r"observed hinge, expected full \| shared \| in_batch \| sampled \| gbce"):
        make_loss(model_settings(loss="hinge"), NUM_ITEMS)


def test_in_batch_with_uniform_counts_is_the_softmax_over_the_batch():
    """All competitors weigh the same, and nearly 1 where nearly every item is in every batch."""
    y, items, _ = made_vectors(2_000)
    targets = torch.randint(NUM_ITEMS, (2_000,), generator=torch.Generator().manual_seed(1))
    counts = torch.full((NUM_ITEMS,), 7)
    found = make_loss(model_settings(loss="in_batch"), NUM_ITEMS, item_counts=counts)(y, items, targets, None)
    expected = cross_entropy(y @ items.T / 0.05, targets)
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    uncounted = make_loss(model_settings(loss="in_batch"), NUM_ITEMS)(y, items, targets, None)
    assert uncounted.item() == found.item()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_in_batch_weighs_each_target_of_the_batch_once_by_its_chance_to_be_there(temperature):
    y, items, targets = made_vectors(30)
    y, targets = y[:30], targets.clamp(min=0)
    counts = torch.arange(NUM_ITEMS) ** 2 + 1
    settings = model_settings(loss="in_batch", temperature=temperature)
    found = make_loss(settings, NUM_ITEMS, item_counts=counts)(y, items, targets, None)
    competitors = torch.tensor(sorted(set(targets.tolist())))
    assert 1 < len(competitors) < len(targets)
    chances = 1 - (1 - counts[competitors].double() / counts.sum()) ** 30
    logits = y @ items[competitors].T / temperature - chances.log()
    logits = logits.masked_fill(targets[:, None] == competitors, -math.inf)
    positive = (y * items[targets]).sum(1, keepdim=True) / temperature
    expected = cross_entropy(torch.cat([positive, logits], dim=1), torch.zeros_like(targets))
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_correction_turns_the_gradient_of_popular_batches_into_that_of_the_catalogue():
    """Mean gradient of 300 batches in which the first items are the most frequent, by far, against the exact one."""
    y, items, _ = made_vectors(3, seed=2)
    counts = (2_000 / torch.arange(1, NUM_ITEMS + 1) ** 1.5).long() + 1
    wanted, generator = torch.tensor([0, 5, 30]), torch.Generator().manual_seed(0)
    expected = torch.autograd.grad(cross_entropy(y @ items.T / 0.5, wanted), y)[0]

    def mean_gradient(item_counts):
        loss = make_loss(model_settings(loss="in_batch", temperature=0.5), NUM_ITEMS, item_counts=item_counts)
        total = torch.zeros_like(y)
        for _ in range(300):
            others = torch.multinomial(counts.double(), 200, replacement=True, generator=generator)
            # Only the first three rows have a gradient; the rest of the batch is there to be drawn.
            rows = torch.cat([y, normalize(torch.ones(200, 6, dtype=torch.float64))])
            value = loss(rows, items.detach(), torch.cat([wanted, others]), None)
            total += torch.autograd.grad(value * 203 / 3, y)[0]
        return total / 300

    corrected, uncorrected = (
        (mean_gradient(item_counts) - expected).norm() / expected.norm()
        for item_counts in (counts, torch.ones(NUM_ITEMS))
    )
    assert corrected < 0.05
    assert uncorrected > 3 * corrected


def naive_gbce(y, items, targets, negatives, calibration, temperature):
    """The formula of the paper, term by term: sigmoid, power, logarithm."""
    share = len(negatives) / (NUM_ITEMS - 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    positive = torch.sigmoid((y * items[targets]).sum(1) / temperature - math.log(NUM_ITEMS)) ** beta
    negative = (1 - torch.sigmoid(y @ items[negatives].T / temperature - math.log(NUM_ITEMS))).log()
    negative = torch.where(targets[:, None] == negatives, 0.0, negative).sum(1)
    return -(positive.log() + negative).mean() / (len(negatives) + 1)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_is_the_formula_of_its_paper(calibration):
    y, items, targets = made_vectors(300)
    targets = targets.clamp(min=0)
    settings = model_settings(loss="gbce", num_negatives=9, gbce_calibration=calibration, temperature=0.2)
    found = make_loss(settings, NUM_ITEMS)(y, items, targets, torch.Generator().manual_seed(4))
    negatives = torch.randint(NUM_ITEMS, (9,), generator=torch.Generator().manual_seed(4))
    expected = naive_gbce(y, items, targets, negatives, calibration, 0.2)
    assert (targets[:, None] == negatives).any()
    for a, b in zip(loss_and_gradients(found, y, items), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gbce_in_float32_agrees_with_the_naive_one_in_float64():
    y, items, targets = made_vectors(200)
    targets = targets.clamp(min=0)
    settings = model_settings(loss="gbce", num_negatives=30)
    narrow = [x.detach().float().requires_grad_() for x in (y, items)]
    found = make_loss(settings, NUM_ITEMS)(*narrow, targets, torch.Generator().manual_seed(4))
    negatives = torch.randint(NUM_ITEMS, (30,), generator=torch.Generator().manual_seed(4))
    expected = naive_gbce(y, items, targets, negatives, 0.75, 0.05)
    for a, b in zip(loss_and_gradients(found, *narrow), loss_and_gradients(expected, y, items), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


def naive_mixture(head, y, items, targets, competitors, log_weight, temperature):
    side = head.split_items(items)
    scores = head.score_all(head.split_queries(y), side) / temperature
    positive, logits = scores.gather(1, targets[:, None]), scores[:, competitors] + log_weight
    logits = logits.masked_fill(targets[:, None] == competitors, -math.inf)
    return cross_entropy(torch.cat([positive, logits], dim=1), torch.zeros_like(targets))


@pytest.mark.parametrize("name", ["full", "shared", "in_batch"])
def test_losses_of_a_mixture_are_cross_entropies_of_its_scores(name):
    """The gradients of its own weights included; full in one block and shared in several."""
    settings = model_settings(loss=name, head="mixture", dim=6, dropout=0.0, num_negatives=70)
    torch.manual_seed(0)
    head, (y, items, targets) = make_head(settings).double(), made_vectors(150)
    targets = targets.clamp(min=0)
    found = make_loss(settings, NUM_ITEMS, head=head)(y, items, targets, torch.Generator().manual_seed(4))
    drawn = torch.randint(NUM_ITEMS, (70,), generator=torch.Generator().manual_seed(4))
    chance = 1 - (1 - 1 / NUM_ITEMS) ** 150
    competitors, weight = {
        "full": (torch.arange(NUM_ITEMS), 1.0),
        "shared": (drawn, NUM_ITEMS / 70),
        "in_batch": (targets.unique(), 1 / chance),
    }[name]
    expected = naive_mixture(head, y, items, targets, competitors, math.log(weight), 0.05)
    sources = [y, items, *head.parameters()]
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, sources), torch.autograd.grad(expected, sources), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("changes", [{"loss": "gbce"}, {"loss": "full", "head": "mixture"}])
def test_small_blocks_change_nothing(monkeypatch, changes):
    settings = model_settings(dim=6, dropout=0.0, **changes)
    head, (y, items, targets) = make_head(settings).double(), made_vectors(50)
    loss = make_loss(settings, NUM_ITEMS, head=head)
    expected = loss_and_gradients(loss(y, items, targets, torch.Generator().manual_seed(4)), y, items)
    monkeypatch.setattr("components.model.losses._ROWS_PER_BLOCK", 7)
    found = loss_and_gradients(loss(y, items, targets, torch.Generator().manual_seed(4)), y, items)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("changes", [{"loss": "in_batch"}, {"loss": "gbce"}, {"loss": "full", "head": "mixture"}])
@pytest.mark.parametrize("temperature", [0.05, 0.005])
def test_float32_stays_finite_at_low_temperatures_whatever_the_loss_and_head(changes, temperature):
    settings = model_settings(temperature=temperature, dim=6, **changes)
    y, items, targets = made_vectors(64)
    y, items = (x.detach().float().requires_grad_() for x in (y, items))
    loss = make_loss(settings, NUM_ITEMS, head=make_head(settings))(y, items, targets, None)
    assert all(part.isfinite().all() for part in loss_and_gradients(loss, y, items))


def test_a_loss_without_gradients_is_the_same_number():
    y, items, targets = made_vectors(64)
    loss = make_loss(model_settings(loss="gbce"), NUM_ITEMS)
    expected = loss(y, items, targets, torch.Generator().manual_seed(4)).item()
    with torch.no_grad():
        assert loss(y, items, targets, torch.Generator().manual_seed(4)).item() == expected


def test_head_mixture_refuses_negatives_per_position():
    settings = model_settings(loss="sampled", head="mixture")
    with pytest.raises(SettingsError, match=r"head mixture.*observed sampled, expected full \| shared"):
        make_loss(settings, NUM_ITEMS, head=make_head(settings))
