"""What is predicted, from which history, and which windows the model must see for it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_evaluations import COLD
from made_logs import build, walking_log, write_log

from components.dataset import Sequences, load_sequences
from components.ranking.targets import (
    Targets,
    choose_evenly,
    find_encoder_windows,
    find_repeats,
    find_targets,
    find_tied,
)


def made_sequences():
    """User 0 returns to item 0 and meets an unknown item; user 1 comes new in the test part."""
    return Sequences(
        items=np.array([0, 1, -1, 0, 2, -1, 1, -1, 0, 2], dtype=np.int32),
        timestamps=np.array([1, 5, 5, 6, 20, 21, 22, 20, 23, 23]),
        user_ids=np.array([10, 20]),
        starts=np.array([0, 7]),
        valid_starts=np.array([3, 7]),
        test_starts=np.array([4, 7]),
        ends=np.array([7, 10]),
        split={"num_items": 3, "train_end": 6, "valid_end": 20},
    )


def histories(targets):
    return [
        targets.known_items[first:stop].tolist() for first, stop in zip(targets.firsts, targets.positions, strict=True)
    ]


def test_a_history_is_every_known_event_before_the_target_those_of_the_window_included():
    targets = find_targets(made_sequences(), "test")
    assert targets.items.tolist() == [2, -1, 1, 2]
    assert histories(targets) == [[0, 1, 0], [0, 1, 0, 2], [0, 1, 0, 2], [0]]


def test_an_event_without_a_known_one_before_it_is_no_target():
    assert find_targets(made_sequences(), "test").rows.tolist() == [4, 5, 6, 9]  # not 7, user 1's first, nor 8
    assert find_targets(made_sequences(), "valid").rows.tolist() == [3]


def test_ties_are_seen_across_the_parts_but_not_across_users():
    sequences = made_sequences()
    assert find_tied(sequences, np.arange(10)).nonzero()[0].tolist() == [1, 2, 8, 9]


def test_repeats_are_known_items_that_the_history_holds():
    assert find_repeats(find_targets(made_sequences(), "valid")).tolist() == [True]
    assert find_repeats(find_targets(made_sequences(), "test")).tolist() == [False, False, True, False]


@pytest.mark.parametrize("max_len", [1, 3, 8, 100])
def test_each_target_s_window_ends_with_its_own_last_events(tmp_path, max_len):
    sequences = load_sequences(build(write_log(tmp_path, [*walking_log(), *COLD]), "time_split") / "time_split")
    targets = find_targets(sequences, "test")
    windows, window_of_target = find_encoder_windows(targets, max_len)
    starts, stops = windows[window_of_target].T
    assert (np.diff(windows, axis=1) <= max_len).all()
    assert (starts == np.maximum(targets.firsts, targets.positions - max_len)).all()
    assert (stops >= targets.positions).all()
    fits = targets.history_lengths <= max_len
    assert len(windows) == (~fits).sum() + len(np.unique(targets.users[fits]))


def test_a_target_is_asked_for_at_its_own_time_or_at_that_of_the_last_known_event():
    targets = find_targets(made_sequences(), "test")
    assert targets.request_times.tolist() == [20, 21, 22, 23]
    assert targets.forget_request_times().request_times.tolist() == [6, 20, 20, 23]


def test_a_target_asked_for_at_another_time_has_a_window_of_its_own():
    targets = find_targets(made_sequences(), "test")
    known = targets.take(targets.items >= 0)  # user 0 at time 20 and 22, user 1 at 23 right after an event of time 23
    assert find_encoder_windows(known, 9)[0].tolist() == [[0, 4], [5, 6]]
    windows, window_of_target = find_encoder_windows(known.forget_request_times(), 9)
    assert windows.tolist() == [[0, 3], [0, 4], [5, 6]]
    assert window_of_target.tolist() == [0, 1, 2]


def test_a_time_that_is_the_target_s_own_by_chance_is_shared_only_with_neighbours():
    """Targets and windows ascend together, so what lies between two targets that could share parts them."""
    targets = find_targets(made_sequences(), "test")
    known = targets.take(np.array([0, 0, 2]))
    times = known.known_timestamps[known.positions].copy()
    times[1] -= 1
    windows, window_of_target = find_encoder_windows(dataclasses.replace(known, request_times=times), 9)
    assert window_of_target.tolist() == [0, 1, 2]
    assert windows.tolist() == [[0, 3], [0, 3], [0, 4]]


made_users = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(made_users, st.integers(1, 40))
def test_an_even_choice_is_small_enough_and_everything_where_that_is_small_enough(counts, at_most):
    users = np.repeat(np.arange(len(counts)), counts)
    nothing = np.zeros(len(users), dtype=np.int64)
    chosen = choose_evenly(Targets(nothing, users, *[nothing] * 6), at_most)
    assert 1 <= chosen.sum() <= at_most
    if len(users) <= at_most:
        assert chosen.all()


def test_an_even_choice_takes_each_place_in_a_user_as_often_as_any_other():
    users = np.repeat(np.arange(3_000), 6)
    nothing = np.zeros(len(users), dtype=np.int64)
    chosen = choose_evenly(Targets(nothing, users, *[nothing] * 6), len(users) // 3).reshape(-1, 2, 3)
    assert (chosen.sum(2) == 1).all()  # one of every three, for everybody
    np.testing.assert_allclose(chosen.mean((0, 1)), 1 / 3, atol=0.03)
