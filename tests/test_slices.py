"""By what the test part is cut, and that nothing of it looks ahead."""

import dataclasses

import numpy as np
import pytest
import torch
from made_logs import DAY

from components.dataset import Sequences
from components.ranking.conditions import Interval, Judged
from components.ranking.slices import find_activities, find_item_ages, find_tenths, slice_test
from components.ranking.targets import find_targets

INTERVAL = Interval(samples=100, confidence=0.9)


def made_sequences():
    """User 0 takes items 0, 1, 0 in train, then 2 and an unknown one; user 1 took 2 first, then 0, 1 and 2."""
    return Sequences(
        items=np.array([0, 1, 0, 2, -1, 2, 0, 1, 2], dtype=np.int32),
        timestamps=np.array([0, 10, 40, 100, 101, 5, 60, 61, 61]) * DAY,
        user_ids=np.array([10, 20]),
        starts=np.array([0, 5]),
        valid_starts=np.array([3, 6]),
        test_starts=np.array([3, 6]),
        ends=np.array([5, 9]),
        split={"num_items": 3, "train_end": 50 * DAY, "valid_end": 50 * DAY},
    )


@pytest.fixture
def judged():
    """Targets 2, -1 of user 0; 0, 1, 2 of user 1."""
    targets = find_targets(made_sequences(), "test")
    values = {"hstu": torch.tensor([0.1, 0.0, 0.3, 0.4, 0.5]).double()[:, None]}
    return Judged(targets, {}, values, values)


def cut(judged, kind):
    slices = slice_test(made_sequences(), judged, 0, INTERVAL)[kind]
    return {one["name"]: (one["targets"], one["users"], one["models"]["hstu"]["value"]) for one in slices}


def test_every_kind_of_slice_covers_every_target_once(judged):
    for slices in slice_test(made_sequences(), judged, 0, INTERVAL).values():
        assert sum(one["targets"] for one in slices) == len(judged.targets)
        assert all(set(one) == {"name", "users", "targets", "models"} for one in slices)


def test_a_slice_averages_per_user_and_has_an_interval(judged):
    assert cut(judged, "history") == {"1-9": (5, 2, pytest.approx((0.05 + 0.4) / 2))}
    value = slice_test(made_sequences(), judged, 0, INTERVAL)["history"][0]["models"]["hstu"]
    assert value["low"] <= value["value"] <= value["high"]


def test_an_item_s_age_is_counted_from_anybody_s_first_event_with_it(judged):
    assert find_item_ages(made_sequences(), judged.targets).tolist() == [95, 0, 60, 51, 56]
    ages = {"30-90 d": (3, 1, 0.4), "90-180 d": (1, 1, 0.1), "cold": (1, 1, 0.0)}
    assert cut(judged, "item_age") == ages


def test_popularity_is_that_of_train_and_unknown_items_are_apart(judged):
    """Train has item 0 twice, 1 and 2 once: half of the events are before 1 and 2."""
    assert cut(judged, "item_popularity") == {"1": (1, 1, 0.3), "6": (3, 2, 0.275), "cold": (1, 1, 0.0)}


def test_items_with_equally_many_events_share_their_tenth_whatever_their_numbers():
    counts = np.random.default_rng(0).integers(1, 30, 200)
    order = np.random.default_rng(1).permutation(200)
    tenths = find_tenths(counts)
    assert (find_tenths(counts[order]) == tenths[order]).all()
    for count in np.unique(counts):
        assert len(np.unique(tenths[counts == count])) == 1
    assert (tenths.min(), tenths.max()) == (1, 10)


def test_each_tenth_of_many_items_has_a_tenth_of_the_events():
    counts = np.arange(1, 2001)
    shares = np.bincount(find_tenths(counts), weights=counts)[1:] / counts.sum()
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.002)


def test_activity_is_events_a_day_of_the_history_alone(judged):
    """User 1's day 61 has two events, the second of which is predicted from the first."""
    assert find_activities(judged.targets).tolist() == [1, 1, 1, 1, 1]
    busy = dataclasses.replace(made_sequences(), timestamps=np.array([0, 1, 2, DAY, DAY + 1, 5, 6, 7, 8]))
    assert find_activities(find_targets(busy, "test")).tolist() == [3, 2, 1, 2, 3]
