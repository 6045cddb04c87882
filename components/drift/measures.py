"""How far one distribution has moved from another, in numpy; formulas with their sources.

Population stability index (Siddiqi 2006, "Credit Risk Scorecards"), of shares p (now) and q (then) in B bins:

    PSI = sum_b (p_b - q_b) ln(p_b / q_b)         the symmetric Kullback-Leibler divergence (Jeffreys 1946)

By custom below 0.1 nothing, above 0.25 a lot has moved. With n and m observations from the same distribution it is
about (B - 1) (1/n + 1/m) on average, not 0 (Yurdakul 2018): that is `by_chance`, and limits apply to what is above it.
Shapes: B bins, X items, N observations.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)  # lower bounds of the bins of history lengths
GROUPS = 10  # of items, by popularity


def measure_stability(now_B: np.ndarray, then_B: np.ndarray) -> tuple[float, float]:
    """Return PSI of two histograms of counts, and the value that chance alone gives; bins empty in both count not.

    Half an observation is added to every bin, so that an empty one gives no infinity.
    """
    is_used = (now_B + then_B) > 0
    now, then = now_B[is_used] + 0.5, then_B[is_used] + 0.5
    p, q = now / now.sum(), then / then.sum()
    by_chance = (len(p) - 1) * (1 / max(now_B.sum(), 1) + 1 / max(then_B.sum(), 1))
    return float(((p - q) * np.log(p / q)).sum()), float(by_chance)


def count_lengths(lengths_N: np.ndarray) -> np.ndarray:
    """Return how many histories (of one event at least) fall into each bin of LENGTHS."""
    return np.bincount(np.searchsorted(LENGTHS, lengths_N, side="right") - 1, minlength=len(LENGTHS))


def name_lengths() -> list[str]:
    """Return what the bins of LENGTHS are called."""
    names = [str(low) if high - low == 1 else f"{low}-{high - 1}" for low, high in pairwise(LENGTHS)]
    return [*names, f"{LENGTHS[-1]} or more"]


def group_items(counts_X: np.ndarray) -> np.ndarray:
    """Return the group of each item, 0 the most popular: groups of about equal shares of the training events."""
    order = np.argsort(-counts_X, kind="stable")
    before = np.cumsum(counts_X[order]) - counts_X[order]
    groups_X = np.empty(len(counts_X), np.int64)
    groups_X[order] = np.minimum(GROUPS * before // max(counts_X.sum(), 1), GROUPS - 1)
    return groups_X
