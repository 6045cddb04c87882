"""The promotion rule by itself: which numbers pass, which keep a challenger out, and which decide nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.challenging.rule import Check, apply_rule, decide, explain, find_worse_slices
from components.settings import PromoteSettings, load_settings

LIMITS = PromoteSettings(
    max_loss=0.01,
    min_users=30,
    max_slice_loss=0.03,
    min_slice_users=50,
    max_latency_ms=50,
    max_megabytes=500,
    max_score_difference=1e-4,
)
FINE = {"latency_ms": 5.0, "megabytes": 2.0, "score_difference": 1e-7, "num_compared": 64}


def contest(low=0.0, *, users=100, gain=0.01, slices=(), has_champion=True):
    scored = users >= LIMITS.min_users or not has_champion
    paired = {"difference": low + 0.01, "low": low, "high": low + 0.02}
    return {
        "metric": "ndcg@10",
        "window": {"users": users},
        "has_champion": has_champion,
        "paired": paired if scored and has_champion else None,
        "baselines": {"item_item": {"difference": gain}, "popularity": {"difference": gain + 0.1}} if scored else {},
        "slices": list(slices),
    }


def judge(package=FINE, **options):
    checks = apply_rule({"contest": contest(**options), "package": package}, LIMITS)
    return decide(checks), [check.name for check in checks if not check.passed]


@pytest.mark.parametrize(("low", "verdict"), [(0.005, "passed"), (-0.01, "passed"), (-0.0101, "failed")])
def test_not_to_be_worse_by_more_than_delta_is_enough(low, verdict):
    assert judge(low=low)[0] == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(1e-6, "passed"), (0.0, "failed"), (-0.01, "failed")])
def test_every_baseline_has_to_be_beaten_and_the_best_is_named(gain, verdict):
    assert judge(gain=gain)[0] == verdict
    [check] = [check for check in apply_rule({"contest": contest(gain=gain)}, LIMITS) if "gain" in check.name]
    assert (check.observed, check.about) == (gain, "over item_item, the best baseline")


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        ({"difference": -0.05, "high": -0.01, "users": 50}, True),
        ({"difference": -0.05, "high": 0.01, "users": 50}, False),  # may be chance
        ({"difference": -0.02, "high": -0.01, "users": 50}, False),  # clear, but small
        ({"difference": -0.05, "high": -0.01, "users": 49}, False),  # too few
        ({"difference": 0.05, "high": 0.06, "users": 50}, False),
    ],
)
def test_a_slice_counts_where_it_is_worse_beyond_chance_by_more_than_its_limit_and_large_enough(one, counts):
    slices = [{"kind": "history", "name": "1-9"} | one]
    assert bool(find_worse_slices(slices, LIMITS)) == counts
    verdict, failed = judge(slices=slices)
    assert (verdict, failed) == (("failed", ["worse slices"]) if counts else ("passed", []))


@pytest.mark.parametrize(
    ("name", "value", "failed"),
    [("latency_ms", 51.0, "latency, ms"), ("megabytes", 501.0, "export, MB"), ("score_difference", 1e-3, "score diff")],
)
def test_each_budget_keeps_out_by_itself(name, value, failed):
    verdict, names = judge(package=FINE | {name: value})
    assert verdict == "failed"
    assert [found[: len(failed)] for found in names] == [failed]


def test_too_few_users_decide_nothing_but_a_broken_budget_does():
    assert judge(users=29) == ("undecided", ["users"])
    assert judge(users=29, package=FINE | {"megabytes": 501.0})[0] == "failed"
    assert judge(users=29, has_champion=False)[0] == "passed"  # nobody to stay in its place


@pytest.mark.parametrize("min_users", [2, 29, 30])
def test_nobody_scored_beside_the_champion_never_passes_whatever_the_limit(min_users):
    limits = LIMITS.model_copy(update={"min_users": min_users})
    checks = apply_rule({"contest": contest(users=29), "package": FINE}, limits)
    assert decide(checks) == "undecided"


def test_scored_users_count_too_where_more_are_asked_for():
    checks = apply_rule({"contest": contest(), "package": FINE}, LIMITS.model_copy(update={"min_users": 101}))
    assert (decide(checks), [str(check) for check in checks if not check.passed]) == (
        "undecided",
        ["users (whom neither has seen) is 100, at least 101 is asked for"],
    )


def test_without_a_package_only_the_contest_is_checked():
    assert [check.name for check in apply_rule({"contest": contest(), "package": None}, LIMITS)] == [
        "ndcg@10",
        "users",
        "ndcg@10 gain",
        "worse slices",
    ]


@given(st.sampled_from(["at least", "at most", "above"]), st.floats(allow_nan=False))
def test_nothing_that_is_no_number_passes(sense, limit):
    assert not Check("x", math.nan, sense, limit).passed


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_lower_end_never_turns_a_pass_into_a_failure(low, more, gain):
    order = ["failed", "passed"]
    assert order.index(judge(low=low + more, gain=gain)[0]) >= order.index(judge(low=low, gain=gain)[0])


def test_the_reasons_name_each_failed_check_with_its_number_and_limit():
    checks = apply_rule({"contest": contest(low=-0.5), "package": FINE | {"latency_ms": 80.0}}, LIMITS)
    assert explain(checks) == [
        "ndcg@10 (lower end, challenger - champion) is -0.5, at least -0.01 is asked for",
        "latency, ms (one answer, 200 events) is 80, at most 50 is asked for",
    ]
    fine = apply_rule({"contest": contest(), "package": FINE}, LIMITS)
    assert explain(fine)[0] == "every check of the challenge holds"


def test_params_yaml_asks_for_as_many_users_as_an_interval_needs():
    from components.ranking.paired import FEW_USERS

    assert load_settings().promote.min_users >= FEW_USERS
