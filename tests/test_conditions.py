"""Which targets count in which condition, and what is averaged over what."""

import numpy as np
import pytest
import torch

from components.ranking.conditions import Interval, Judged, average, build_conditions, slice_by_history, tabulate
from components.ranking.targets import Targets

INTERVAL = Interval(samples=100, confidence=0.9)


def judged(users, filtered, unfiltered, history_lengths=None):
    """One metric of one model; targets are given by their users alone."""
    lengths = np.ones(len(users), dtype=np.int64) if history_lengths is None else np.array(history_lengths)
    nothing = np.zeros(len(users), dtype=np.int64)
    targets = Targets(nothing, np.array(users), nothing, nothing, lengths, nothing, nothing)
    kinds = [{"hstu": torch.tensor(values, dtype=torch.float64)[:, None]} for values in (filtered, unfiltered)]
    return Judged(targets, *kinds)


VALID = judged([3, 5], [0.1, 0.3], [0.7, 0.9])
TEST = judged([3, 3, 3, 8, 9, 9], [0.0, 0.3, 0.6, 1.0, 0.2, 0.4], [0.0, 0.0, 0.3, 0.5, 0.1, 0.1])


def values_of(conditions):
    return {name: condition.values["hstu"][:, 0].tolist() for name, condition in conditions.items()}


def test_each_condition_averages_its_own_targets_per_user():
    assert values_of(build_conditions("time_split", VALID, TEST)) == {
        "time_split": pytest.approx([0.3, 1.0, 0.3]),
        "time_split.unfiltered": pytest.approx([0.1, 0.5, 0.1]),
        "time_split.first": pytest.approx([0.0, 1.0, 0.2]),
        "time_split.last": pytest.approx([0.6, 1.0, 0.4]),
        "time_split.valid": pytest.approx([0.1, 0.3]),
    }


def test_a_condition_knows_whose_values_it_has():
    conditions = build_conditions("leave_one_out", VALID, TEST)
    assert set(conditions) == {"leave_one_out", "leave_one_out.unfiltered", "leave_one_out.valid"}
    assert conditions["leave_one_out"].users.tolist() == [3, 8, 9]
    assert conditions["leave_one_out.valid"].users.tolist() == [3, 5]


def test_the_table_averages_over_users_and_not_over_targets():
    table = tabulate(build_conditions("time_split", VALID, TEST), ["mrr"], INTERVAL)
    cell = table["time_split"]["hstu"]["mrr"]
    assert cell["value"] == pytest.approx((0.3 + 1.0 + 0.3) / 3, abs=1e-6)
    assert cell["low"] <= cell["value"] <= cell["high"]


def test_chosen_targets_alone_are_averaged():
    chosen = average(TEST.targets, TEST.filtered, np.array([True, True, False, False, False, False]))
    assert chosen.users.tolist() == [3]
    assert chosen.values["hstu"].tolist() == [[pytest.approx(0.15)]]


def test_slices_cover_every_history_length_once():
    lengths = [1, 9, 10, 29, 300, 5000]
    slices = slice_by_history(judged([1, 1, 1, 2, 2, 2], [1, 0, 1, 0, 0.5, 0.7], [0] * 6, lengths), 0, INTERVAL)
    found = [(one["history"], one["targets"], one["users"], one["models"]["hstu"]["value"]) for one in slices]
    assert found == [("1-9", 2, 1, 0.5), ("10-29", 2, 2, 0.5), ("300+", 2, 1, 0.6)]
