import json

import numpy as np
import pandas as pd
import pytest

from components.expectations.facts import Facts, count_events
from components.expectations.profile import MAX_ACTIONS, SKETCH_SIZE, compare, profile_log, share_of_new, sketch


def events(users: list[int], items: list[int], actions: list[str]) -> Facts:
    columns = {"user_id": users, "item_id": items, "timestamp": [10**9 + i for i in range(len(users))]}
    frame = pd.DataFrame(columns, dtype="Int64")
    return count_events(frame.assign(action=pd.Categorical(actions)))


def test_a_profile_counts_what_the_log_holds():
    profile = profile_log(events([1, 1, 2], [5, 6, 5], ["b", "a", "b"]), "made")
    sketches = {name: profile.pop(name) for name in ("user_sketch", "item_sketch")}
    assert profile == {
        "source": "made",
        "num_events": 3,
        "num_users": 2,
        "num_items": 2,
        "num_months": 1,
        "first_timestamp": 10**9,
        "last_timestamp": 10**9 + 2,
        "actions": [["b", 2], ["a", 1]],
    }
    assert sketches["user_sketch"] != sketches["item_sketch"]


def test_a_profile_of_a_million_ids_stays_small():
    ids = np.arange(1_000_000)
    frame = pd.DataFrame({"user_id": ids, "item_id": ids, "timestamp": ids, "action": pd.Categorical(["a"] * len(ids))})
    assert len(json.dumps(profile_log(count_events(frame), "made"))) < 25_000


def test_the_share_of_new_ids_is_exact_while_the_sketch_holds_all_of_them():
    promoted = sketch(np.arange(1000))
    assert share_of_new(np.arange(1000), promoted) == 0.0
    assert share_of_new(np.arange(500, 1500), promoted) == 0.5
    assert share_of_new(np.arange(-300, 0), promoted) == 1.0


@pytest.mark.parametrize(("first_new", "share"), [(50_000, 0.0), (37_500, 0.25), (5_000, 0.9), (0, 1.0)])
def test_the_share_of_new_ids_is_estimated_within_its_standard_error(first_new: int, share: float):
    now = np.where(np.arange(50_000) < first_new, np.arange(50_000), np.arange(50_000) + 10**12)
    estimate = share_of_new(now, sketch(np.arange(50_000)))
    error = np.sqrt(share * (1 - share) / SKETCH_SIZE)
    assert abs(estimate - share) <= 4 * error + 1e-3  # the sample's size varies too


def test_a_share_without_a_sampled_id_is_zero():
    assert share_of_new(np.arange(2), sketch(np.arange(10**6) + 10)) == 0.0


def test_a_log_does_not_differ_from_its_own_profile_after_json():
    log = events([1, 1, 2, 3], [5, 6, 5, 7], ["a", "b", "a", "c"])
    profile = json.loads(json.dumps(profile_log(log, "made")))
    assert compare(log, profile) == {
        "volume_ratio": 1.0,
        "new_user_share": 0.0,
        "new_item_share": 0.0,
        "action_shift": 0.0,
    }


@pytest.mark.parametrize(
    ("then", "now", "shift"),
    [
        (["a", "a", "b", "b"], ["a", "a", "a", "b"], 0.25),
        (["a", "a"], ["b", "b"], 1.0),
        (["a", "b"], ["a", "c"], 0.5),
        (["a", "b", "c", "d"], ["a", "a", "e", "f"], 0.75),
    ],
)
def test_the_action_shift_is_the_total_variation(then: list[str], now: list[str], shift: float):
    promoted = profile_log(events([1] * len(then), [1] * len(then), then), "made")
    assert compare(events([1] * len(now), [1] * len(now), now), promoted)["action_shift"] == pytest.approx(shift)


def test_what_is_exactly_at_its_bound_is_not_above_it_by_rounding():
    assert share_of_new(np.arange(9, 39), sketch(np.arange(30))) == 0.3
    promoted = profile_log(events([1] * 5, [1] * 5, ["a"] * 2 + ["b"] * 3), "made")
    assert compare(events([1] * 5, [1] * 5, ["a"] + ["b"] * 4), promoted)["action_shift"] == 0.2


def test_rare_actions_beyond_the_limit_are_compared_as_one():
    many = [f"action {i}" for i in range(3 * MAX_ACTIONS)]
    log = events([1] * len(many), [1] * len(many), many)
    profile = profile_log(log, "made")
    assert len(profile["actions"]) == MAX_ACTIONS
    assert compare(log, profile)["action_shift"] == pytest.approx(0.0)
    renamed = events([1] * len(many), [1] * len(many), [f"other {i}" for i in range(len(many))])
    assert compare(renamed, profile)["action_shift"] == pytest.approx(1 / 3)


def test_a_log_without_events_is_compared_without_dividing_by_zero():
    empty, full = events([], [], []), events([1], [1], ["a"])
    assert compare(empty, profile_log(full, "made"))["volume_ratio"] == 0.0
    assert compare(full, profile_log(empty, "made"))["new_item_share"] == 1.0
