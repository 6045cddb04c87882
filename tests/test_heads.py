"""Heads: the dot head is a cosine, the mixture what its formula says, in blocks or not, whatever the order of items."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import made_batch, model_settings
from torch.nn.functional import normalize, silu

from components.model import build_model
from components.model.heads import DotHead, MixtureHead, make_head

NUM_ITEMS, DIM = 30, 8


def made_mixture(*, num_query_vectors=2, num_item_vectors=3, seed=0, **changes):
    """A head in evaluation mode whose gate is far from uniform."""
    torch.manual_seed(seed)
    changes = {"mixture_query_vectors": num_query_vectors, "mixture_item_vectors": num_item_vectors} | changes
    head = MixtureHead(model_settings(head="mixture", **changes)).eval()
    for weight in head.pair_weights():
        torch.nn.init.normal_(weight, std=0.2)
    return head


def made_vectors(num_rows, seed=0):
    return normalize(torch.randn(num_rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_score(head, u, x):
    """One history, one item: the module's docstring, pair by pair, in the head's precision."""
    f = normalize(head.query(u * DIM**0.5).view(head.num_query_vectors, DIM), dim=1)
    g = normalize(head.item(x * DIM**0.5).view(head.num_item_vectors, DIM), dim=1)
    cosines = torch.stack([f_p @ g_q for f_p in f for g_q in g])
    a, b = head.query_gate(u * DIM**0.5), head.item_gate(x * DIM**0.5)
    c = head.pair_out(silu(head.pair_in(cosines / head.temperature)))
    return torch.softmax(silu(a * b + c), dim=0) @ cosines


def test_a_mixture_scores_as_its_formula_says():
    head, y, items = made_mixture().double(), made_vectors(4, 1).double(), made_vectors(5, 2).double()
    expected = torch.stack([torch.stack([naive_score(head, u, x) for x in items]) for u in y])
    queries, side = head.split_queries(y), head.split_items(items)
    torch.testing.assert_close(head.score_all(queries, side), expected)
    pairs = head.score_pairs(queries, head.split_items(items[:4]))
    torch.testing.assert_close(pairs.squeeze(1), expected.diagonal())


@pytest.mark.parametrize("training", [False, True])
def test_a_mixture_of_one_vector_each_ranks_as_the_dot_head(training):
    head = made_mixture(num_query_vectors=1, num_item_vectors=1, dropout=0.0).train(training)
    for layer in (head.query, head.item):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    y, items = made_vectors(6, 1), made_vectors(NUM_ITEMS, 2)
    found, expected = head.score_catalogue(y, head.split_items(items)), y @ items.T
    torch.testing.assert_close(found, expected)
    assert torch.equal(found.argsort(1), expected.argsort(1))


@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(0, 7), num_items=st.integers(1, 20), cells=st.integers(1, 60))
def test_blocks_change_no_score(num_rows, num_items, cells):
    head, y, items = made_mixture(), made_vectors(num_rows, 1), made_vectors(num_items, 2)
    side = head.split_items(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.model.heads._FLOATS_PER_BLOCK", cells * head.floats_per_score)
        found = head.score_catalogue(y, side)
    torch.testing.assert_close(found, head.score_all(head.split_queries(y), side), rtol=1e-5, atol=1e-6)


def test_no_block_holds_more_scores_than_the_budget(monkeypatch):
    head, y, items = made_mixture(), made_vectors(9, 1), made_vectors(NUM_ITEMS, 2)
    monkeypatch.setattr("components.model.heads._FLOATS_PER_BLOCK", 40 * head.floats_per_score)
    blocks, score_all = [], head.score_all

    def watch(queries, side):
        scores = score_all(queries, side)
        blocks.append(scores.numel())
        return scores

    head.score_all = watch
    head.score_catalogue(y, head.split_items(items))
    assert sum(blocks) == 9 * NUM_ITEMS
    assert max(blocks) <= 40


@pytest.mark.parametrize("name", ["dot", "mixture"])
def test_permuted_items_get_permuted_scores(name):
    torch.manual_seed(0)
    head = make_head(model_settings(head=name)).eval()
    y, items, order = made_vectors(5, 1), made_vectors(NUM_ITEMS, 2), torch.randperm(NUM_ITEMS)
    scores, permuted = (head.score_catalogue(y, head.split_items(x)) for x in (items, items[order]))
    torch.testing.assert_close(permuted, scores[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_scores_of_a_mixture_stay_within_one(training):
    head = made_mixture(dropout=0.5).train(training)
    scores = head.score_all(head.split_queries(made_vectors(40, 1)), head.split_items(made_vectors(NUM_ITEMS, 2)))
    assert scores.abs().max() <= 1 + 1e-6


def test_dropout_of_the_gate_works_in_training_only_and_keeps_a_weighted_mean():
    head, y, items = made_mixture(dropout=0.4), made_vectors(40, 1), made_vectors(NUM_ITEMS, 2)
    queries, side = head.split_queries(y), head.split_items(items)
    expected = head.score_all(queries, side)
    assert torch.equal(head.score_all(queries, side), expected)
    head.train()
    torch.manual_seed(0)
    first = head.score_all(queries, side)
    torch.manual_seed(0)
    assert torch.equal(head.score_all(queries, side), first)
    assert not torch.equal(head.score_all(queries, side), first)
    # With every cosine alike, dropping some of the gate must leave what is left of it summing to 1.
    alike = torch.ones(6, 40, NUM_ITEMS)
    mixed = head._mix(alike, queries[1].T[:, :, None], side[1].T[:, None, :])
    torch.testing.assert_close(mixed[mixed != 0], torch.ones_like(mixed[mixed != 0]))
    assert (mixed != 0).float().mean() > 0.95  # 0.4 ** 6 of the pairs lose all


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_the_dot_head_is_the_cosine_and_adds_no_weights(name):
    model = build_model(name, model_settings(head="dot"), NUM_ITEMS).eval()
    y = model(made_batch([5, 9]))
    assert isinstance(model.head, DotHead)
    assert not any("head" in weight for weight in model.state_dict())
    assert torch.equal(model.score(y), y @ model.item_vectors().T)
    assert torch.equal(model.score(y[-1:])[0], model.item_vectors() @ y[-1])


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_a_kept_item_side_gives_the_same_scores(name):
    torch.manual_seed(0)
    model = build_model(name, model_settings(head="mixture"), NUM_ITEMS).eval()
    y = model(made_batch([5, 9]))
    assert model.score(y).shape == (14, NUM_ITEMS)
    assert torch.equal(model.score(y, model.item_side()), model.score(y))


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_the_head_leaves_the_other_initial_weights_as_they_are(name):
    states = []
    for head in ("dot", "mixture"):
        torch.manual_seed(0)
        states.append(build_model(name, model_settings(head=head), NUM_ITEMS).state_dict())
    dot, mixture = states
    assert all(torch.equal(mixture[weight], dot[weight]) for weight in dot)
    assert len(mixture) == len(dot) + len(list(made_mixture().parameters()))
