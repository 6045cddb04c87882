"""Ranks and top lists counted in tiles: the same as of whole rows, however rounding goes, in bounded memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.metrics import rank_targets
from components.ranking.blocks import rank_catalogue
from components.ranking.targets import Targets
from components.ranking.tiles import BYTES_A_CELL, SeenItems, choose_shape, rank_block
from components.ranking.tops import Tops, best_rows

NUM_ITEMS, K = 12, 4


def made_targets(items, histories):
    """Targets of one user each, with their histories of items."""
    lengths = [len(history) for history in histories]
    stops = np.cumsum(lengths)
    known_items = np.concatenate([*map(np.array, histories), [0]]).astype(np.int64)
    nothing, numbers = np.zeros(len(items), dtype=np.int64), np.arange(len(items))
    return Targets(
        rows=numbers,
        users=numbers,
        items=np.array(items, dtype=np.int64),
        firsts=stops - lengths,
        positions=stops,
        known_items=known_items,
        known_timestamps=np.zeros(len(known_items), dtype=np.int64),
        request_times=nothing,
    )


def rank_by_hand(scores, targets):
    """Sort what may be ranked, ties by row, one target after the other."""
    above, tied, tops = [], [], []
    for t, item in enumerate(targets.items):
        seen = set(targets.known_items[targets.firsts[t] : targets.positions[t]].tolist()) - {int(item)}
        left = [x for x in range(scores.shape[1]) if x not in seen]
        above.append(sum(scores[t, x] > scores[t, item] for x in left))
        tied.append(sum(scores[t, x] == scores[t, item] for x in left) - 1)
        best = sorted(left, key=lambda x, t=t: (-scores[t, x], x))[:K]
        tops.append(best + [-1] * (K - len(best)))
    return above, tied, tops


cases = st.integers(1, 5).flatmap(
    lambda count: st.tuples(
        st.lists(st.lists(st.integers(0, 3), min_size=NUM_ITEMS, max_size=NUM_ITEMS), min_size=count, max_size=count),
        st.lists(st.integers(0, NUM_ITEMS - 1), min_size=count, max_size=count),
        st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=15), min_size=count, max_size=count),
    )
)


@given(cases, st.integers(1, NUM_ITEMS))
def test_tiles_of_any_width_rank_and_list_as_sorting_does(case, width):
    scores, items, histories = torch.tensor(case[0], dtype=torch.float32), *case[1:]
    targets = made_targets(items, histories)
    found = rank_block(lambda which: scores[:, which].clone(), targets, SeenItems(targets), NUM_ITEMS, width, K)
    above, tied, tops = rank_by_hand(scores, targets)
    assert (found.filtered.above.tolist(), found.filtered.tied.tolist(), found.top.tolist()) == (above, tied, tops)
    whole = rank_targets(scores, torch.from_numpy(targets.items))
    assert torch.equal(found.unfiltered.above, whole.above)
    assert torch.equal(found.unfiltered.tied, whole.tied)


def test_a_guess_that_rounds_otherwise_than_the_tile_does_no_harm():
    """All items score the same, but a list of items gets scores a little lower than a range."""
    targets = made_targets([9, 1], [[], []])

    def score(which):
        return torch.full((2, NUM_ITEMS), 0.5)[:, which] - (0 if isinstance(which, slice) else 1e-6)

    found = rank_block(score, targets, SeenItems(targets), NUM_ITEMS, 5, K)
    assert found.unfiltered.above.tolist() == [0, 0]
    assert found.unfiltered.tied.tolist() == [NUM_ITEMS - 1] * 2


@pytest.mark.parametrize("width", [5, NUM_ITEMS])
def test_a_target_whose_score_is_no_number_comes_last_and_one_beside_it_does_not_gain(width):
    scores = torch.arange(NUM_ITEMS).float().repeat(2, 1)
    scores[0, 3] = torch.nan
    targets = made_targets([3, 3], [[7, 8], [7, 8]])
    found = rank_block(lambda which: scores[:, which].clone(), targets, SeenItems(targets), NUM_ITEMS, width, 0)
    assert found.filtered.above.tolist() == [NUM_ITEMS - 3, NUM_ITEMS - 6]
    assert found.unfiltered.above.tolist() == [NUM_ITEMS - 1, NUM_ITEMS - 4]


@given(st.integers(1, 3_000_000), st.integers(1, 1 << 30))
def test_a_tile_fits_into_its_budget_whenever_a_cell_does(num_items, block_bytes):
    shape = choose_shape(num_items, block_bytes, is_whole=False)
    assert 1 <= shape.width <= num_items
    assert shape.rows * shape.width * BYTES_A_CELL <= max(block_bytes, BYTES_A_CELL)


class NarrowScorer:
    """Scores a million items, but never more than a tile of them at once."""

    def __init__(self, block_bytes):
        self.limit, self.widest = block_bytes // BYTES_A_CELL, 0

    def __call__(self, targets):
        raise AssertionError("asked for whole rows")

    def encode(self, targets):
        return torch.arange(len(targets))[:, None]

    def score_items(self, encoded, items):
        columns = torch.arange(items.start, items.stop) if isinstance(items, slice) else torch.from_numpy(items)
        self.widest = max(self.widest, len(encoded) * len(columns))
        return (columns * 7919 % 1_000_003).float().repeat(len(encoded), 1)


def test_a_million_items_are_ranked_within_a_megabyte():
    scorer, targets = NarrowScorer(1 << 20), made_targets([0, 5, 999_999], [[1, 2], [3], [4]])
    ranking = rank_catalogue({"it": scorer}, targets, 1_000_000, block_bytes=1 << 20, what="ranking", top=2)["it"]
    assert scorer.widest <= scorer.limit
    scores = np.arange(1_000_000) * 7919 % 1_000_003
    for t, (item, seen) in enumerate([(0, [1, 2]), (5, [3]), (999_999, [4])]):
        assert ranking["unfiltered"].above[t] == (scores > scores[item]).sum()
        assert ranking["filtered"].above[t] == (np.delete(scores, seen) > scores[item]).sum()
    assert ranking["top"].tolist() == [np.argsort(-scores)[:2].tolist()] * 3


def test_of_items_that_share_the_last_place_the_lower_ones_are_listed():
    scores = torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0, 1.0]])
    assert best_rows(scores, 4).tolist() == [[0, 1, 2, 3]]
    lists = Tops.nothing(1, 4).merge(scores[:, :2].clone(), 0).merge(scores[:, 2:].clone(), 2)
    assert lists.items().tolist() == [[3, 1, 0, 2]]
