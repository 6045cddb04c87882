"""Popularity is fitted at the start of the window it is judged on, and on nothing later."""

import dataclasses

import numpy as np
import pytest

from components.baselines.popularity import SECONDS_PER_DAY, count_items, fit_popularity
from components.dataset import Sequences

DAYS = [0, 8, 9, 10, 19, 20, 0, 9, 9, 15, 25]  # T1 = day 10, T2 = day 20


def made_sequences(**split):
    """User 0: train 3, validation 2, test 1 events; user 1: train 3, validation 1, test 1."""
    return Sequences(
        items=np.array([0, 1, 1, 2, 2, 3, 0, 0, -1, 2, 3], dtype=np.int32),
        timestamps=np.array(DAYS) * SECONDS_PER_DAY,
        user_ids=np.array([10, 20]),
        starts=np.array([0, 6]),
        valid_starts=np.array([3, 9]),
        test_starts=np.array([5, 10]),
        ends=np.array([6, 11]),
        split={"num_items": 4, "train_end": 10 * SECONDS_PER_DAY, "valid_end": 20 * SECONDS_PER_DAY} | split,
    )


def test_unknown_items_are_not_counted():
    assert count_items(np.array([2, -1, 2, 0]), 4).tolist() == [1, 0, 2, 0]


def test_the_validation_window_is_judged_on_counts_of_train():
    assert fit_popularity(made_sequences(), "valid").tolist() == [3, 2, 0, 0]


def test_the_test_window_is_judged_on_counts_of_train_and_validation():
    assert fit_popularity(made_sequences(), "test").tolist() == [3, 2, 3, 0]


@pytest.mark.parametrize(
    ("part", "days", "counts"),
    [
        ("valid", 1, [1, 1, 0, 0]),
        ("valid", 2, [1, 2, 0, 0]),
        ("test", 1, [0, 0, 1, 0]),
        ("test", 5, [0, 0, 2, 0]),
        ("test", 99, [3, 2, 3, 0]),
    ],
)
def test_recent_popularity_counts_the_last_days_before_the_window(part, days, counts):
    assert fit_popularity(made_sequences(), part, days=days).tolist() == counts


@pytest.mark.parametrize("part", ["valid", "test"])
def test_leave_one_out_counts_all_that_comes_before_the_part(part):
    sequences = made_sequences(train_end=None, valid_end=None)
    validation = 3 if part == "test" else 0
    assert fit_popularity(sequences, part).tolist() == [3, 2, validation, 0]


@pytest.mark.parametrize("days", [None, 5])
def test_what_happens_in_the_window_changes_nothing(days):
    sequences = made_sequences()
    items = sequences.items.copy()
    items[[5, 10]] = 0
    changed = dataclasses.replace(sequences, items=items)
    assert np.array_equal(fit_popularity(changed, "test", days=days), fit_popularity(sequences, "test", days=days))
