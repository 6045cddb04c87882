"""Approximate search proposes candidates; what is answered is what exact scoring answers, as far as was measured."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint

from components.errors import InputError
from components.recommender import Recommender
from components.serving.attributes import ItemAttributes
from components.serving.rules import Rules, Wanted, apply, best_rows
from components.serving.search import RECALL, Search, build, make_histories

NUM_ITEMS, DIM = 2_000, 8
GENRES = ["Action", "Comedy|Drama", "Drama", None]


def units(num_rows, dim=DIM, seed=0):
    rows = np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


VECTORS, QUERIES = units(NUM_ITEMS), units(40, seed=1)
ITEMS = ItemAttributes.from_table(pa.table({"genres": pa.array([GENRES[row % 4] for row in range(NUM_ITEMS)])}))


@pytest.fixture(scope="module")
def search():
    """All of it can be refined."""
    search = Search(VECTORS, most=10 * NUM_ITEMS)
    search.depth = 100
    return search


def exact_best(query, eligible, k):
    """In float64, sorted in full."""
    rows = range(NUM_ITEMS) if eligible.mask_X is None else np.flatnonzero(eligible.mask_X).tolist()
    scores = VECTORS.astype(np.float64) @ query.astype(np.float64)
    return sorted(rows, key=lambda row: (-scores[row], row))[:k]


def best_of(candidates, query, k):
    return candidates[best_rows(VECTORS[candidates].astype(np.float64) @ query, None, k)].tolist()


@settings(deadline=None, max_examples=60)
@given(
    query=st.integers(0, len(QUERIES) - 1),
    k=st.integers(1, 300),
    excluded=st.sets(st.integers(0, NUM_ITEMS - 1), max_size=50),
    allow=st.none() | st.sets(st.integers(-1, NUM_ITEMS - 1), max_size=400).map(sorted),
    wanted=st.none()
    | st.sampled_from([Wanted(("Drama",)), Wanted(none_of=("Action",)), Wanted(("Comedy",), ("Drama",))]),
)
def test_with_every_item_a_candidate_the_answer_is_the_exact_one(search, query, k, excluded, allow, wanted):
    rules = Rules(exclude=sorted(excluded), allow=allow, attributes={"genres": wanted} if wanted else {})
    eligible = apply(rules, [1, 2, 3], ITEMS)
    everything = Search.__new__(Search)
    everything.__dict__ |= search.__dict__ | {"depth": NUM_ITEMS, "most": 10**9}

    candidates = everything.nominate(QUERIES[query], eligible, k)

    assert best_of(candidates, QUERIES[query], k) == exact_best(QUERIES[query], eligible, k)


@settings(deadline=None, max_examples=60)
@given(
    query=st.integers(0, len(QUERIES) - 1),
    k=st.integers(1, 300),
    allow=st.none() | st.sets(st.integers(0, NUM_ITEMS - 1), max_size=1_900).map(sorted),
    depth=st.integers(1, 400),
    most=st.integers(1, 3_000),
)
def test_candidates_are_eligible_ascending_and_never_too_few(search, query, k, allow, depth, most):
    eligible = apply(Rules(allow=allow), [], ITEMS)
    shallow = Search.__new__(Search)
    shallow.__dict__ |= search.__dict__ | {"depth": depth, "most": most}

    candidates = shallow.nominate(QUERIES[query], eligible, k)

    if candidates is not None:
        assert len(candidates) >= min(k, eligible.count)
        assert (np.diff(candidates) > 0).all()
        assert eligible.mask_X is None or eligible.mask_X[candidates].all()


def test_filters_that_keep_out_what_is_near_make_it_look_further_then_at_everything(monkeypatch, search):
    asked = []
    rank = Search._rank
    monkeypatch.setattr(Search, "_rank", lambda self, query, count: asked.append(count) or rank(self, query, count))
    near = rank(search, QUERIES[0], 60)
    eligible = apply(Rules(exclude=near.tolist()), [], ITEMS)
    search = Search(VECTORS, most=1_000)
    search.depth = 100

    candidates = search.nominate(QUERIES[0], eligible, 10)
    assert asked == [103, 700]  # 100 for 2,000 items are 103 for 1,940; the tenth that passes comes 70th
    assert len(candidates) >= 10

    search.most = 400
    assert search.nominate(QUERIES[0], eligible, 10) is None


def test_what_lies_behind_excluded_items_is_found_as_well(search):
    """A user has seen what is nearest: enough candidates for an answer are not enough for the right one."""
    hits = 0
    for query in QUERIES:
        nearest = exact_best(query, apply(Rules(), [], ITEMS), 85)
        eligible = apply(Rules(), nearest, ITEMS)
        candidates = search.nominate(query, eligible, 10)
        hits += len(set(best_of(candidates, query, 10)) & set(exact_best(query, eligible, 10)))
    assert hits >= RECALL * 10 * len(QUERIES)


def test_more_items_need_proportionally_more_candidates(search):
    eligible = apply(Rules(), [], ITEMS)
    assert [len(search.nominate(QUERIES[0], eligible, k)) for k in (1, 10, 50)] == [100, 100, 500]


def test_few_eligible_items_are_the_candidates_and_nothing_is_searched(monkeypatch, search):
    monkeypatch.setattr(Search, "_rank", lambda *_: pytest.fail("searched"))
    some = Search(VECTORS, most=500)
    assert some.nominate(QUERIES[0], apply(Rules(allow=[7, 5, 1_999]), [], ITEMS), 10).tolist() == [5, 7, 1_999]
    assert some.nominate(QUERIES[0], apply(Rules(allow=[]), [], ITEMS), 10).tolist() == []


def test_rows_after_the_indexed_ones_are_always_candidates():
    search = Search(VECTORS[:1_990])
    candidates = search.nominate(QUERIES[0], apply(Rules(exclude=[1_995]), [], ITEMS), 10)
    assert candidates[-9:].tolist() == [*range(1_990, 1_995), *range(1_996, 2_000)]


def test_the_recall_is_the_measured_one(caplog):
    caplog.set_level(logging.INFO, logger="hstuflow.service")
    search = build(VECTORS, QUERIES)
    hits = 0
    for query in QUERIES:
        candidates = search.find(query, search.depth)
        hits += len(set(best_of(candidates, query, 10)) & set(exact_best(query, apply(Rules(), [], ITEMS), 10)))
    assert search.recall == hits / (10 * len(QUERIES)) >= RECALL
    assert f"recall@10 {search.recall:.3f} with {search.depth} candidates for 40 made histories" in caplog.text


def test_where_the_search_would_miss_too_much_it_is_exact_and_says_so(caplog):
    """Two bundles, opposite one another: what tells the items of one apart is lost in the search's small numbers."""
    bundles = np.where(np.arange(20_000)[:, None] % 2, VECTORS[:1], -VECTORS[:1]) + 1e-5 * units(20_000, seed=2)
    assert build(bundles.astype(np.float32), VECTORS[:1] + 0.01 * QUERIES) is None
    assert "search: exact, because approximate search misses too much" in caplog.text


