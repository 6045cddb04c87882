"""The verdict on a model: does it beat the best popularity baseline, for the users of the validation part?

    refused        the paired interval of (model - baseline) lies wholly below 0
    accepted       wholly above 0
    inconclusive   neither: packaged with this label and a printed warning

With fewer than 30 users the bootstrap interval is too narrow (without a true difference it accepts 16% of the time at 3
users and 7% at 8, where 2.5% is nominal), so there the sign-flip test has to agree, or the verdict is inconclusive.

Validation, not test: a gate looked at often would otherwise select on the test part. The baseline is the better of the
two on the same part, which favours the baseline. Pure functions. Shapes: U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from components.metrics import bootstrap_interval, sign_flip_test

Verdict = Literal["accepted", "inconclusive", "refused"]
FEW_USERS = 30  # below it a percentile interval covers visibly less than it says


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
    difference_U = model_U - baselines[baseline]
    interval = bootstrap_interval(difference_U[:, None], samples=samples, confidence=confidence, seed=seed)
    difference, low, high = (round(value.item(), 6) for value in (difference_U.mean(), *interval))
    p_value = round(sign_flip_test(difference_U, samples=samples, seed=seed), 6)
    is_sure = len(difference_U) >= FEW_USERS or p_value < 1 - confidence
    verdict = decide(low, high) if is_sure else "inconclusive"
    return Gate(
        verdict=verdict,
        metric=metric,
        model=name,
        baseline=baseline,
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        p_value=p_value,
        protocol=protocol,
        part="valid",
        num_users=len(difference_U),
        reasons=_reasons(f"{name} - {baseline}", metric, (difference, low, high), confidence, len(difference_U)),
    )


def decide(low: float, high: float) -> Verdict:
    """Return what the interval of the difference means.

    >>> decide(-0.02, -0.01), decide(-0.02, 0.0), decide(0.01, 0.02)
    ('refused', 'inconclusive', 'accepted')
    """
    if high < 0:
        return "refused"
    return "accepted" if low > 0 else "inconclusive"


def _reasons(
    pair: str, metric: str, interval: tuple[float, float, float], confidence: float, num_users: int
) -> list[str]:
    difference, low, high = interval
    where = {"refused": "wholly below 0", "accepted": "wholly above 0", "inconclusive": "around 0"}[decide(low, high)]
    value = f"{difference:+.4f}, {confidence:.0%} interval [{low:+.4f}, {high:+.4f}]"
    reasons = [f"on validation {metric} of {pair} is {value}, {where}"]
    if num_users < FEW_USERS:
        reasons.append(
            f"only {num_users} users: the interval is too narrow, so the sign-flip test has to agree with it"
        )
    return reasons
