"""The verdict, and the numbers that it stands on."""

import json
from dataclasses import asdict

import pytest
import torch

from components.ranking.gate import decide, judge
from components.ranking.paired import FEW_USERS, Paired


def judged(model, **baselines):
    return judge(
        ("hstu", torch.tensor(model, dtype=torch.float64)),
        {name: torch.tensor(values, dtype=torch.float64) for name, values in baselines.items()},
        metric="ndcg@10",
        protocol="time_split",
        samples=500,
        confidence=0.95,
        seed=1,
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, -0.1, "refused"),
        (-0.1, 0.0, "inconclusive"),
        (-0.1, 0.1, "inconclusive"),
        (0.0, 0.0, "inconclusive"),
        (0.0, 0.1, "inconclusive"),
        (0.1, 0.2, "accepted"),
    ],
)
def test_the_interval_decides_and_zero_itself_belongs_to_neither_side(low, high, verdict):
    assert decide(Paired((low + high) / 2, low, high, 0.95, 0.5, num_users=FEW_USERS)) == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0.2, "accepted"), (0.0, "inconclusive"), (-0.2, "refused")])
def test_a_model_is_judged_by_its_paired_difference_to_the_baseline(shift, verdict):
    baseline = torch.rand(60, generator=torch.Generator().manual_seed(0)).tolist()
    model = [value + shift + (0.05 if user % 2 else -0.05) for user, value in enumerate(baseline)]
    gate = judged(model, popularity=baseline)
    assert gate.verdict == verdict
    assert gate.low <= gate.difference <= gate.high
    assert gate.difference == pytest.approx(shift, abs=1e-6)
    assert (gate.p_value < 0.05) == (verdict != "inconclusive")


@pytest.mark.parametrize("best", ["popularity", "popularity_recent", "item_item", "contextual"])
def test_the_baseline_to_beat_is_the_best_of_all(best):
    names = ("popularity", "popularity_recent", "item_item", "contextual")
    gate = judged([0.5] * 40, **{name: [0.4 if name == best else 0.2] * 40 for name in names})
    assert gate.baseline == best
    assert gate.difference == pytest.approx(0.1)
    assert f"hstu - {best}, the best of 4 baselines" in gate.reasons[0]
    assert judged([0.3] * 40, **{name: [0.4 if name == best else 0.2] * 40 for name in names}).verdict == "refused"


def test_the_choice_of_the_best_baseline_errs_to_the_safe_side():
    """Four baselines as good as the model: against the best of them it is accepted less often than against any one."""
    random = torch.Generator().manual_seed(3)
    verdicts = {"any": [], "best": []}
    for _ in range(60):
        model, *baselines = torch.rand(5, 40, generator=random).tolist()
        named = dict(zip(("popularity", "popularity_recent", "item_item", "contextual"), baselines, strict=True))
        verdicts["best"].append(judged(model, **named).verdict)
        verdicts["any"] += [judged(model, **{name: values}).verdict for name, values in named.items()]
    accepted, refused = (
        {kind: found.count(verdict) / len(found) for kind, found in verdicts.items()}
        for verdict in ("accepted", "refused")
    )
    assert accepted["best"] <= accepted["any"] <= 0.05
    assert refused["best"] > refused["any"]


@pytest.mark.parametrize(
    ("users", "verdict"), [(1, "inconclusive"), (3, "inconclusive"), (5, "inconclusive"), (12, "accepted")]
)
def test_a_handful_of_users_proves_nothing_however_clear_they_look(users, verdict):
    gate = judged([0.5 + 0.01 * user for user in range(users)], popularity=[0.2] * users)
    assert gate.low > 0
    assert gate.verdict == verdict


def test_few_users_are_named_as_a_reason():
    few, enough = (judged([0.5] * n, popularity=[0.2] * n) for n in (FEW_USERS - 1, FEW_USERS))
    assert f"only {FEW_USERS - 1} users" in few.reasons[1]
    assert len(enough.reasons) == 1


def test_the_gate_is_json_with_every_promised_key():
    gate = json.loads(json.dumps(asdict(judged([0.5, 0.4], popularity=[0.2, 0.4])), allow_nan=False))
    promised = "verdict metric model baseline difference low high protocol part num_users reasons"
    assert set(promised.split()) <= set(gate)
    assert (gate["part"], gate["num_users"]) == ("valid", 2)
