"""What looks too good, too bad or too lucky to be true: sentences for a reader, never a refusal.

    alarms = find_alarms(valid, test, model="hstu", metric=1, facts=facts)

The main one: a model that has seen the validation part is good there and not on test. The parts differ in difficulty,
and under a time split in users too, so the model's fall is measured against each baseline's:

    excess = (model / baseline on validation) / (model / baseline on test)      means over users

The baseline is the strongest on validation: popularity is too noisy to tell (ML-1M, leave-one-out: .87 by all-time
counts, 1.25 by recent ones). An honest model may exceed 1 too: it is fitted once, the baselines again before the test.
HSTU over item_item, excess and interval:

                                                          ML-100K, validation events trained on
                  ML-1M, honest       ML-100K, honest     12 epochs            30 epochs
    time_split    1.06 [.89, 1.26]    1.17 [.95, 1.46]    1.44 [1.18, 1.77]    1.71 [1.38, 2.11]
    leave_one_out  .95 [.87, 1.04]     .79 [.63,  .98]    1.29 [1.02, 1.61]    (one event a user: no alarm)

So a silent alarm proves nothing; that training reads no held-out event is for the tests to show.
Pure functions. Shapes: U users of both parts together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.console import percent
from components.metrics import bootstrap_interval
from components.ranking.conditions import SEED, Condition
from components.ranking.paired import FEW_USERS

SAMPLES, CONFIDENCE = 1000, 0.95  # of the bootstrap over users
MAX_EXCESS = 1.15  # of the interval's lower end
MAX_VALUE = 0.9  # four times the best NDCG@10 published for MovieLens
MIN_TIMES_CHANCE = 1.5  # the filter alone lifts chance, to 1.3 times with 400 of ML-100K's 1,600 items seen
SAME = 1e-9  # two rankings whose metrics differ by less for every user are one ranking
MIN_RISE = 0.01  # relative; a cosine schedule rises by less over its last tenth
# Above them the part is judged by something else than taste. ML-1M and ML-100K have .57 and .76 tied targets.
MAX_SHARES = {
    "tied_share": (
        0.9,
        "share their time with another event: their order is that of the source's rows, not the user's",
    ),
    "cold_share": (0.3, "are items that train never saw, misses for every model: raise the share of train or retrain"),
    # 0.5 is a log with every event twice, less where some are cold.
    "repeat_share": (0.4, "are in the history already and stay rankable: look for duplicates, and at repeats apart"),
}


def find_alarms(valid: Condition, test: Condition, *, model: str, metric: int, facts: Mapping[str, Any]) -> list[str]:
    """Return the sentences, the gravest first; an empty list where nothing is odd.

    `valid` and `test` are the conditions `<protocol>.valid` and `<protocol>`; every other model in them is a baseline.
    `metric` is the column of the headline metric. `facts` holds what facts.json does (`headline_metric`, `num_items`,
    the counts `valid` and `test`), and may hold checkpoint.json's `epochs` and `best_epoch`.
    """
    parts = {
        part: {name: values_UM[:, metric] for name, values_UM in condition.values.items()}
        for part, condition in (("valid", valid), ("test", test))
    }
    name = facts["headline_metric"]
    return [
        *_excess_on_validation(valid, test, model, metric, name),
        *(sentence for part, values in parts.items() for sentence in _implausible(part, values, model, name, facts)),
        *(sentence for part in parts for sentence in _odd_targets(part, facts[part])),
        *_first_or_last_epoch(facts.get("epochs", []), facts.get("best_epoch", 0)),
    ]


def measure_excess(valid: Condition, test: Condition, pair: tuple[str, str], metric: int) -> tuple[float, float, float]:
    """Return (excess, low, high) of pair[0] over the baseline pair[1], NaN where a mean is 0.

    The interval is a bootstrap over users; one who is in both parts keeps both values. What is resampled is each user's
    influence on log(excess), the delta method, because bootstrap_interval takes means and no ratios of means. On ML-1M
    it gives [1.15, 1.50] for recent popularity, the ratios of resampled means [1.14, 1.51].
    """
    users = np.union1d(valid.users, test.users)
    log_excess, influence_U = 0.0, torch.zeros(len(users), dtype=torch.float64)
    for part, sign_of_part in ((valid, 1), (test, -1)):
        rows = torch.from_numpy(np.searchsorted(users, part.users))
        for name, sign in zip(pair, (sign_of_part, -sign_of_part), strict=True):
            value_U = part.values[name][:, metric].double()
            mean = float(value_U.mean())
            if mean == 0:
                return math.nan, math.nan, math.nan
            log_excess += sign * math.log(mean)
            influence_U[rows] += sign * (value_U / mean - 1) * len(users) / len(rows)
    low, high = bootstrap_interval(influence_U[:, None], samples=SAMPLES, confidence=CONFIDENCE, seed=SEED)
    return math.exp(log_excess), math.exp(log_excess + low.item()), math.exp(log_excess + high.item())


def chance_level(metric: str, num_items: int) -> float:
    """Return what a constant scorer gets among `num_items`: C(X) / X, C the metric's sum over the ranks.

    >>> chance_level("hr@10", 200), round(chance_level("mrr", 3), 4)
    (0.05, 0.6111)
    """
    name, _, cutoff = metric.partition("@")
    ranks = np.arange(1, min(int(cutoff or num_items), num_items) + 1)
    gains = {"hr": np.ones(len(ranks)), "ndcg": 1 / np.log2(ranks + 1), "mrr": 1 / ranks}
    return float(gains[name].sum() / num_items)


def _excess_on_validation(valid: Condition, test: Condition, model: str, metric: int, name: str) -> Iterator[str]:
    means = {name: float(values_UM[:, metric].mean()) for name, values_UM in valid.values.items() if name != model}
    if not means or min(len(valid.users), len(test.users)) < FEW_USERS:
        return
    baseline = max(means, key=means.__getitem__)
    excess, low, high = measure_excess(valid, test, (model, baseline), metric)
    if low > MAX_EXCESS:
        yield (
            f"validation is far above test: {name} of {model} relative to {baseline} is {excess:.2f} times that on "
            f"test, {percent(CONFIDENCE)} interval [{low:.2f}, {high:.2f}], expected to reach below {MAX_EXCESS}; look "
            "for validation events in the training windows, or for choices made on them many times"
        )


def _implausible(
    part: str, values: Mapping[str, Tensor], model: str, metric: str, facts: Mapping[str, Any]
) -> Iterator[str]:
    """Find values near 1, near chance, or those of a baseline."""
    own_U = values[model]
    mean, chance = float(own_U.mean()), chance_level(metric, facts["num_items"])
    others = {name: value_U for name, value_U in values.items() if name != model}
    best = max((float(value_U.mean()) for value_U in others.values()), default=0.0)
    if mean > MAX_VALUE >= best:
        yield (
            f"too good on {part}: {metric} of {model} is {mean:.3f}, the best baseline's {best:.3f}, expected below "
            f"{MAX_VALUE}; look for the target, or its time alone, in what the model is given"
        )
    expected = MIN_TIMES_CHANCE * chance * (1 - facts[part]["cold_share"])  # a cold target is missed by chance as well
    if mean < expected and MIN_TIMES_CHANCE * chance < MAX_VALUE:  # else the metric cannot tell models apart
        yield (
            f"near chance on {part}: {metric} of {model} is {mean:.4f}, chance {chance:.4f}, expected above "
            f"{MIN_TIMES_CHANCE} times it; look for constant scores, an untrained model, or items numbered otherwise"
        )
    for name, other_U in others.items():
        is_constant = bool(own_U.max() - own_U.min() <= SAME)  # every target hit, or missed: by any ranking
        if not is_constant and torch.allclose(own_U, other_U, rtol=0, atol=SAME):
            yield (
                f"{model} is {name} on {part}: the same {metric} for each of {len(own_U)} users, expected differences; "
                "look for a scorer that ignores the history, or for one that is judged twice"
            )


def _odd_targets(part: str, counts: Mapping[str, Any]) -> Iterator[str]:
    for name, (limit, why) in MAX_SHARES.items():
        if counts[name] > limit:
            yield f"{name} of {part} is {counts[name]:.1%}, expected below {limit:.0%}: these targets {why}"


def _first_or_last_epoch(epochs: Iterable[Mapping[str, Any]], best: int) -> Iterator[str]:
    """Find a curve that only fell, or was still rising when training ended."""
    curve = [facts["valid_ndcg@10"] for facts in epochs]
    if len(curve) > 1 and best == 1:
        yield (
            f"the first of {len(curve)} epochs is the best on validation, expected a later one: it only got worse; "
            "lower the learning rate, or look for training targets of another kind than validation's"
        )
    earlier = max(curve[: -max(1, len(curve) // 10)], default=0.0)
    if len(curve) > 1 and best == len(curve) and curve[-1] > earlier * (1 + MIN_RISE):
        yield (
            f"the last of {len(curve)} epochs is the best on validation, {curve[-1]:.4f} after {earlier:.4f} a tenth "
            "earlier, expected a curve that is flat by then: the model is undertrained; raise the number of epochs"
        )