def test_an_index_built_twice_finds_the_same():
    first, second = Search(VECTORS), Search(VECTORS)
    for query in QUERIES:
        assert first.find(query, 50).tolist() == second.find(query, 50).tolist()


def test_made_histories_are_of_popular_items_that_are_alike():
    counts = np.where(np.arange(NUM_ITEMS) < 500, 10_000, 0)
    histories = make_histories(VECTORS, counts, 20)
    rows = np.concatenate([rows for rows, _ in histories])
    assert (rows < 500).mean() > 0.99
    assert {len(rows) for rows, _ in histories} <= set(range(1, 21))
    likeness = np.mean([(VECTORS[rows] @ VECTORS[rows].mean(0)).mean() for rows, _ in histories if len(rows) > 9])
    assert likeness > 0.1  # of rows drawn at random: 1 / length


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    keys, genres = [f"item-{row}" for row in range(NUM_ITEMS)], [GENRES[row % 4] for row in range(NUM_ITEMS)]
    return write_checkpoint(tmp_path_factory.mktemp("search") / "checkpoint", keys, genres=genres)


@pytest.fixture(scope="module")
def both(checkpoint):
    """Exact, and approximate from 1,000 items on."""
    return Recommender.load(checkpoint), Recommender.load(checkpoint, exact_up_to=1_000)


