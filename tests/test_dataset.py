"""Batches: what a row sees, what it predicts, and what can never reach it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.dataset import (
    Sequences,
    find_training_windows,
    iterate_in_blocks,
    iterate_training_batches,
    make_batch,
    rows_of_ranges,
)


@st.composite
def logs(draw):
    """Draw the sequences of a few users, each cut into train, validation and test at any place."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    cuts = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in lengths]
    valid_starts, test_starts = (starts + np.array([cut[side] for cut in cuts]) for side in (0, 1))
    times = draw(st.lists(st.integers(0, 10**9), min_size=int(ends[-1]), max_size=int(ends[-1])))
    items = np.arange(ends[-1], dtype=np.int32)  # all different, so that a shifted target is noticed
    split = {"num_items": int(ends[-1])}
    return Sequences(
        items, np.array(times, np.int64), np.arange(len(ends)), starts, valid_starts, test_starts, ends, split
    )


def epoch_of(sequences, *, max_len=4, batch_size=3, seed=1, epoch=1):
    return list(iterate_training_batches(sequences, max_len=max_len, batch_size=batch_size, seed=seed, epoch=epoch))


def bytes_of(batches):
    return [
        tensor.numpy().tobytes()
        for batch, targets in batches
        for tensor in (batch.items, batch.timestamps, batch.next_timestamps, batch.offsets, targets)
    ]


def user(num_events, *, train=None):
    """One user with that many events at times 100, 110, ...; all of them train unless told otherwise."""
    train = num_events if train is None else train
    ends, cut = np.array([num_events]), np.array([train])
    items, times = np.arange(num_events, dtype=np.int32), 100 + 10 * np.arange(num_events)
    return Sequences(items, times, np.array([1]), np.array([0]), cut, cut, ends, {"num_items": num_events})


def test_each_row_predicts_the_next_event_and_knows_its_time():
    [(batch, targets)] = epoch_of(user(4))
    assert batch.items.tolist() == [0, 1, 2]
    assert targets.tolist() == [1, 2, 3]
    assert batch.timestamps.tolist() == [100, 110, 120]
    assert batch.next_timestamps.tolist() == [110, 120, 130]
    assert batch.offsets.tolist() == [0, 3]
    assert {tensor.dtype for tensor in (batch.items, batch.timestamps, batch.offsets, targets)} == {torch.int64}


def test_of_a_long_history_the_last_window_is_trained_on():
    assert find_training_windows(user(12), max_len=4).tolist() == [[7, 11]]


def test_the_first_held_out_event_is_no_target():
    assert find_training_windows(user(9, train=4), max_len=10).tolist() == [[0, 3]]


@pytest.mark.parametrize("train", [0, 1])
def test_a_user_with_less_than_two_training_events_gives_no_window(train):
    assert len(find_training_windows(user(5, train=train), max_len=4)) == 0


@given(logs(), st.integers(1, 6))
def test_the_last_training_events_of_a_user_are_targets_exactly_once(sequences, max_len):
    targets = np.concatenate([[], *(targets.numpy() for _, targets in epoch_of(sequences, max_len=max_len))])
    expected = [
        row
        for start, stop in zip(sequences.starts, sequences.valid_starts, strict=True)
        for row in range(max(start + 1, stop - max_len), stop)
    ]
    assert sorted(targets.tolist()) == expected


@given(logs(), st.integers(1, 6), st.integers(1, 4))
def test_rows_of_a_window_are_consecutive_events_of_one_user(sequences, max_len, batch_size):
    for batch, targets in epoch_of(sequences, max_len=max_len, batch_size=batch_size):
        lengths = batch.offsets.diff()
        assert len(lengths) <= batch_size
        assert 1 <= lengths.min() <= lengths.max() <= max_len
        assert (targets == batch.items + 1).all()  # items are row numbers here
        owners = np.searchsorted(sequences.ends, batch.items.numpy(), side="right")
        bounds = batch.offsets.tolist()
        assert all(len(set(owners[a:b])) == 1 for a, b in itertools.pairwise(bounds))


@given(logs(), st.data())
def test_changing_held_out_events_leaves_every_training_batch_byte_for_byte_the_same(sequences, data):
    held_out = rows_of_ranges(sequences.valid_starts, sequences.ends - sequences.valid_starts)
    size = len(held_out)
    items, times = sequences.items.copy(), sequences.timestamps.copy()
    items[held_out] = data.draw(st.lists(st.integers(-1, 99), min_size=size, max_size=size))
    times[held_out] = data.draw(st.lists(st.integers(0, 10**9), min_size=size, max_size=size))
    changed = Sequences(**(vars(sequences) | {"items": items, "timestamps": times}))
    assert bytes_of(epoch_of(sequences)) == bytes_of(epoch_of(changed))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    many = np.arange(0, 120, 6)
    sequences = Sequences(
        np.arange(120, dtype=np.int32),
        np.arange(120),
        np.arange(20),
        many,
        many + 6,
        many + 6,
        many + 6,
        {"num_items": 120},
    )
    first = bytes_of(epoch_of(sequences))
    np.random.seed(5)  # global state, which must not matter
    torch.manual_seed(5)
    assert bytes_of(epoch_of(sequences)) == first
    assert bytes_of(epoch_of(sequences, epoch=2)) != first
    assert bytes_of(epoch_of(sequences, seed=2)) != first


def test_a_request_comes_after_the_last_event_it_knows():
    history = (np.array([4, -1, 2]), np.array([10, 20, 30]))
    batch = make_batch([history], [99], max_len=5)
    assert batch.items.tolist() == [4, 2]  # the unknown item is dropped ...
    assert batch.next_timestamps.tolist() == [30, 99]  # ... and nobody waits for it


def test_the_last_known_events_are_kept_after_the_unknown_are_dropped():
    history = (np.array([0, 1, 2, -1, -1]), np.array([1, 2, 3, 4, 5]))
    assert make_batch([history], [9], max_len=2).items.tolist() == [1, 2]


@pytest.mark.parametrize("items", [[], [-1, -1]])
def test_a_history_without_a_known_item_is_an_empty_sequence(items):
    history = (np.array(items, dtype=np.int64), np.arange(len(items)))
    batch = make_batch([history, (np.array([3]), np.array([7]))], [9, 9], max_len=4)
    assert batch.offsets.tolist() == [0, 0, 1]
    assert batch.items.tolist() == [3]


def test_no_history_at_all_is_an_empty_batch():
    batch = make_batch([], [], max_len=4)
    assert batch.offsets.tolist() == [0]
    assert len(batch.items) == len(batch.next_timestamps) == 0


def test_ranges_are_concatenated_in_order_and_may_be_empty():
    assert rows_of_ranges(np.array([5, 9, 0]), np.array([2, 0, 3])).tolist() == [5, 6, 0, 1, 2]
    assert rows_of_ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_blocks_cover_everything_once():
    assert [list(range(10))[block] for block in iterate_in_blocks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
