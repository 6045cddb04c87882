"""Item-item co-occurrence: the cosine of who had what, summed over the last items of a history."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.baselines import item_item
from components.baselines.item_item import ItemItemChoice, ItemItemScorer, fit_item_item
from components.dataset import Sequences
from components.ranking.targets import find_targets


def made_sequences(train, valid=(), test=(), *, num_items=5, train_end=100):
    """One list of items per user and part; the time of an event is its number within its user, windows apart."""
    parts = [
        [list(part[user]) if user < len(part) else [] for part in (train, valid, test)] for user in range(len(train))
    ]
    lengths = np.array([[len(part) for part in user] for user in parts])
    ends = np.cumsum(lengths.sum(axis=1))
    starts = ends - lengths.sum(axis=1)
    times = [100 * number + place for user in parts for number, part in enumerate(user) for place in range(len(part))]
    return Sequences(
        items=np.array([item for user in parts for part in user for item in part], dtype=np.int32),
        timestamps=np.array(times, dtype=np.int64),
        user_ids=np.arange(len(train)),
        starts=starts,
        valid_starts=starts + lengths[:, 0],
        test_starts=starts + lengths[:, 0] + lengths[:, 1],
        ends=ends,
        split={"num_items": num_items, "train_end": train_end, "valid_end": train_end and 200},
    )


def fit(sequences, part="valid"):
    return fit_item_item(sequences, part).toarray()


def test_similarity_is_the_cosine_of_the_users_who_had_both():
    similarities = fit(made_sequences([[0, 1], [0, 1, 2], [0]]))
    assert similarities[0, 1] == pytest.approx(2 / np.sqrt(3 * 2))
    assert similarities[0, 2] == pytest.approx(1 / np.sqrt(3 * 1))
    assert similarities[3].tolist() == [0] * 5


def test_an_item_is_not_its_own_neighbour_and_unknown_items_and_repeats_count_for_nothing():
    assert fit(made_sequences([[0, 1, -1, 1, 0], [0]])) == pytest.approx(fit(made_sequences([[0, 1], [0]])))
    assert np.diag(fit(made_sequences([[0, 1, 2]]))).tolist() == [0] * 5


histories = st.lists(st.lists(st.integers(-1, 4), max_size=6), min_size=1, max_size=6)


@given(train=histories, pairs=st.integers(1, 20))
def test_similarities_are_symmetric_and_do_not_depend_on_blocks(train, pairs):
    whole = fit(made_sequences(train))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_item, "_PAIRS_A_BLOCK", pairs)
        assert np.array_equal(fit(made_sequences(train)), whole)
    assert np.allclose(whole, whole.T)


def test_each_item_keeps_its_strongest_neighbours_and_of_equals_the_lower_items(monkeypatch):
    monkeypatch.setattr(item_item, "NEIGHBOURS", 2)
    similarities = fit(made_sequences([[0, 1, 2, 3], [0, 3]]))
    assert np.flatnonzero(similarities[0]).tolist() == [1, 3]


def test_only_the_last_events_of_a_user_are_multiplied(monkeypatch):
    monkeypatch.setattr(item_item, "EVENTS_A_USER", 2)
    similarities = fit(made_sequences([[0, 1, 2]]))
    assert np.argwhere(similarities).tolist() == [[1, 2], [2, 1]]


def test_what_happens_in_the_window_changes_no_similarity():
    sequences = made_sequences([[0, 1], [1, 2]], valid=[[3, 4]], test=[[0, 4]])
    changed = made_sequences([[0, 1], [1, 2]], valid=[[3, 4]], test=[[2, 3]])
    assert np.array_equal(fit(sequences, "test"), fit(changed, "test"))
    assert fit(sequences, "test")[3, 4] > 0
    assert fit(sequences, "valid")[3, 4] == 0


def test_leave_one_out_counts_all_that_comes_before_the_part():
    sequences = made_sequences([[0, 1], [1, 2]], valid=[[3], [3]], test=[[4], [4]], train_end=None)
    assert fit(sequences, "valid")[1, 3] == 0
    assert fit(sequences, "test")[1, 3] > 0
    assert not fit(sequences, "test")[:, 4].any()


def score(sequences, **choice):
    scorer = ItemItemScorer(fit_item_item(sequences, "test"), ItemItemChoice(**choice))
    return scorer(find_targets(sequences, "test")).numpy()


def test_a_score_adds_the_decayed_similarities_to_the_last_items_of_the_history():
    sequences = made_sequences([[0, 1, 2, 0], [0, 3], [2, 3, 4]], test=[[4]])
    near = fit(sequences, "test")
    assert score(sequences, last_items=2, decay=0.5)[0] == pytest.approx(near[0] + near[2] / 2)
    assert score(sequences, last_items=9, decay=0.5)[0] == pytest.approx(near[0] * 9 / 8 + near[2] / 2 + near[1] / 4)


def test_a_score_depends_on_the_history_alone():
    sequences = made_sequences([[0, 1, 2], [1, 3, 4]], test=[[4, 3], [0]])
    later = dataclasses.replace(sequences, items=np.where(sequences.timestamps >= 200, 1, sequences.items))
    choice = {"last_items": 2, "decay": 1.0}
    assert np.array_equal(score(sequences, **choice)[[0, 2]], score(later, **choice)[[0, 2]])
    assert not np.array_equal(score(sequences, **choice)[1], score(later, **choice)[1])
