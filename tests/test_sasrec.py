"""SASRec: softmax attention against its formula, and what a row must not see."""

import math
from dataclasses import replace

import pytest
import torch
from made_models import SASREC_LEVERS, cut_out, made_batch, model_settings
from torch.nn.functional import gelu, layer_norm

from components.model import build_model
from components.model.blocks import causal_softmax_attention, group_by_length
from kernels.length_groups import LengthGroups

levers = pytest.mark.parametrize("lever", SASREC_LEVERS.values(), ids=SASREC_LEVERS)


def build(**changes):
    torch.manual_seed(0)
    return build_model("sasrec", model_settings(**({"feed_forward": "gelu"} | changes)), 30)


@pytest.mark.parametrize("widths", [(4, 4), (4, 3)], ids=str)
def test_attention_is_the_causal_softmax_of_each_sequence(widths):
    dim_qk, dim_v = widths
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 2, dim_qk), (20, 2, dim_qk), (20, 2, dim_v)]
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    offsets = torch.tensor([0, 9, 9, 10, 20])
    found = causal_softmax_attention(*leaves, LengthGroups(offsets, num_heads=2, max_scores=10**6))

    expected = []
    for start, end in [(0, 9), (9, 10), (10, 20)]:
        q, k, v = (x[start:end].transpose(0, 1) for x in leaves)
        scores = q @ k.transpose(1, 2) / math.sqrt(dim_qk)
        hidden = torch.ones(end - start, end - start).triu(1).bool()
        expected.append((scores.masked_fill(hidden, -math.inf).softmax(2) @ v).transpose(0, 1))
    expected = torch.cat(expected)
    torch.testing.assert_close(found, expected)

    along = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(o, leaves, along) for o in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@levers
def test_a_row_sees_neither_later_events_nor_other_sequences(lever):
    model, batch = build(**lever).eval(), made_batch([7, 20, 1])
    before = model(batch)
    items = batch.items.clone()
    items[11:] = (items[11:] + 1) % 30
    after = model(replace(batch, items=items))
    torch.testing.assert_close(after[:11], before[:11])
    assert not torch.isclose(after[11:], before[11:]).all(dim=1).any()


@levers
def test_a_history_is_encoded_the_same_alone_and_in_a_batch(lever):
    model, batch = build(**lever).eval(), made_batch([7, 20, 1, 0, 12])
    together = model(batch)
    for b, (start, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        torch.testing.assert_close(model(cut_out(batch, b)), together[start:end])


@pytest.mark.parametrize("gated", [False, True], ids=["residual", "gated"])
def test_a_block_normalises_before_each_part_and_adds_after(gated):
    block = build(gated_residual=gated).double().eval().blocks[0]
    x, offsets = torch.randn(15, 8, dtype=torch.float64), made_batch([6, 0, 9]).offsets

    def share(gate, seen):
        return torch.sigmoid(seen @ gate.weight.T + gate.bias) if gated else 1.0

    q, k, v = block.qkv(normed(block.attention_norm, x)).split([8, 8, 6], dim=1)
    heads = [part.unflatten(1, (2, -1)) for part in (q, k, v)]
    o = causal_softmax_attention(*heads, group_by_length(offsets, 2)).flatten(1)
    attended = x + block.output(o) * share(block.attention_residual.gate, x)
    first, last = block.feed_forward[0], block.feed_forward[2]
    forwarded = last(gelu(first(normed(block.forward_norm, attended))))
    expected = attended + forwarded * share(block.forward_residual.gate, attended)
    torch.testing.assert_close(block(x, group_by_length(offsets, 2)), expected)


def normed(norm, x):
    return layer_norm(x, (8,), norm.weight, norm.bias)


def test_with_its_levers_off_a_block_has_the_weights_it_always_had():
    modules = ("attention_norm", "qkv", "output", "feed_forward.0", "feed_forward.2", "forward_norm")
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(build().blocks[0].state_dict()) == expected


def test_a_block_without_a_feed_forward_network_has_none_of_its_weights():
    names = set(build(feed_forward="none", gated_residual=True).blocks[0].state_dict())
    assert {name.split(".")[0] for name in names} == {"attention_norm", "qkv", "output", "attention_residual"}


def test_times_do_not_matter():
    model, batch = build().eval(), made_batch([12])
    shifted = replace(batch, timestamps=batch.timestamps * 3, next_timestamps=batch.next_timestamps * 5)
    assert torch.equal(model(batch), model(shifted))


def test_rows_and_items_are_unit_vectors():
    model = build()
    assert model(made_batch([12])).norm(dim=1).tolist() == pytest.approx([1.0] * 12)
    assert model.item_vectors().norm(dim=1).tolist() == pytest.approx([1.0] * 30)
