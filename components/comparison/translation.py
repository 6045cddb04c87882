"""A model that knows another catalogue, judged on this one: item ids are what both have in common.

Its history is what it knows of the user's, as in the service; with nothing left of it, it answers what the service
would, the popular items. It cannot recommend an item that it does not know: such a target is a miss.
Shapes: T targets, X items here, Y items of the model's own catalogue, K events here with known items, k of them that
the model knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from components.ranking.blocks import Scorer
from components.ranking.targets import Targets


class TranslatingScorer:
    """Scores this catalogue (X) by a scorer of another one (Y)."""

    def __init__(
        self, scorer: Scorer, own_rows_X: np.ndarray, known_items_K: np.ndarray, popular_Y: Sequence[int]
    ) -> None:
        """Take the model's row of each item here, -1 for none, and all of its rows, the most popular first."""
        self._scorer, self._own_rows_X = scorer, own_rows_X
        self._known_here_X = torch.from_numpy(own_rows_X >= 0)
        self._own_items_K = own_rows_X[known_items_K]
        self._own_before_K = np.concatenate([[0], np.cumsum(self._own_items_K >= 0)])  # (K + 1,)
        place_Y = np.empty(len(popular_Y))
        place_Y[list(popular_Y)] = np.arange(len(popular_Y))
        self._popular_X = torch.from_numpy(-place_Y[own_rows_X]).float().where(self._known_here_X, -torch.inf)

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X); all -inf in the row of a target that the model does not know."""
        own = self.translate(targets)
        scores_TX = self._popular_X.repeat(len(targets), 1)
        scores_TX[torch.from_numpy(own.items < 0)] = -torch.inf
        can_answer = (own.items >= 0) & (own.history_lengths > 0)
        if can_answer.any():
            scores_TY = self._scorer(own.take(can_answer))
            translated = scores_TY[:, torch.from_numpy(self._own_rows_X.clip(0))]
            scores_TX[torch.from_numpy(can_answer)] = translated.where(self._known_here_X, -torch.inf)
        return scores_TX

    def translate(self, targets: Targets) -> Targets:
        """Return the same targets in the model's own rows, their histories without what it does not know."""
        is_own = self._own_items_K >= 0
        return replace(
            targets,
            items=np.where(targets.items >= 0, self._own_rows_X[targets.items], -1),
            firsts=self._own_before_K[targets.firsts],
            positions=self._own_before_K[targets.positions],
            known_items=self._own_items_K[is_own],
            known_timestamps=targets.known_timestamps[is_own],
        )
