"""NDCG@10 on the validation part, after each epoch: chooses the epoch that is kept. The test part is never read here.

The same ranking and metric as in the evaluation that reports, made cheap enough for every epoch in two ways: targets
are a sample where there are many, and those with long histories share encoder windows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.dataset import Sequences
from components.errors import StateError
from components.metrics import average_by_user, expected_ndcg
from components.ranking.blocks import ModelScorer, rank_catalogue
from components.ranking.targets import Targets, choose_evenly, find_targets

if TYPE_CHECKING:
    from components.model import SequenceModel

CUTOFF = 10
MAX_USERS = 2_000  # evenly spaced over all
MAX_TARGETS = 20_000  # ML-1M, time split: all 99,000 take 8 s, a quarter of an epoch
_BLOCK_BYTES = 2**26


class ValidationPart:
    """The validation events of one protocol, to be measured after every epoch.

    Raises:
        StateError: no validation event has a history.
    """

    def __init__(self, sequences: Sequences, max_len: int) -> None:
        self._max_len, self._num_items = max_len, sequences.num_items
        self.targets = choose_targets(find_targets(sequences, "valid"))
        if len(self.targets) == 0:
            raise StateError(
                "no validation event has a history, so no epoch can be chosen",
                observed=f"events per part: {sequences.split['events']}",
                todo="Ingest a longer log, or raise sequences.valid_fraction in params.yaml",
            )

    @property
    def num_users(self) -> int:
        """How many users the average is over."""
        return len(np.unique(self.targets.users))

    def measure_ndcg(self, model: SequenceModel) -> float:
        """Return NDCG@10, averaged per user, then over users; leaves the model in evaluation mode."""
        model.eval()
        with torch.inference_mode():
            scorers = {"model": SharedWindowScorer(model, self._max_len)}
            ranks = rank_catalogue(
                scorers, self.targets, self._num_items, block_bytes=_BLOCK_BYTES, what="ranking validation"
            )
        gains_T = expected_ndcg(ranks["model"]["filtered"], CUTOFF)
        _, gains_U = average_by_user(gains_T, torch.from_numpy(self.targets.users))
        return float(gains_U.mean())


class SharedWindowScorer(ModelScorer):
    """A ModelScorer that lets targets share windows: a long history is cut to between max_len / 2 and max_len events.

    ML-100K, time split, 9,885 targets: 211 windows instead of 1,155, a tenth of the rows; NDCG@10 .0671, exactly .0662.
    """

    def encode(self, targets: Targets) -> Tensor:
        """Return (T, D)."""
        return super().encode(share_windows(targets, self._max_len))


def share_windows(targets: Targets, max_len: int) -> Targets:
    """Move the histories' first events so that no history is longer than `max_len`, in steps of max_len / 2."""
    step = max(max_len // 2, 1)
    too_long = np.maximum(targets.history_lengths - max_len, 0)
    return dataclasses.replace(targets, firsts=targets.firsts + -(-too_long // step) * step)


def choose_targets(targets: Targets, *, max_users: int = MAX_USERS, max_targets: int = MAX_TARGETS) -> Targets:
    """Keep at most `max_users` users, and of each one of every n targets, so that `max_targets` are left at most."""
    users = np.unique(targets.users)
    if len(users) > max_users:
        users = users[np.linspace(0, len(users) - 1, max_users).astype(np.int64)]
    kept = targets.take(np.isin(targets.users, users))
    return kept.take(choose_evenly(kept, max_targets))
