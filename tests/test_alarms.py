"""What is shouted at and what is not: a leak, luck, broken scores, odd targets, a training that ended too early."""

import dataclasses

import numpy as np
import pytest
import torch
from made_canaries import LEARNING, PROTOCOLS, canary_log, split_log
from made_logs import train_settings

from components.dataset import load_sequences
from components.fitting.loop import Trainer
from components.metrics import measure
from components.ranking.alarms import MAX_EXCESS, chance_level, find_alarms, measure_excess
from components.ranking.blocks import ModelScorer, rank_catalogue
from components.ranking.conditions import Condition, average
from components.ranking.targets import find_targets

COUNTS = {"cold_share": 0.01, "tied_share": 0.77, "repeat_share": 0.0}  # of ML-1M, rounded up
FACTS = {"headline_metric": "ndcg@10", "num_items": 3_000, "valid": COUNTS, "test": COUNTS}
MAX_LEN = 12


def condition(users=400, seed=0, first_user=0, **means):
    """One metric of several models; a user's values are exponential around the mean, cut at 1, and rise together."""
    easy_U = np.random.default_rng(seed).exponential(size=users)
    noise = np.random.default_rng(seed + 1)
    values = {name: np.clip(mean * easy_U * noise.uniform(0.8, 1.2, users), 0, 1) for name, mean in means.items()}
    return Condition(
        np.arange(first_user, first_user + users),
        {name: torch.from_numpy(value_U)[:, None] for name, value_U in values.items()},
    )


def alarms(valid_part, test_part, **changes):
    return find_alarms(valid_part, test_part, model="hstu", metric=0, facts=FACTS | changes)


HONEST = condition(hstu=0.12, item_item=0.08), condition(seed=5, first_user=200, hstu=0.11, item_item=0.08)


def test_an_honest_evaluation_is_silent():
    assert alarms(*HONEST) == []


# validation above test


def test_a_part_that_is_harder_for_everybody_is_no_alarm():
    """ML-1M, time split: NDCG@10 .157 on validation, .112 on test, and item_item falls as far."""
    assert alarms(condition(hstu=0.157, item_item=0.068), condition(seed=5, hstu=0.112, item_item=0.049)) == []


def test_a_model_that_falls_alone_is_an_alarm_that_says_how_far():
    [alarm] = alarms(condition(hstu=0.2, item_item=0.08), condition(seed=5, hstu=0.1, item_item=0.08))
    assert alarm.startswith("validation is far above test: ndcg@10 of hstu relative to item_item is 1.89 times")
    assert "95% interval [1.81, 1." in alarm
    assert "validation events in the training windows" in alarm


def test_the_strongest_baseline_is_the_measure():
    valid = condition(hstu=0.2, item_item=0.08, popularity=0.03)
    test = condition(seed=5, hstu=0.1, item_item=0.04, popularity=0.03)
    assert alarms(valid, test) == []


@pytest.mark.parametrize(("users", "expected"), [(29, 0), (30, 1)])
def test_too_few_users_for_an_interval_are_no_alarm(users, expected):
    parts = [condition(users=users, seed=seed, hstu=mean, item_item=0.08) for seed, mean in ((0, 0.3), (5, 0.1))]
    assert len(alarms(*parts)) == expected


def test_without_a_baseline_or_with_one_that_never_hits_nothing_can_be_said():
    valid, test = condition(hstu=0.2), condition(hstu=0.1)
    assert alarms(valid, test) == []
    zero = torch.zeros(400, 1, dtype=torch.float64)
    parts = [dataclasses.replace(part, values=part.values | {"popularity": zero}) for part in (valid, test)]
    assert alarms(*parts) == []


def test_the_excess_is_the_ratio_of_ratios_with_users_of_both_parts_resampled_together():
    valid, test = HONEST
    excess, low, high = measure_excess(valid, test, ("hstu", "item_item"), 0)
    means = [part.values[name].mean() for part in (valid, test) for name in ("hstu", "item_item")]
    assert excess == pytest.approx(float(means[0] / means[1] / (means[2] / means[3])))
    drawn = np.random.default_rng(0).integers(600, size=(1000, 600))  # users 0 to 599: 200 to 399 are in both parts
    logs = np.zeros(1000)
    for part, sign in ((valid, 1), (test, -1)):
        for name, side in (("hstu", 1), ("item_item", -1)):
            value_U, is_in = np.zeros(600), np.zeros(600)
            value_U[part.users], is_in[part.users] = part.values[name][:, 0], 1
            logs += sign * side * np.log(value_U[drawn].sum(1) / is_in[drawn].sum(1))
    assert (low, high) == pytest.approx(np.exp(np.quantile(logs, [0.025, 0.975])).tolist(), rel=0.02)


@pytest.mark.parametrize(("first", "second"), [(0.2, 1.0), (1.0, 0.2), (0.1, 0.3)])
def test_the_excess_depends_neither_on_the_scale_of_a_metric_nor_on_that_of_a_part(first, second):
    parts = [
        dataclasses.replace(part, values={name: value_U1 * scale for name, value_U1 in part.values.items()})
        for part, scale in zip(HONEST, (first, second), strict=True)
    ]
    expected = measure_excess(*HONEST, ("hstu", "item_item"), 0)
    assert measure_excess(*parts, ("hstu", "item_item"), 0) == pytest.approx(expected)


# a real training, honest and not


@pytest.fixture(scope="module", params=PROTOCOLS)
def noise(request, tmp_path_factory):
    """A log without any order to be learnt: whatever is good on validation was seen there."""
    random = np.random.default_rng(0)
    events = [(user, int(random.integers(60)) + 1, time) for user, _, time in canary_log(num_users=150, num_events=8)]
    return load_sequences(split_log(tmp_path_factory.mktemp("log"), events, request.param).sequences_folder)


