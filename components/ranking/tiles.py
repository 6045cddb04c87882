"""Where the targets stand, counted tile by tile: some targets by a range of the catalogue, in bounded memory.

One tile as wide as the catalogue where enough rows of scores fit into the budget, else many narrow ones: with a million
items, four whole rows fill 32 MB, and the items' vectors would be read from memory again for every four targets.
What is above a target can only be counted once its own score is known, and it must be known to the last bit, or items
with the same score would no longer be tied with it. A matrix product may round differently in another shape; so the
score found in a tile is what counts, and tiles counted with another one before are counted again.
Shapes: T targets of a block, X catalogue size, C items of a tile, K length of the top lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from components.dataset import iterate_in_blocks
from components.metrics import Ranks, compare, count_true, place
from components.ranking.targets import Targets
from components.ranking.tops import Tops

# float32 score, and three booleans: seen, below the target's own score, equal to it. A place that was seen takes 16
# bytes more, but those are few.
BYTES_A_CELL = 8
FEWEST_ROWS = 64  # with fewer, scoring reads the item vectors from memory more often than it computes with them

ScoreItems = Callable[[slice | np.ndarray], Tensor]  # a range or a list of items -> (T, C)


class Shape(NamedTuple):
    """Size of a tile."""

    rows: int
    width: int


def choose_shape(num_items: int, block_bytes: int, *, is_whole: bool) -> Shape:
    """Return the largest tile of `block_bytes`; `is_whole`: as wide as the catalogue whatever that takes.

    >>> choose_shape(1_000, 800_000, is_whole=False), choose_shape(1_000_000, 800_000, is_whole=False)
    (Shape(rows=100, width=1000), Shape(rows=64, width=1562))
    """
    cells = max(block_bytes // BYTES_A_CELL, 1)
    if is_whole or cells >= FEWEST_ROWS * num_items:
        return Shape(max(cells // num_items, 1), num_items)
    rows = min(FEWEST_ROWS, cells)
    return Shape(rows, min(cells // rows, num_items))


class SeenItems:
    """Which items may not be ranked for which target of a block; remembers its last tile for the next scorer."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._last: tuple[slice, Tensor] | None = None

    def find(self, items: slice) -> Tensor:
        """Return the places of the marks in a tile's (T, C), flattened and ascending: int64."""
        if self._last is None or self._last[0] != items:
            self._last = items, torch.from_numpy(np.flatnonzero(mark_seen(self._targets, items).numpy()))
        return self._last[1]


def mark_seen(targets: Targets, items: slice) -> Tensor:
    """Return (T, C) bool for a range of items: the item is in the target's history and is not the target."""
    width = items.stop - items.start
    seen_TC = np.zeros((len(targets), width), dtype=bool)
    for row, first, position, target in zip(
        seen_TC, targets.firsts, targets.positions, targets.items - items.start, strict=True
    ):
        places = targets.known_items[first:position] - items.start
        row[places[(places >= 0) & (places < width)]] = True
        if 0 <= target < width:
            row[target] = False
    return torch.from_numpy(seen_TC)


class BlockRanks(NamedTuple):
    """What is known of a block's targets, (T,) each, and their filtered top lists, (T, K) int64 filled up with -1."""

    filtered: Ranks
    unfiltered: Ranks
    top: Tensor


def rank_block(
    score: ScoreItems, targets: Targets, seen: SeenItems, num_items: int, width: int, top: int
) -> BlockRanks:
    """Rank T targets with known items, tile by tile; `top` is K. Scores are overwritten."""
    tiles = list(iterate_in_blocks(num_items, width))
    own_T1 = _guess_own_scores(score, targets) if len(tiles) > 1 else torch.full((len(targets), 1), torch.nan)
    for _ in range(2):  # a score of the same tile is the same the second time
        tally, is_exact = _Tally(len(targets), top), True
        for items in tiles:
            scores_TC = score(items)
            own_T1, is_changed = _correct(own_T1, scores_TC, targets.items - items.start)
            is_exact &= not is_changed or items is tiles[0]
            tally.add(scores_TC, own_T1, seen.find(items).to(scores_TC.device), items.start)
            del scores_TC  # before the next tile is made
        if is_exact:
            break
    return tally.close(num_items)


def _guess_own_scores(score: ScoreItems, targets: Targets) -> Tensor:
    """Return (T, 1), right up to rounding."""
    return score(targets.items).diagonal()[:, None].clone()


def _correct(own_T1: Tensor, scores_TC: Tensor, places_T: np.ndarray) -> tuple[Tensor, bool]:
    """Take the scores of the targets that lie in this tile from it; also say whether any differs from what it was."""
    inside = torch.from_numpy((places_T >= 0) & (places_T < scores_TC.shape[1])).to(scores_TC.device)
    places_T1 = torch.from_numpy(places_T).to(scores_TC.device).clamp(0, scores_TC.shape[1] - 1)[:, None]
    exact_T1 = scores_TC.gather(1, places_T1).where(inside[:, None], own_T1.to(scores_TC.device))
    is_same = torch.isclose(exact_T1, own_T1.to(scores_TC.device), rtol=0, atol=0, equal_nan=True)
    return exact_T1, not bool(is_same.all())


class _Tally:
    """Counts of all tiles so far: row 0 of all items, row 1 of those that may not be ranked."""

    def __init__(self, num_targets: int, top: int) -> None:
        self._below_2T = torch.zeros(2, num_targets, dtype=torch.int64)
        self._tied_2T = torch.zeros(2, num_targets, dtype=torch.int64)
        self._num_seen_T = torch.zeros(num_targets, dtype=torch.int64)
        self._best = Tops.nothing(num_targets, top)

    def add(self, scores_TC: Tensor, own_T1: Tensor, seen: Tensor, first_item: int) -> None:
        """Count a tile; overwrites its scores. `seen`: the flat places of what may not be ranked."""
        num_targets, width = scores_TC.shape
        seen_rows = seen // width
        for counts_2T, flags_TC in zip((self._below_2T, self._tied_2T), compare(scores_TC, own_T1), strict=True):
            counts_2T[0] += count_true(flags_TC).cpu()
            counts_2T[1] += seen_rows[flags_TC.view(-1)[seen]].bincount(minlength=num_targets).cpu()
        self._num_seen_T += seen_rows.bincount(minlength=num_targets).cpu()
        if self._best.size:
            scores_TC = scores_TC.contiguous()
            scores_TC.view(-1)[seen] = -torch.inf
            self._best = self._best.merge(scores_TC, first_item)

    def close(self, num_items: int) -> BlockRanks:
        """Place the targets among all items, and among those that may be ranked."""
        (below_T, seen_below_T), (tied_T, seen_tied_T) = self._below_2T, self._tied_2T
        return BlockRanks(
            filtered=place(num_items - self._num_seen_T, below_T - seen_below_T, tied_T - seen_tied_T),
            unfiltered=place(num_items, below_T, tied_T),
            top=self._best.items(),
        )
