"""Which targets count in which condition, and what is averaged over what."""

import numpy as np
import pytest
import torch

from components.ranking.conditions import Condition, Interval, Judged, average, build_conditions, summarize, tabulate
from components.ranking.targets import Targets

INTERVAL = Interval(samples=100, confidence=0.9)


def judged(users, filtered, unfiltered):
    """One metric of one model; targets are given by their users alone."""
    nothing = np.zeros(len(users), dtype=np.int64)
    targets = Targets(nothing, np.array(users), nothing, nothing, nothing, nothing, nothing, nothing)
    kinds = [{"hstu": torch.tensor(values, dtype=torch.float64)[:, None]} for values in (filtered, unfiltered)]
    return Judged(targets, {}, *kinds)


VALID = judged([3, 5], [0.1, 0.3], [0.7, 0.9])
TEST = judged([3, 3, 3, 8, 9, 9], [0.0, 0.3, 0.6, 1.0, 0.2, 0.4], [0.0, 0.0, 0.3, 0.5, 0.1, 0.1])
UNKNOWN = judged([3, 8, 9], [0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
TIED = np.array([True, True, False, False, True, True])


def conditions_of(protocol, is_tied=TIED):
    return build_conditions(protocol, VALID, TEST, UNKNOWN, is_tied)


def values_of(conditions):
    return {name: condition.values["hstu"][:, 0].tolist() for name, condition in conditions.items()}


def test_each_condition_averages_its_own_targets_per_user():
    assert values_of(conditions_of("time_split")) == {
        "time_split": pytest.approx([0.3, 1.0, 0.3]),
        "time_split.unfiltered": pytest.approx([0.1, 0.5, 0.1]),
        "time_split.unknown_time": pytest.approx([0.1, 0.2, 0.3]),
        "time_split.untied": pytest.approx([0.6, 1.0]),
        "time_split.first": pytest.approx([0.0, 1.0, 0.2]),
        "time_split.last": pytest.approx([0.6, 1.0, 0.4]),
        "time_split.valid": pytest.approx([0.1, 0.3]),
    }


def test_a_condition_knows_whose_values_it_has():
    conditions = conditions_of("leave_one_out")
    suffixes = ("", ".unfiltered", ".unknown_time", ".untied", ".valid")
    assert set(conditions) == {f"leave_one_out{suffix}" for suffix in suffixes}
    assert conditions["leave_one_out"].users.tolist() == [3, 8, 9]
    assert conditions["leave_one_out.untied"].users.tolist() == [3, 8]
    assert conditions["leave_one_out.valid"].users.tolist() == [3, 5]


def test_where_all_targets_are_tied_there_is_nothing_to_say_about_the_others():
    assert "time_split.untied" not in conditions_of("time_split", np.ones(6, dtype=bool))


def test_the_table_averages_over_users_and_not_over_targets():
    table = tabulate(conditions_of("time_split"), ["mrr"], INTERVAL)
    cell = table["time_split"]["hstu"]["mrr"]
    assert cell["value"] == pytest.approx((0.3 + 1.0 + 0.3) / 3, abs=1e-6)
    assert cell["low"] <= cell["value"] <= cell["high"]


def test_chosen_targets_alone_are_averaged():
    chosen = average(TEST.targets, TEST.filtered, np.array([True, True, False, False, False, False]))
    assert chosen.users.tolist() == [3]
    assert chosen.values["hstu"].tolist() == [[pytest.approx(0.15)]]


def test_the_interval_of_a_model_does_not_depend_on_the_models_beside_it():
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    users = np.arange(40)
    together = Condition(users, {"a": values, "b": values.flip(0), "c": values * 2})
    assert (
        summarize(together, ["x", "y"], INTERVAL)["b"]
        == summarize(Condition(users, {"b": values.flip(0)}), ["x", "y"], INTERVAL)["b"]
    )