def judge_training(sequences, trained_on):
    """Train on `trained_on`, judge on `sequences`; an even spread of chance is the baseline."""
    trainer = Trainer(train_settings(**LEARNING, epochs=25), "hstu", sequences, torch.device("cpu"))
    trainer.sequences = trained_on
    trainer.fit(None, lambda state: None)
    conditions = []
    for part in ("valid", "test"):
        targets = find_targets(sequences, part)
        scorers = {
            "hstu": ModelScorer(trainer.model.eval(), MAX_LEN),
            "chance": lambda some: torch.zeros(len(some), sequences.num_items),
        }
        ranks = rank_catalogue(scorers, targets, sequences.num_items, block_bytes=1 << 20, what="ranking")
        conditions.append(average(targets, {name: measure(found["filtered"], [10]) for name, found in ranks.items()}))
    facts = FACTS | {"num_items": sequences.num_items}
    found = find_alarms(*conditions, model="hstu", metric=1, facts=facts)
    return [alarm for alarm in found if "validation is far above test" in alarm]


def test_a_model_trained_on_the_validation_events_is_an_alarm_and_an_honest_one_is_none(noise):
    assert judge_training(noise, noise) == []
    leaking = dataclasses.replace(noise, valid_starts=noise.test_starts, items=np.maximum(noise.items, 0))
    [alarm] = judge_training(noise, leaking)
    assert f"expected to reach below {MAX_EXCESS}" in alarm


# values that cannot be


def test_a_model_near_1_is_an_alarm_unless_a_baseline_is_there_too():
    near = condition(hstu=0.12, item_item=0.08)
    near.values["hstu"][:] = 0.97
    assert any("too good on test" in alarm for alarm in alarms(HONEST[0], near))
    near.values["item_item"][:] = 0.95
    assert not any("too good" in alarm for alarm in alarms(HONEST[0], near))


def test_constant_scores_are_an_alarm_about_chance():
    valid, test = HONEST
    constant = dataclasses.replace(
        test,
        values=test.values | {"hstu": torch.full_like(test.values["hstu"], 1.2 * chance_level("ndcg@10", 3_000))},
    )
    [alarm] = [one for one in alarms(valid, constant) if "chance" in one]
    assert alarm.startswith("near chance on test: ndcg@10 of hstu is 0.0018, chance 0.0015")


def test_a_tiny_catalogue_where_chance_is_high_is_no_alarm():
    """Among two items chance is (1 + 1 / log2(3)) / 2 = .82: no model is 1.5 times as good."""
    valid, test = condition(hstu=0.12, item_item=0.08), condition(hstu=0.12, item_item=0.08)
    for part in (valid, test):
        part.values["hstu"][:], part.values["item_item"][:] = 0.95, 0.93
    assert not any("near chance" in alarm for alarm in alarms(valid, test, num_items=2))


def test_a_model_that_ranks_as_a_baseline_does_is_an_alarm():
    valid, test = HONEST
    same = dataclasses.replace(test, values=test.values | {"hstu": test.values["item_item"].clone()})
    assert any(alarm.startswith("hstu is item_item on test") for alarm in alarms(valid, same))


def test_a_metric_that_cannot_tell_models_apart_is_no_alarm():
    """Ten items are all among the first ten, and one user's every event is missed by everybody."""
    valid, test = condition(hstu=0.12, item_item=0.08), condition(hstu=0.12, item_item=0.08)
    for part, value in ((valid, 0.0), (test, 0.8)):
        part.values["hstu"][:] = part.values["item_item"][:] = value
    assert not any("hstu is item_item" in alarm for alarm in alarms(valid, test))
    assert not any("near chance on test" in alarm for alarm in alarms(valid, test, num_items=2))


def test_cold_targets_are_missed_by_chance_too():
    counts = COUNTS | {"cold_share": 0.25}
    valid, test = condition(hstu=0.12, item_item=0.08), condition(hstu=0.12, item_item=0.08)
    test.values["hstu"] *= 1.3 * chance_level("ndcg@10", 100) / test.values["hstu"].mean()
    assert any("near chance on test" in alarm for alarm in alarms(valid, test, num_items=100))
    assert not any("near chance on test" in alarm for alarm in alarms(valid, test, num_items=100, test=counts))


# targets and epochs


@pytest.mark.parametrize("name", ["cold_share", "tied_share", "repeat_share"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_huge_share_of_odd_targets_is_an_alarm_with_the_share_in_it(name, part):
    [alarm] = alarms(*HONEST, **{part: COUNTS | {name: 0.95}})
    assert alarm.startswith(f"{name} of {part} is 95.0%, expected below")


def epochs(*curve):
    return {
        "epochs": [{"epoch": n, "loss": 1.0, "valid_ndcg@10": value} for n, value in enumerate(curve, 1)],
        "best_epoch": int(np.argmax(curve)) + 1,
    }


def test_a_curve_that_only_falls_or_still_rises_is_a_note():
    [fallen] = alarms(*HONEST, **epochs(0.1, 0.09, 0.08))
    assert fallen.startswith("the first of 3 epochs is the best")
    [rising] = alarms(*HONEST, **epochs(*np.linspace(0.01, 0.1, 20)))
    assert "undertrained" in rising


@pytest.mark.parametrize("curve", [(0.1,), (0.05, 0.1, 0.09), (*np.linspace(0.01, 0.1, 20), 0.1, 0.1005, 0.1008)])
def test_a_curve_that_is_flat_at_its_end_or_too_short_to_tell_is_none(curve):
    assert alarms(*HONEST, **epochs(*curve)) == []
