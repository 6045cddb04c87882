"""Whom a comparison is true of, and what is said of it."""

import pytest
from made_logs import DAY

from components.comparison.answer import Comparison, Model, Row, Side, choose_metrics
from components.comparison.fairness import require_unseen
from components.comparison.words import conclude
from components.errors import InputError
from components.ranking.paired import FEW_USERS, Paired


def side(*seeds, **settings):
    models = tuple(Model(f"m{seed}", "hstu", {"seed": seed, **settings}, "d", 5, 0.0) for seed in seeds)
    return Side(models, tuple(0.1 + 0.01 * seed for seed in seeds))


def sentences(paired, a=None, b=None):
    rows = [Row("time_split", "ndcg@10", 0.3, 0.2, paired)] * 10
    return " ".join(conclude(Comparison("time_split", {"A": a or side(1), "B": b or side(1)}, rows)))


@pytest.mark.parametrize(
    ("paired", "verdict"),
    [
        (Paired(0.1, 0.05, 0.15, 0.95, 0.001, 100), "A is better: A - B is +0.1000"),
        (Paired(-0.1, -0.15, -0.05, 0.95, 0.001, 100), "B is better: A - B is -0.1000"),
        (Paired(0.1, -0.05, 0.25, 0.95, 0.2, 100), "cannot be told apart"),
        (Paired(0.1, 0.05, 0.15, 0.95, 0.2, FEW_USERS - 1), "the sign-flip test does not agree"),
    ],
)
def test_the_verdict_is_a_sentence_that_names_the_better_one(paired, verdict):
    assert verdict in sentences(paired)


def test_the_number_of_comparisons_and_the_one_to_quote_are_told():
    said = sentences(Paired(0.1, 0.05, 0.15, 0.95, 0.001, 100))
    assert "10 comparisons are printed; the one to quote is the first, ndcg@10 on time_split" in said
    assert "0.5 would look clear by chance" in said


@pytest.mark.parametrize(
    ("a", "b", "is_claim"),
    [
        (side(1, 2, 3), side(1, 2, 3), True),
        (side(1, 2), side(1, 2, 3), False),
        (side(1), side(1), False),
        (side(1, 2, 3), Side((Model("popularity", "popularity", {}, None, None, 0.0),), (0.1,)), True),
        (Side((Model("popularity", "popularity", {}, None, None, 0.0),), (0.1,)), side(1), False),
    ],
)
def test_only_three_seeds_a_side_speak_for_a_method(a, b, is_claim):
    said = sentences(Paired(0.1, 0.05, 0.15, 0.95, 0.001, 100), a, b)
    assert ("these checkpoints, not the methods" not in said) == is_claim


def test_a_side_of_different_methods_is_pointed_out():
    mixed = Side((*side(1, dim=50).models, *side(2, dim=64).models), (0.1, 0.2))
    assert "models of A differ in more than the seed: dim" in sentences(
        Paired(0.1, 0.05, 0.15, 0.95, 0.001, 100), mixed
    )
    assert "differ in more" not in sentences(Paired(0.1, 0.05, 0.15, 0.95, 0.001, 100), side(1, 2, backend="auto"))


def test_hr_is_shown_beside_ndcg_at_the_same_k_and_the_other_way_round():
    names = ["hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr"]
    assert choose_metrics("ndcg@10", names) == ("ndcg@10", "hr@10")
    assert choose_metrics("hr@5", names) == ("hr@5", "ndcg@5")
    assert choose_metrics("mrr", names) == ("mrr", "ndcg@5")


SPLIT = {"protocol": "time_split", "data_hash": "now", "train_end": 100 * DAY, "valid_end": 110 * DAY}
ONE_OUT = {"protocol": "leave_one_out", "data_hash": "now", "train_end": None, "valid_end": None}


@pytest.mark.parametrize(
    "trained",
    [
        SPLIT,
        SPLIT | {"data_hash": "last week's", "train_end": 93 * DAY, "valid_end": 103 * DAY},
        SPLIT | {"data_hash": "another", "valid_end": 100 * DAY},
        SPLIT | {"data_hash": "a shorter validation part", "train_end": 105 * DAY},
    ],
)
def test_a_model_that_has_seen_nothing_from_t2_on_may_compete(trained):
    require_unseen("m", trained, SPLIT)


@pytest.mark.parametrize(
    ("trained", "judged", "words"),
    [
        (SPLIT | {"valid_end": 110 * DAY + 1}, SPLIT, r"epoch chosen.*1970-04-21T00:00:01.*1970-04-21T00:00:00.*T2"),
        (SPLIT | {"valid_end": None}, SPLIT, r"an unknown time.*T2"),
        (ONE_OUT, SPLIT, r"all but each user's last two events, whenever.*T2"),
        (SPLIT, ONE_OUT, r"trained on time_split.*expected trained on leave_one_out"),
        (ONE_OUT | {"data_hash": "last week's"}, ONE_OUT, "leave_one_out of the log last week's"),
        ({}, SPLIT, "trained on None"),
    ],
)
def test_a_model_that_has_seen_held_out_events_is_refused_and_both_times_are_named(trained, judged, words):
    with pytest.raises(InputError, match=f"m: has seen events that are held out here.*{words}"):
        require_unseen("m", trained, judged)
