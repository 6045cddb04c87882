"""Context alone, after arXiv 2112.14370: popularity, freshness and age of an item when it is asked for, added up.

    score(x, t) = w . f(x, t)       f: components/baselines/timeline.py, all users' events strictly before t

That paper found such plain sums ahead of the deep news recommenders of its day. It leans on the click-through rate;
our logs rarely tell impressions from clicks, so popularity stands in for it. w is fitted on train alone: a softmax
regression that tells sampled events from other items of the catalogue by the features of the event's own moment.

In the judged window the features go on counting, its earlier events included, as a service would: popularity and
item_item, frozen at its start, know less. With leave-one-out some events before t are other users' held-out ones: that
protocol's leak. Shapes: T targets, X catalogue size, F features, P sampled events, C candidates of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from components.baselines.timeline import FEATURES, Timeline
from components.dataset import Sequences, rows_of_ranges

if TYPE_CHECKING:
    from components.ranking.targets import Targets

# The end of train resembles the window of a time split (ML-1M, validation NDCG@10: last tenth .0358, all of it .0327).
RECENT_SHARES = (1.0, 0.1)
SEED = 1
_NEGATIVES = 255  # four times as many, or four times fewer events, moved ML-1M's validation NDCG@10 by less than .001
_MOST_EVENTS, _LEAST_EVENTS = 4_096, 256
_FEATURE_ROWS = 1 << 26  # items whose features are looked up for the sample: a million items get the fewest events
_RIDGE = 1e-4  # features say nearly the same: without it their weights could run away from each other


@dataclass(frozen=True)
class ContextualChoice:
    """The weights (F,), and the share of train, its latest events, that they were fitted on."""

    recent_share: float
    weights: tuple[float, ...]


class ContextualScorer:
    """The weighted sum of the features at the request time."""

    def __init__(self, timeline: Timeline, choice: ContextualChoice) -> None:
        self._timeline, self._weights_F = timeline, np.array(choice.weights, dtype=np.float32)

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X); targets of the same moment have the same scores, bit for bit."""
        times, moment_of_target = np.unique(targets.request_times, return_inverse=True)
        scores = np.stack([self._weights_F @ self._timeline.features_at(int(time)) for time in times])
        return torch.from_numpy(scores[moment_of_target])


def fit_choices(sequences: Sequences) -> list[ContextualChoice]:
    """Fit the weights on each of RECENT_SHARES of train; all are 0 where nothing can be learned."""
    rows = rows_of_ranges(sequences.starts, sequences.valid_starts - sequences.starts)
    timeline = Timeline(sequences.items[rows], sequences.timestamps[rows], sequences.num_items)
    choices = []
    for share in RECENT_SHARES:
        events = _sample_events(sequences, share)
        weights = fit_weights(_gather_features(sequences, timeline, events)) if len(events) else np.zeros(len(FEATURES))
        choices.append(ContextualChoice(share, tuple(weights.round(6).tolist())))
    return choices


def fit_weights(features_PCF: np.ndarray) -> np.ndarray:
    """Return the weights (F,) that make candidate 0 of each event the likeliest: softmax regression with a small ridge.

    Convex, in float64 and from 0, so it ends at the same weights, up to rounding, on every machine.
    """
    scale_F = features_PCF.std(axis=(0, 1))
    scale_F[scale_F == 0] = 1
    inputs_PCF = features_PCF / scale_F

    def loss_and_gradient(weights_F: np.ndarray) -> tuple[float, np.ndarray]:
        log_likelihoods_PC = log_softmax(inputs_PCF @ weights_F, axis=1)
        expected_PF = np.einsum("pc,pcf->pf", np.exp(log_likelihoods_PC), inputs_PCF)
        loss = _RIDGE * weights_F @ weights_F - log_likelihoods_PC[:, 0].mean()
        return loss, 2 * _RIDGE * weights_F + (expected_PF - inputs_PCF[:, 0]).mean(axis=0)

    # scipy's, because building torch's imports torch._dynamo: 5.7 s.
    found = minimize(loss_and_gradient, np.zeros(len(scale_F)), jac=True, method="L-BFGS-B")
    fitted: np.ndarray = found.x / scale_F
    return fitted


def _sample_events(sequences: Sequences, share: float) -> np.ndarray:
    """Return (P,) rows of train, of its latest `share`, each with a history; every user is as likely as any other.

    Per user, because metrics are averaged per user: on ML-1M's time split events alike made NDCG@10 .0277, this .0335.
    """
    lengths = np.maximum(sequences.valid_starts - sequences.starts - 1, 0)
    rows, users = rows_of_ranges(sequences.starts + 1, lengths), np.repeat(np.arange(len(lengths)), lengths)
    if len(rows) == 0 or sequences.num_items < 2:
        return rows[:0]
    times = sequences.timestamps[rows]
    is_recent = times >= np.quantile(times, 1 - share, method="lower")
    rows, users = rows[is_recent], users[is_recent]
    chances = 1 / np.bincount(users)[users]
    number = int(np.clip(_FEATURE_ROWS // sequences.num_items, _LEAST_EVENTS, _MOST_EVENTS))
    return np.sort(np.random.default_rng(SEED).choice(rows, number, p=chances / chances.sum()))


def _gather_features(sequences: Sequences, timeline: Timeline, events: np.ndarray) -> np.ndarray:
    """(P, C, F) float64: features at the event's time, its own item first, then drawn other ones, or all where few."""
    items, num_others = sequences.items[events].astype(np.int64), sequences.num_items - 1
    if num_others <= _NEGATIVES:
        others = np.tile(np.arange(num_others), (len(events), 1))
    else:
        others = np.random.default_rng(SEED).integers(num_others, size=(len(events), _NEGATIVES))
    others += others >= items[:, None]  # skips the event's own
    candidates = np.concatenate([items[:, None], others], axis=1)
    features_PCF = np.empty((*candidates.shape, len(FEATURES)))
    for event, time in enumerate(sequences.timestamps[events].tolist()):
        features_PCF[event] = timeline.features_at(time)[:, candidates[event]].T
    return features_PCF
