"""SASRec: softmax attention against its formula, and what a row must not see."""

import math
from dataclasses import replace

import pytest
import torch
from made_models import cut_out, made_batch, model_settings

from components.model import build_model
from components.model.sasrec import causal_softmax_attention
from kernels.length_groups import LengthGroups


def build(**changes):
    torch.manual_seed(0)
    return build_model("sasrec", model_settings(**changes), 30)


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


def test_a_row_sees_neither_later_events_nor_other_sequences():
    model, batch = build().eval(), made_batch([7, 20, 1])
    before = model(batch)
    items = batch.items.clone()
    items[11:] = (items[11:] + 1) % 30
    after = model(replace(batch, items=items))
    torch.testing.assert_close(after[:11], before[:11])
    assert not torch.isclose(after[11:], before[11:]).all(dim=1).any()


def test_a_history_is_encoded_the_same_alone_and_in_a_batch():
    model, batch = build().eval(), made_batch([7, 20, 1, 0, 12])
    together = model(batch)
    for b, (start, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        torch.testing.assert_close(model(cut_out(batch, b)), together[start:end])


def test_times_do_not_matter():
    model, batch = build().eval(), made_batch([12])
    shifted = replace(batch, timestamps=batch.timestamps * 3, next_timestamps=batch.next_timestamps * 5)
    assert torch.equal(model(batch), model(shifted))


def test_rows_and_items_are_unit_vectors():
    model = build()
    assert model(made_batch([12])).norm(dim=1).tolist() == pytest.approx([1.0] * 12)
    assert model.item_vectors().norm(dim=1).tolist() == pytest.approx([1.0] * 30)
