"""The best items of a large catalogue without scoring all of it: approximate search proposes, exact scores decide.

    search = build(vectors_XD, queries_QD)              # None where it would miss too much; the log says which and why
    rows = search.nominate(query_D, eligible, k=10)     # None: score everything

Scoring a million items of width 50 reads 200 MB and takes 20 ms. faiss' product quantizer with 4 bits a dimension,
looked up in registers (fast scan), reads 25 MB and takes 2 ms. What it puts first is scored again with the float
vectors, so it only decides which items are looked at. How many, the depth, is measured when the index is built: as many
as hold the ten best of made histories. That takes 7 to 12 s for a million items, so it is done at the start, and
nothing on disk has to be kept in step with the weights (docs/decisions/0015-approximate-search.md).

The index covers the first N rows; items inserted after them are always candidates. faiss is imported only here, and
only for a catalogue that needs it.
Shapes: X items of the catalogue, N indexed rows, D width, Q queries, C candidates, K the ten best, P rows of a pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import numpy as np

from components.serving.rules import Eligible, best_rows

log = logging.getLogger("hstuflow.service")

EXACT_UP_TO = 100_000  # items: scoring all of them takes 2 ms
RECALL = 0.95  # of the ten best, at least
_SOUGHT = 0.97  # by that which is measured: 64 queries know it to +-.01
_QUERIES = 64
_BEST = 10
_DEPTHS = (100, 200, 400, 800, 1_600, 3_200)
_MOST = 6_400  # candidates of one request: faiss' own bookkeeping then costs as much as its scan
_SLACK = 2  # times as many candidates as were looked at may be called for: by chance filters vary that much
_GROWTH = 4  # times as many candidates where too few passed the filters
_GATHERED = 8  # reading one row in so many here and there takes as long as all of them in one go
_POOL, _ALIKE = 4_000, 0.1  # draws of items by popularity; a made history is drawn from such a share that is alike


class Search:
    """Approximate search by inner product over the first N rows. Immutable, safe to call from several threads."""

    def __init__(self, vectors_ND: np.ndarray, *, most: int = _MOST) -> None:
        import faiss

        self.num_rows, dim = vectors_ND.shape
        self.depth = _DEPTHS[0]  # candidates that hold the ten best
        self.most = most  # candidates of one request
        self.recall = 0.0  # of the ten best at this depth, as measured
        self._index = faiss.index_factory(dim, f"PQ{dim}x4fs", faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors_ND)  # looks at 4,096 rows, chosen by a seed of its own
        self._index.add(vectors_ND)

    def find(self, query_D: np.ndarray, count: int) -> np.ndarray:
        """Return the `count` indexed rows that seem best, (C,) int64 ascending; all where there are fewer."""
        return np.sort(self._rank(query_D, count))

    def nominate(self, query_D: np.ndarray, eligible: Eligible, k: int) -> np.ndarray | None:
        """Return eligible rows (C,), ascending, to choose the `k` best from; None where all have to be scored.

        The depth was measured for the first ten of the whole catalogue, so the first n take n / 10 of it: for more
        items, or where filters leave a part of the catalogue, candidates are proportionally more. Filters often keep
        out what is nearest, as a user has seen it: where the k-th item that passes seems to come much later than its
        share, there are more again, by its rank. Where that would be too many and filters leave few items, these are
        the candidates. They are never fewer than `k`, unless the filters leave fewer.
        """
        num_items, sought = eligible.items.num_items, max(k, _BEST)
        wanted = int(self.depth * sought / _BEST * num_items / max(eligible.count, 1))
        while wanted <= self.most:
            ranked_C = np.concatenate([self._rank(query_D, wanted), np.arange(self.num_rows, num_items)])
            passing = np.arange(len(ranked_C))
            if eligible.mask_X is not None:
                passing = np.flatnonzero(eligible.mask_X[ranked_C])
            needed = wanted * _GROWTH
            if len(passing) >= min(sought, eligible.count):
                last = passing[min(sought, len(passing)) - 1] if len(passing) else 0
                needed = int(self.depth * (last + 1) / _BEST)
                if needed <= _SLACK * wanted or wanted >= self.num_rows:
                    return np.sort(ranked_C[passing])
            wanted = needed
        if eligible.mask_X is not None and eligible.count * _GATHERED <= num_items:
            return np.flatnonzero(eligible.mask_X)
        return None

    def _rank(self, query_D: np.ndarray, count: int) -> np.ndarray:
        """Return the rows of `find`, that which seems best first."""
        found_C: np.ndarray = self._index.search(query_D[None], min(count, self.num_rows))[1][0]
        return found_C[found_C >= 0]


def build(vectors_ND: np.ndarray, queries_QD: np.ndarray) -> Search | None:
    """Index the rows and measure how many candidates hold the ten best of `queries_QD`; None where that is too many.

    The queries are to be encoded histories: how hard a search is depends on them as much as on the items.
    """
    started = time.perf_counter()
    search = Search(vectors_ND)
    best_QK = list(_exact_best(vectors_ND, queries_QD))
    for search.depth in _DEPTHS:
        search.recall = _measure_recall(search, vectors_ND, queries_QD, best_QK)
        if search.recall >= _SOUGHT:
            break
    facts = f"recall@{_BEST} {search.recall:.3f} with {search.depth:,} candidates for {len(queries_QD)} made histories,"
    facts += f" built in {time.perf_counter() - started:.1f} s"
    if search.recall < RECALL:
        log.warning("search: exact, because approximate search misses too much: %s, wanted %s", facts, RECALL)
        return None
    log.info("search: approximate, because of %s items: %s", f"{len(vectors_ND):,}", facts)
    return search


def make_histories(
    vectors_XD: np.ndarray, counts_X: np.ndarray, max_len: int, number: int = _QUERIES
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return histories of rows and hourly timestamps as users might have them, to measure with.

    Each has 1 to `max_len` items that are alike, drawn from the items nearest to one in a pool of popular ones. For a
    model of ML-1M and these, 200 candidates hold .963 of the ten best, for users' own histories .972; for histories
    drawn by popularity alone, unlike any user's, .861.
    """
    random = np.random.default_rng(0)
    share_X = np.cumsum(counts_X + 1.0)
    pool_P = np.unique(np.searchsorted(share_X, random.random(_POOL) * share_X[-1], side="right"))
    histories = []
    for length in random.integers(1, max_len + 1, size=number):
        likeness_P = vectors_XD[pool_P] @ vectors_XD[random.choice(pool_P)]
        alike = pool_P[best_rows(likeness_P, None, max(1, int(_ALIKE * len(pool_P))))]
        histories.append((random.choice(alike, size=length), np.arange(length) * 3_600))
    return histories


def _exact_best(vectors_ND: np.ndarray, queries_QD: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of the ten best for each query, by all scores."""
    for query_D in queries_QD:
        yield best_rows(vectors_ND @ query_D, None, _BEST)


def _measure_recall(search: Search, vectors_ND: np.ndarray, queries_QD: np.ndarray, best_QK: list[np.ndarray]) -> float:
    """Return the share of the ten best that are among the ten best of the candidates."""
    hits = 0
    for query_D, best_K in zip(queries_QD, best_QK, strict=True):
        found_C = search.find(query_D, search.depth)
        chosen_K = found_C[best_rows(vectors_ND[found_C] @ query_D, None, _BEST)]
        hits += len(np.intersect1d(chosen_K, best_K))
    return hits / sum(map(len, best_QK))
