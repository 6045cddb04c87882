"""Which past events moved a score most: the score with an event minus the score without it.

    explain(recommender, rows, timestamps, request_time, [recommender.catalogue.find(50)])

This is leave-one-out influence of single events on one model's score. It is no causal claim about the user: two films
that always come together stand in for one another, and each then looks as if it did not matter. Effects do not add up
to the score, nor to the effect of leaving several events out. Where an event is left out, those after it move one
place forward, and the event before it is followed by the one after it, however much later: that is part of its effect.
Shapes: n events of the window, V variants of it (the whole one first), C items asked about, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from components.dataset import make_batch

if TYPE_CHECKING:
    from components.recommender import Recommender

MAX_LEFT_OUT = 50  # the latest events, each a variant of up to `max_len` rows: the time is proportional to it
MAX_REASONS = 3


@dataclass(frozen=True)
class Reason:
    """An event of the history. `effect`: what it adds to the score; None for an only event, without which none is."""

    row: int  # catalogue row
    timestamp: int  # seconds
    effect: float | None


@dataclass(frozen=True)
class Explanation:
    """An item's score and the events that moved it most, the strongest first; nothing of an unknown item."""

    score: float | None
    reasons: tuple[Reason, ...]


def explain(
    recommender: Recommender,
    rows: np.ndarray,
    timestamps: np.ndarray,
    request_time: int,
    items: Sequence[int],
) -> tuple[Explanation, ...]:
    """Explain the scores of `items`, catalogue rows, -1 for unknown ones, for a history (n,) in time order.

    The window is what the model reads, the last `max_len` known events, and no older event takes a left-out one's
    place. Of its last `MAX_LEFT_OUT` events each is left out once. Equal effects: the later event first.
    Without a known event there are no scores.
    """
    is_known = rows >= 0
    rows_n, timestamps_n = (values[is_known][-recommender.max_len :] for values in (rows, timestamps))
    known = sorted({item for item in items if item >= 0})
    if len(rows_n) == 0 or not known:
        return (Explanation(None, ()),) * len(items)
    left_out = range(max(0, len(rows_n) - MAX_LEFT_OUT), len(rows_n)) if len(rows_n) > 1 else range(0)
    variants = [(rows_n, timestamps_n)] + [(np.delete(rows_n, n), np.delete(timestamps_n, n)) for n in left_out]
    scores_VC = _score(recommender, variants, request_time, known)
    effects_VC = scores_VC[:1] - scores_VC[1:]
    found = {-1: Explanation(None, ())}
    for column, item in enumerate(known):
        effects = _strongest(effects_VC[:, column])
        reasons = [Reason(int(rows_n[left_out[v]]), int(timestamps_n[left_out[v]]), effect) for v, effect in effects]
        only = Reason(int(rows_n[-1]), int(timestamps_n[-1]), None)
        found[item] = Explanation(float(scores_VC[0, column]), tuple(reasons) if left_out else (only,))
    return tuple(found[item] for item in items)


def _score(
    recommender: Recommender,
    variants: Sequence[tuple[np.ndarray, np.ndarray]],
    request_time: int,
    items: Sequence[int],
) -> np.ndarray:
    """Return (V, C) float64 scores of catalogue rows `items` for histories that are not empty, encoded as one batch."""
    model = recommender.model
    batch = make_batch(variants, [request_time] * len(variants), max_len=recommender.max_len)
    with torch.inference_mode():
        y_VD = model(batch)[batch.offsets[1:] - 1]
        # Only the items asked about: 51 variants with a catalogue of a million take seconds.
        side = model.head.split_items(recommender.vectors_XD[torch.tensor(items)])
        scores_VC: np.ndarray = model.score(y_VD, side).double().numpy()
    return scores_VC


def _strongest(effects_V: np.ndarray) -> list[tuple[int, float]]:
    """Return (variant, effect) of the strongest effects, ties to the later event."""
    order = sorted(range(len(effects_V)), key=lambda v: (-abs(effects_V[v]), -v))
    return [(v, float(effects_V[v])) for v in order[:MAX_REASONS]]
