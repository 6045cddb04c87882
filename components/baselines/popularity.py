"""Popularity: what a recommender must beat. Scores are event counts, so ties are many and ranked by expectation.

popularity          all events before the window that is judged
popularity_recent   only those of the last days before it; validation chooses how many (params: evaluate.recent_days)

Under a global time split on ML-20M the last 7 days reach NDCG@10 .167, a good SASRec .153.
Leave-one-out has no window: both are fitted on each user's events before the judged one, and "before the window" is the
end of these.
Shapes: E events, X catalogue size, U users, T targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.dataset import Sequences, rows_of_ranges

if TYPE_CHECKING:
    from components.ranking.targets import Targets

SECONDS_PER_DAY = 86_400


class PopularityScorer:
    """The same score for everybody: how often each item occurred, (X,)."""

    def __init__(self, counts: np.ndarray) -> None:
        # Ranks of counts instead of counts: exact in float32, which counts above 2**24 are not.
        _, places = np.unique(counts, return_inverse=True)
        self._scores_X = torch.from_numpy(places).float()

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        return self._scores_X.repeat(len(targets), 1)


def count_items(items: np.ndarray, num_items: int) -> np.ndarray:
    """Count the events of each catalogue row, (X,) int64; items of -1 count for nothing."""
    return np.bincount(items[items >= 0], minlength=num_items)


def fit_popularity(sequences: Sequences, part: str, *, days: int | None = None) -> np.ndarray:
    """Count each item's events, (X,) int64, before the window `part` ('valid' or 'test') begins.

    `days`: only the last ones before the window.
    """
    rows = rows_of_ranges(sequences.starts, find_known_before(sequences, part) - sequences.starts)
    items, timestamps = sequences.items[rows], sequences.timestamps[rows]
    if days is not None:
        recent = timestamps >= _window_start(sequences, part, timestamps) - days * SECONDS_PER_DAY
        items = items[recent]
    return count_items(items, sequences.num_items)


def find_known_before(sequences: Sequences, part: str) -> np.ndarray:
    """Return (U,) int64: where each user's events end that are known when the window begins."""
    return sequences.test_starts if part == "test" else sequences.valid_starts


def _window_start(sequences: Sequences, part: str, timestamps: np.ndarray) -> int:
    """Return T1 or T2; for leave-one-out the moment after the last known event."""
    start = sequences.split["train_end" if part == "valid" else "valid_end"]
    return int(start) if start is not None else int(timestamps.max(initial=-1)) + 1
