"""Length groups: every row lands in one slot and comes back, and little is padding."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.length_groups import LengthGroups

batches = st.lists(st.integers(0, 70), max_size=12)


def group(lengths, num_heads=2, max_scores=10_000):
    return LengthGroups(torch.tensor([0, *accumulate(lengths)]), num_heads=num_heads, max_scores=max_scores)


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 3), st.sampled_from([1, 2_000, 10**6]))
def test_rows_come_back_from_their_slots(lengths, num_heads, max_scores):
    groups = group(lengths, num_heads, max_scores)
    x = torch.randn(sum(lengths), num_heads, 3)
    assert torch.equal(groups.unpad(groups.pad(x)), x)
    assert torch.equal(groups.unpad(groups.pad_with_zeros(x)), x)


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 3))
def test_a_block_holds_its_sequences_head_after_head(lengths, num_heads):
    groups = group(lengths, num_heads)
    x = torch.arange(sum(lengths) * num_heads).view(-1, num_heads, 1)
    padded = groups.pad(x)
    starts = [0, *accumulate(lengths)]
    for some in groups:
        block = some.block(padded).view(num_heads, len(some.sequences), some.longest)
        for g, b in enumerate(some.sequences.tolist()):
            rows = x[starts[b] : starts[b] + lengths[b], :, 0].T
            assert torch.equal(block[:, g, : lengths[b]], rows)
            assert (block[:, g, lengths[b] :] == rows[:, -1:]).all()


@settings(max_examples=60, deadline=None)
@given(batches)
def test_every_non_empty_sequence_is_in_one_group(lengths):
    found = sorted(b for some in group(lengths) for b in some.sequences.tolist())
    assert found == [b for b, length in enumerate(lengths) if length > 0]


def test_padding_can_be_zero():
    groups = group([3, 1], num_heads=1)
    x = torch.ones(4, 1, 2)
    assert groups.pad_with_zeros(x).sum() == x.sum()
    assert groups.pad(x).sum() > x.sum()


def test_a_group_keeps_to_its_memory():
    sizes = [len(some.sequences) * some.longest**2 for some in group([50] * 20, max_scores=10_000)]
    assert sizes == [10_000] * 5


def test_a_sequence_too_large_for_a_group_gets_its_own():
    assert [some.longest for some in group([200, 150], max_scores=1)] == [200, 150]


def test_padding_is_a_small_share_of_a_batch_of_mixed_lengths():
    lengths = [1 + 199 * i // 127 for i in range(128)]
    computed = sum(len(some.sequences) * some.longest**2 for some in group(lengths, max_scores=320_000))
    needed = sum(length**2 for length in lengths)
    assert computed < 1.08 * needed


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_a_batch_without_rows_has_no_groups(lengths):
    groups = group(lengths)
    assert list(groups) == []
    assert groups.unpad(groups.pad(torch.zeros(0, 2, 5))).shape == (0, 2, 5)