HISTORY = [("item-3", 100), ("item-4", 160), ("item-9", 500)]


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"exclude_seen": False, "exclude": ["item-7", "nowhere"]},
        {"attributes": {"genres": Wanted(("Drama",))}},
        {"allow": ["item-1", "item-2", "item-900"]},
        {"caps": {"genres": 3}},
        {"first_seen_from": 1_995},
    ],
)
def test_a_searched_catalogue_answers_as_an_exactly_scored_one(both, wishes):
    exact, searched = (recommender.recommend(HISTORY, 10, 700, **wishes) for recommender in both)
    assert exact.removed == searched.removed
    assert len(exact.items) == len(searched.items)
    mine, theirs = ({item.item_id: item.score for item in answer.items} for answer in (searched, exact))
    assert len(mine.keys() & theirs.keys()) >= RECALL * len(theirs)
    np.testing.assert_allclose(
        [mine[i] for i in mine if i in theirs], [theirs[i] for i in mine if i in theirs], atol=1e-6
    )
    assert list(mine.values()) == sorted(mine.values(), reverse=True)


def test_scores_are_those_of_rank_to_the_last_bit_whatever_is_asked_with_them(both):
    searched = both[1]
    y_1D = searched.encode(*searched.read(HISTORY), 700)
    for wishes in ({}, {"caps": {"genres": 3}}, {"allow": ["item-1", "item-2"]}):
        for item in searched.answer(y_1D, [], 10, **wishes).items:
            assert searched.rank(y_1D, [item.item_id]) == (item.score,)
            assert searched.rank(y_1D, ["item-0", "nowhere", item.item_id, "item-5"])[1:3] == (None, item.score)


def test_similar_items_and_popular_ones_are_searched_for_too(both):
    exact, searched = (recommender.similar("item-3", 10) for recommender in both)
    assert {item.item_id for item in exact.items} == {item.item_id for item in searched.items}
    assert both[0].recommend([], 10) == both[1].recommend([], 10)


def test_k_below_one_is_refused_with_a_search_too(both):
    with pytest.raises(InputError, match="k is out of range"):
        both[1].recommend(HISTORY, 0)


def test_what_is_searched_and_why_is_said(checkpoint, caplog):
    caplog.set_level(logging.INFO, logger="hstuflow.service")
    assert Recommender.load(checkpoint).search is None
    assert "search: exact, because of 2,000 items" in caplog.text
    assert Recommender.load(checkpoint, exact_up_to=1_999).search is not None
    assert "search: approximate, because of 2,000 items: recall@10" in caplog.text


def test_an_answer_for_which_all_items_are_scored_is_ordered_by_the_scores_it_shows(tmp_path):
    """They are chosen by a matrix product, which rounds otherwise than the scores that every route shows."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [str(n) for n in range(5_000)], genres=["A", "B"] * 2_500)
    searched = Recommender.load(checkpoint, exact_up_to=1_000)
    for first in range(12):
        history = [(str(7 * first + n), n) for n in range(4)]
        shown = searched.recommend(history, 1_000, 99, caps={"genres": 1_000}).items
        rows = [searched.catalogue.find(item.item_id) for item in shown]
        assert sorted(zip((-item.score for item in shown), rows, strict=True)) == [
            (-item.score, row) for item, row in zip(shown, rows, strict=True)
        ]
