"""The verdict on a model: does it beat the best of all baselines, for the users of the validation part?

    refused        the paired interval of (model - best baseline) lies wholly below 0
    accepted       wholly above 0
    inconclusive   neither: packaged with this label and a printed warning

With fewer than 30 users the sign-flip test has to agree as well, or the verdict is inconclusive (components/ranking/
paired.py says why).

Validation, not test: a gate looked at often would otherwise select on the test part. The best baseline is chosen on the
same part that judges the model, which favours the baseline: of four that are as good as the model, the best looks 0.7
standard errors better than it is. So the gate errs to the safe side: such a model is accepted in 0.1% of all cases
(2.5% against one fixed baseline) and refused in 8% (3,000 simulated logs of 50 and of 1,000 users). Pure functions.
Shapes: U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from components.console import percent
from components.ranking.paired import FEW_USERS, Paired, compare_users

Verdict = Literal["accepted", "inconclusive", "refused"]


@dataclass(frozen=True)
class Gate:
    """reports/gate.json. `difference` is model - baseline in `metric`, mean over users; [low, high] its interval."""

    verdict: Verdict
    metric: str
    model: str
    baseline: str
    difference: float
    low: float
    high: float
    confidence: float
    p_value: float  # sign-flip test, two-sided; with fewer than FEW_USERS it has to agree
    protocol: str
    part: str
    num_users: int
    reasons: list[str]


def judge(
    model: tuple[str, Tensor],
    baselines: Mapping[str, Tensor],
    *,
    metric: str,
    protocol: str,
    samples: int,
    confidence: float,
    seed: int,
) -> Gate:
    """Compare a model with the best of the baselines; each comes with its metric per user, (U,), same users, U >= 1."""
    name, model_U = model
    baseline = max(baselines, key=lambda key: float(baselines[key].mean()))
    paired = compare_users(model_U, baselines[baseline], samples=samples, confidence=confidence, seed=seed)
    return Gate(
        verdict=decide(paired),
        metric=metric,
        model=name,
        baseline=baseline,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        confidence=confidence,
        p_value=paired.p_value,
        protocol=protocol,
        part="valid",
        num_users=paired.num_users,
        reasons=_reasons(f"{name} - {baseline}, the best of {len(baselines)} baselines,", metric, paired),
    )


def decide(paired: Paired) -> Verdict:
    """Return what the comparison (model, baseline) means for the model."""
    verdicts: dict[str | None, Verdict] = {"a": "accepted", "b": "refused", None: "inconclusive"}
    return verdicts[paired.better]


def _reasons(pair: str, metric: str, paired: Paired) -> list[str]:
    where = "wholly above 0" if paired.low > 0 else "wholly below 0" if paired.high < 0 else "around 0"
    value = f"{paired.difference:+.4f}, {percent(paired.confidence)} interval [{paired.low:+.4f}, {paired.high:+.4f}]"
    reasons = [f"on validation {metric} of {pair} is {value}, {where}"]
    if paired.num_users < FEW_USERS:
        reasons.append(
            f"only {paired.num_users} users: the interval is too narrow, so the sign-flip test has to agree with it"
        )
    return reasons
