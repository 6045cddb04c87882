"""How often inserted items are shown, and how to make that no more than their share.

    asked = Asked([rows of a history, ...], y_QD)                      # made histories, as the model encodes them
    length = find_length(mapped_ND, parts, directions_XD, asked)       # 1: held-out items take their share at most

Histories lie close together (their mean is .93 long on ML-100K), and training has pushed most items out of their way: a
direction that it has not seen is nearer to all of them at once. So scores of inserted items are multiplied by a length.
Shapes: Q made histories, D width, X trained items, N held-out items, F items of one fold, P places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NUM_HISTORIES = 256  # 2,560 places: a share of .2 is known to .01, were they independent
_PLACES = 10
_LOOKED_AT = 200  # best items of a history: of these, _PLACES are not of a given fold
_SHORTEST = 0.25  # ML-100K takes .7; where so little is too much, others' scores are negative, and no length helps
_BLOCK = 32  # histories at once: 128 MB of scores at a million items


class Asked(NamedTuple):
    """Histories and what the model makes of them."""

    rows: Sequence[np.ndarray]  # of the items of each, which are not shown again
    y_QD: np.ndarray  # length 1 each


def find_length(mapped_ND: np.ndarray, parts: Sequence[np.ndarray], directions_XD: np.ndarray, asked: Asked) -> float:
    """Return the greatest length up to 1 at which held-out items take no more than their share of places: a bisection.

    1 too where no length would do. `parts` are the rows of the items of each fold, end to end those of `mapped_ND`;
    each fold is shown beside all other items as they are.
    """
    folds = _compete(parts, directions_XD, asked)
    share = float(np.mean([len(part) / len(directions_XD) for part in parts]))

    def takes_too_much(length: float) -> bool:
        return float(np.mean([fold.measure(length * mapped_ND[fold.items], asked.y_QD) for fold in folds])) > share

    if not takes_too_much(1.0) or takes_too_much(_SHORTEST):
        return 1.0
    low, high = _SHORTEST, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if takes_too_much(middle) else (middle, high)
    return low


@dataclass(frozen=True, eq=False)
class _Fold:
    """Held-out items, and what they have to beat."""

    items: slice  # of N
    had: tuple[np.ndarray, np.ndarray]  # (history, item of the fold): not shown again
    others_QP: np.ndarray  # the best scores of all other items, -inf where there are fewer

    def measure(self, shown_FD: np.ndarray, y_QD: np.ndarray) -> float:
        """Return the share of places that the fold's items take as they are shown."""
        scores_QF = y_QD @ shown_FD.T
        scores_QF[self.had] = -np.inf
        both = np.concatenate([_best(scores_QF), self.others_QP], axis=1)
        last_Q1 = np.partition(both, -_PLACES, axis=1)[:, -_PLACES, None]
        return float(((scores_QF >= last_Q1) & np.isfinite(scores_QF)).sum() / self.others_QP.size)


def _compete(parts: Sequence[np.ndarray], directions_XD: np.ndarray, asked: Asked) -> list[_Fold]:
    """Score all items once, and note for each fold what its items have to beat."""
    fold_X = np.full(len(directions_XD), -1)
    for number, part in enumerate(parts):
        fold_X[part] = number
    num = min(_LOOKED_AT, len(directions_XD))
    others: list[list[np.ndarray]] = [[] for _ in parts]
    for start in range(0, len(asked.rows), _BLOCK):
        scores_BX = asked.y_QD[start : start + _BLOCK].astype(np.float32) @ directions_XD.T.astype(np.float32)
        for scores_X, rows in zip(scores_BX, asked.rows[start : start + _BLOCK], strict=True):
            scores_X[rows] = -np.inf
            best = np.argpartition(-scores_X, num - 1)[:num]
            for number in range(len(parts)):
                others[number].append(_best(scores_X[None, best[fold_X[best] != number]])[0])
    stops = np.cumsum([len(part) for part in parts])
    slices = [slice(stop - len(part), stop) for stop, part in zip(stops.tolist(), parts, strict=True)]
    had = [np.nonzero(np.array([np.isin(part, rows) for rows in asked.rows])) for part in parts]
    return [_Fold(items, (h[0], h[1]), np.array(o)) for items, h, o in zip(slices, had, others, strict=True)]


def _best(scores_QF: np.ndarray) -> np.ndarray:
    """Return the _PLACES best scores (Q, P) of each row, in any order; -inf where there are fewer."""
    missing = max(_PLACES - scores_QF.shape[1], 0)
    scores_QF = np.pad(scores_QF, ((0, 0), (0, missing)), constant_values=-np.inf)
    best_QP: np.ndarray = np.partition(scores_QF, -_PLACES, axis=1)[:, -_PLACES:]
    return best_QP
