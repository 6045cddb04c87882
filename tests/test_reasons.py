"""Reasons are leave-one-out differences of the served score: the same as a naive loop, in one batch."""

import numpy as np
import pytest
from made_checkpoints import write_checkpoint

from components.recommender import Recommender
from components.serving.reasons import MAX_LEFT_OUT, MAX_REASONS, explain

KEYS = [f"item-{number}" for number in range(40)]
ASKED = [5, 30, 7, 5]


def load(folder, model="hstu", **settings):
    recommender = Recommender.load(write_checkpoint(folder / "checkpoint", KEYS, model=model))
    for name, value in settings.items():
        setattr(recommender, name, value)
    return recommender


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return load(tmp_path_factory.mktemp("reasons"))


def make_history(length, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, len(KEYS), length), np.sort(random.integers(0, 10**6, length))


def naive(recommender, rows, timestamps, request_time, item):
    """Score, and (event, effect) of every event of the window, the strongest first."""
    known = rows >= 0
    rows, timestamps = rows[known][-recommender.max_len :], timestamps[known][-recommender.max_len :]
    whole = recommender.scores(rows, timestamps, request_time)[item]
    effects = []
    for n in range(len(rows)):
        kept = np.arange(len(rows)) != n
        without = recommender.scores(rows[kept], timestamps[kept], request_time)[item]
        effects.append(((int(rows[n]), int(timestamps[n])), float(whole) - float(without)))
    return whole, sorted(effects, key=lambda effect: -abs(effect[1]))


@pytest.mark.parametrize("model", ["hstu", "sasrec"])
@pytest.mark.parametrize("length", [2, 5, 6, 30])
def test_reasons_are_those_of_a_naive_loop(tmp_path, model, length):
    recommender = load(tmp_path, model)
    rows, timestamps = make_history(length)
    for item, explanation in zip(ASKED, explain(recommender, rows, timestamps, 2 * 10**6, ASKED), strict=True):
        score, effects = naive(recommender, rows, timestamps, 2 * 10**6, item)
        assert explanation.score == pytest.approx(score, abs=1e-6)
        assert len(explanation.reasons) == min(MAX_REASONS, length)
        by_event = dict(effects)
        for reason, (_, expected) in zip(explanation.reasons, effects, strict=False):
            assert abs(reason.effect) == pytest.approx(abs(expected), abs=1e-6)
            assert reason.effect == pytest.approx(by_event[reason.row, reason.timestamp], abs=1e-6)


def test_events_of_unknown_items_are_no_reasons_and_change_none(recommender):
    rows, timestamps = make_history(5)
    with_unknown = np.insert(rows, 2, -1), np.insert(timestamps, 2, timestamps[2])
    expected = explain(recommender, rows, timestamps, 10**7, ASKED)
    assert explain(recommender, *with_unknown, 10**7, ASKED) == expected


def test_only_the_latest_events_of_a_long_window_are_left_out(tmp_path):
    long = load(tmp_path)
    rows = np.arange(len(KEYS)).repeat(2)
    long.max_len = len(rows)
    # The tiny model has six places: its tables, repeated, make it as long as a real one.
    position = long.model.embedding.position
    position.data = position.data.repeat(len(rows), 1)[: len(rows)]
    for layer in long.model.layers:
        layer.max_len = len(rows)
        layer.position_weight.data = layer.position_weight.data.repeat(len(rows))[: 2 * len(rows) - 1]
    timestamps = np.arange(len(rows)) * 100
    for explanation in explain(long, rows, timestamps, 10**5, list(range(20))):
        assert min(reason.timestamp for reason in explanation.reasons) >= timestamps[-MAX_LEFT_OUT]


def test_an_only_event_is_the_reason_without_an_effect(recommender):
    (explanation,) = explain(recommender, np.array([3]), np.array([1_000]), 2_000, [5])
    assert explanation.score == pytest.approx(recommender.scores(np.array([3]), np.array([1_000]), 2_000)[5], abs=1e-6)
    assert [(reason.row, reason.timestamp, reason.effect) for reason in explanation.reasons] == [(3, 1_000, None)]


def test_unknown_items_and_histories_have_neither_score_nor_reasons(recommender):
    rows, timestamps = make_history(4)
    unknown, known = explain(recommender, rows, timestamps, 10**7, [-1, 5])
    assert (unknown.score, unknown.reasons) == (None, ())
    assert len(known.reasons) == MAX_REASONS
    for history in (np.array([], dtype=np.int64), np.array([-1])):
        (nothing,) = explain(recommender, history, np.arange(len(history)), 10**7, [5])
        assert (nothing.score, nothing.reasons) == (None, ())
