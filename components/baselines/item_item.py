"""Item-item co-occurrence: what users had together with the last items of a history.

    similarity(i, j) = C_ij / sqrt(n_i n_j)         C_ij users who had both, n_i users who had i: the cosine
    score(x) = sum_k decay^k similarity(x, h_k)     h_0 the history's last item, h_1 the one before, ... h_(m-1)

Counted over what is known when the window begins, as popularity is; a repeat within a user counts once. Each item keeps
its NEIGHBOURS most similar ones, so a million items stay at 200 million numbers. Items that nothing leads to tie at 0.
Shapes: E events, U users, X catalogue size, T targets, N non-zeros of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from components.baselines.popularity import find_known_before
from components.dataset import Sequences, rows_of_ranges

if TYPE_CHECKING:
    from components.ranking.targets import Targets

NEIGHBOURS = 200
EVENTS_A_USER = 500  # the last ones: a user costs the square of them
_PAIRS_A_BLOCK = 1 << 24  # of events of one user, multiplied at once: 200 MB where no pair of items occurs twice


@dataclass(frozen=True)
class ItemItemChoice:
    """Which events of the history speak, and how loudly."""

    last_items: int  # m
    decay: float  # weight of an event relative to the one after it


# ML-1M's time split wants the last few: validation NDCG@10 at 10 items .066, with decay .8 .086, .6 .094, .4 .089.
ITEM_ITEM_GRID = tuple(ItemItemChoice(m, decay) for m, decay in ((10, 0.6), (10, 0.8), (10, 1.0), (50, 0.9), (50, 1.0)))


class ItemItemScorer:
    """Sum of the similarities to the last items of the history."""

    def __init__(self, similarities_XX: sparse.csr_array, choice: ItemItemChoice) -> None:
        self._similarities_XX, self._choice = similarities_XX, choice

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        weights_TX = _weigh_histories(targets, self._choice, self._similarities_XX.shape[0])
        return torch.from_numpy((weights_TX @ self._similarities_XX).toarray())


def fit_item_item(sequences: Sequences, part: str) -> sparse.csr_array:
    """Return the similarities (X, X), float32; row j holds the neighbours of item j.

    From the last EVENTS_A_USER events of each user before the window of `part` begins; no item is its own neighbour.
    """
    had_UX = _mark_had(sequences, part)
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(had_UX.sum(axis=0), 1)), dtype=np.float32)
    unit_UX = (had_UX @ scale).tocsr()
    unit_XU = unit_UX.T.tocsr()
    rows = [_keep_strongest(unit_XU[block] @ unit_UX, block.start) for block in _blocks_of_items(unit_UX, unit_XU)]
    return sparse.vstack(rows, format="csr")


def _mark_had(sequences: Sequences, part: str) -> sparse.csr_array:
    """(U, X) float32: 1 where the user had the item."""
    stops = find_known_before(sequences, part)
    firsts = np.maximum(sequences.starts, stops - EVENTS_A_USER)
    rows = rows_of_ranges(firsts, stops - firsts)
    items, users = sequences.items[rows], np.repeat(np.arange(len(stops)), stops - firsts)
    had = items >= 0
    ones, shape = np.ones(np.count_nonzero(had), dtype=np.float32), (len(stops), sequences.num_items)
    had_UX = sparse.coo_array((ones, (users[had], items[had])), shape=shape).tocsr()
    had_UX.data[:] = 1  # repeats were added up
    return had_UX


def _blocks_of_items(had_UX: sparse.csr_array, had_XU: sparse.csr_array) -> Iterator[slice]:
    """Cut the catalogue so that the users of a block have at most _PAIRS_A_BLOCK events, or it is one item."""
    events_X = had_XU.astype(bool).astype(np.int64) @ np.diff(had_UX.indptr)
    ends = np.cumsum(events_X)
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_A_BLOCK, side="right")))
        yield slice(start, stop)
        start = stop


def _keep_strongest(similarities: sparse.csr_array, first: int) -> sparse.csr_array:
    """Keep each row's NEIGHBOURS largest entries, of equals the lower items; row r is item first + r, loses itself."""
    similarities.sort_indices()
    kept, lengths = [], []
    for row, (start, stop) in enumerate(zip(similarities.indptr[:-1], similarities.indptr[1:], strict=True)):
        others = start + np.flatnonzero(similarities.indices[start:stop] != first + row)
        order = np.argsort(-similarities.data[others], kind="stable")[:NEIGHBOURS]
        kept.append(others[order])
        lengths.append(len(order))
    places = np.concatenate(kept)
    indptr = np.cumsum([0, *lengths])
    strongest = (similarities.data[places], similarities.indices[places], indptr)
    return sparse.csr_array(strongest, shape=similarities.shape)


def _weigh_histories(targets: Targets, choice: ItemItemChoice, num_items: int) -> sparse.csr_array:
    """(T, X) float32: decay^k for the k-th last item of the history; a repeat's weights add up."""
    firsts = np.maximum(targets.firsts, targets.positions - choice.last_items)
    lengths = targets.positions - firsts
    rows = rows_of_ranges(firsts, lengths)
    ages = np.repeat(targets.positions, lengths) - 1 - rows
    weights = (choice.decay**ages).astype(np.float32)
    indptr = np.cumsum([0, *lengths])
    return sparse.csr_array((weights, targets.known_items[rows], indptr), shape=(len(targets), num_items))
