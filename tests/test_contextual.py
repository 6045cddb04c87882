"""Contextual features are those of their moment: exact, and blind to whatever happens at or after it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.baselines import BASELINES, choose_baselines, fit_baselines, timeline
from components.baselines.contextual import ContextualChoice, ContextualScorer, fit_choices, fit_weights
from components.baselines.timeline import FEATURES, HALF_LIVES, Timeline, build_timeline
from components.dataset import Sequences
from components.ranking.targets import find_targets

DAY = 86_400
NUM_ITEMS = 4
moments = st.integers(0, 40).map(lambda eighths: eighths * DAY // 8)
events = st.lists(st.tuples(st.integers(-1, NUM_ITEMS - 1), moments), max_size=30)


def made_timeline(log):
    items, times = np.array(log, dtype=np.int64).reshape(-1, 2).T
    return Timeline(items, times, NUM_ITEMS)


def naive_features(log, time, item):
    """The definitions of timeline.py, event by event."""
    ages = [time - when for which, when in log if which == item and when < time]
    if not ages:
        return [0, *[np.log(1 / 8)] * len(HALF_LIVES), 0, 0, 0]
    decayed = [sum(2 ** (-age / (days * DAY)) for age in ages) for days in HALF_LIVES]
    spans = [np.log(1 + bound(ages) / 3600) for bound in (min, max)]
    return [np.log(1 + len(ages)), *(np.log(1 / 8 + count) for count in decayed), *spans, 1]


@given(events, moments, st.integers(1, 8))
def test_features_are_what_their_definitions_say(log, time, stride):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "_LEAST_STRIDE", stride)  # snapshots every few events
        features = made_timeline(log).features_at(time)
    expected = np.array([naive_features(log, time, item) for item in range(NUM_ITEMS)]).T
    assert features.shape == (len(FEATURES), NUM_ITEMS)
    assert features == pytest.approx(expected, abs=1e-5)


@given(events, moments, events)
def test_features_do_not_change_when_events_at_or_after_their_moment_are_deleted_or_changed(log, time, others):
    past = [event for event in log if event[1] < time]
    future = [(item, time + when) for item, when in others]
    features = made_timeline(log).features_at(time)
    assert np.array_equal(features, made_timeline(past).features_at(time))
    assert np.array_equal(features, made_timeline([*future, *past]).features_at(time))


def made_sequences(seed=0, *, num_users=12, train_end=20 * DAY):
    """Users of 8 events: 4 of train, 2 of validation, 2 of test; item 0 is half of all."""
    generator = np.random.default_rng(seed)
    windows = ((0, 4), (20, 2), (30, 2))  # first day and events of each part
    days = [np.sort(generator.integers(low, low + 10, size)) for _ in range(num_users) for low, size in windows]
    starts = np.arange(num_users) * 8
    return Sequences(
        items=np.where(generator.random(8 * num_users) < 0.5, 0, generator.integers(NUM_ITEMS, size=8 * num_users)),
        timestamps=np.concatenate(days) * DAY,
        user_ids=np.arange(num_users),
        starts=starts,
        valid_starts=starts + 4,
        test_starts=starts + 6,
        ends=starts + 8,
        split={"num_items": NUM_ITEMS, "train_end": train_end, "valid_end": train_end and 30 * DAY},
    )


CHOICE = ContextualChoice(1.0, tuple(0.1 * (1 + number) for number in range(len(FEATURES))))


def score(sequences):
    targets = find_targets(sequences, "test")
    return targets, ContextualScorer(build_timeline(sequences), CHOICE)(targets).numpy()


@given(st.integers(30, 39))
def test_a_score_does_not_change_when_events_at_or_after_the_request_change(day):
    sequences = made_sequences()
    later = sequences.timestamps >= day * DAY
    changed = dataclasses.replace(sequences, items=np.where(later, 1 + sequences.items % 3, sequences.items))
    targets, scores = score(sequences)
    asked_before = targets.request_times <= day * DAY
    assert np.array_equal(scores[asked_before], score(changed)[1][asked_before])


def test_earlier_events_of_the_window_by_other_users_are_known():
    sequences = made_sequences()
    targets, scores = score(sequences)
    first = targets.rows[targets.request_times.argmin()]
    items = sequences.items.copy()
    items[first] = (items[first] + 1) % NUM_ITEMS
    _, changed = score(dataclasses.replace(sequences, items=items))
    late = targets.request_times > sequences.timestamps[first]
    assert (scores[late] != changed[late]).any(axis=1).all()


def test_without_the_request_time_the_features_are_those_of_the_last_event():
    sequences = made_sequences()
    targets = find_targets(sequences, "test").forget_request_times()
    scorer = ContextualScorer(build_timeline(sequences), CHOICE)
    features = build_timeline(sequences).features_at(int(sequences.timestamps[targets.rows[5] - 1]))
    assert scorer(targets)[5].numpy() == pytest.approx(np.array(CHOICE.weights) @ features, rel=1e-5)


def test_weights_are_fitted_on_train_alone():
    sequences = made_sequences()
    held_out = sequences.timestamps >= 20 * DAY
    changed = dataclasses.replace(
        sequences,
        items=np.where(held_out, 3, sequences.items),
        timestamps=np.where(held_out, 90 * DAY, sequences.timestamps),
    )
    assert fit_choices(changed) == fit_choices(sequences)


def test_weights_tell_the_events_from_the_other_candidates():
    generator = np.random.default_rng(0)
    features_PCF = generator.normal(size=(500, 6, 3))
    features_PCF[:, :, 2] = 1  # says nothing
    likely = (features_PCF @ [2.0, -1.0, 0.0] + generator.gumbel(size=(500, 6))).argmax(axis=1)
    rows = np.arange(500)
    features_PCF[rows, 0], features_PCF[rows, likely] = features_PCF[rows, likely], features_PCF[rows, 0].copy()
    assert fit_weights(features_PCF) == pytest.approx([2.0, -1.0, 0.0], abs=0.3)


def test_where_nothing_can_be_learned_all_weights_are_zero():
    sequences = made_sequences()
    one_event = dataclasses.replace(sequences, valid_starts=sequences.starts + 1)
    assert {choice.weights for choice in fit_choices(one_event)} == {(0.0,) * len(FEATURES)}


def test_validation_chooses_and_every_baseline_is_fitted():
    asked = []

    def measure(scorers):
        asked.append(len(scorers))
        return {name: -abs(number - 1) for number, name in enumerate(scorers)}  # the second is the best

    sequences = made_sequences()
    chosen = choose_baselines(sequences, measure, (7, 30, 90))
    assert chosen.recent_days == 30
    assert chosen.contextual == fit_choices(sequences)[1]
    assert asked == [3, 5, 2]
    targets = find_targets(sequences, "test")
    scorers = fit_baselines(sequences, "test", chosen)
    assert tuple(scorers) == BASELINES
    assert {scorer(targets).shape for scorer in scorers.values()} == {(len(targets), NUM_ITEMS)}
