"""The cache of encoded users: the same answers as without it, bounded, and nothing of whom it was told to forget."""

import threading
import weakref
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint
from made_models import model_settings

from components.dataset import make_batch
from components.model import build_model
from components.model.incremental import Encoder
from components.recommender import Recommender
from components.serving.engine import Engine
from components.serving.history_store import History, StoredEvent
from components.serving.user_states import KnownHistory, UserStates, window_start
from kernels import choose_backend

N, NUM_ITEMS = 12, 30
RANDOM = np.random.default_rng(5)
ROWS = RANDOM.integers(NUM_ITEMS, size=100)
TIMES = 1_000_000 + RANDOM.choice([0, 1, 60, 10**5, 10**9], size=100).cumsum()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model("hstu", model_settings(max_len=N), NUM_ITEMS).double().eval()


def made_states(model, max_bytes=10**9):
    return UserStates(Encoder(model), max_bytes=max_bytes)


def window_of(total):
    part = slice(window_start(total, N), total)
    return ROWS[part], TIMES[part]


def ask(states, user_id, total, wait=60):
    rows, times = window_of(total)
    return states.encode(user_id, rows, times, int(times[-1]) + wait, generation=states.generation)


def encode_whole(model, total, wait=60):
    rows, times = window_of(total)
    with torch.inference_mode():
        return model(make_batch([(rows, times)], [int(times[-1]) + wait], max_len=N))[-1:]


@pytest.mark.parametrize("max_len", [1, 3, 12, 200])
def test_a_window_begins_at_multiples_of_a_quarter_and_is_never_short_of_three(max_len):
    for total in range(1, 5 * max_len):
        start = window_start(total, max_len)
        length = total - start
        assert start % max(max_len // 4, 1) == 0
        assert length <= max_len
        assert length == total or length > max_len - max(max_len // 4, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from([0, 1, 10**8])), max_size=25))
def test_an_answer_does_not_depend_on_what_is_in_the_cache(model, requests):
    """Users of one history that grows by any number of events between requests, with room for two or three of them."""
    states = made_states(model, max_bytes=16_000)
    totals = [1, 1, 1]
    for user, more, wait in requests:
        totals[user] = min(totals[user] + more, 100)
        y = ask(states, str(user), totals[user], wait)
        torch.testing.assert_close(y, encode_whole(model, totals[user], wait), rtol=0, atol=1e-12)
        assert states.num_bytes <= states.max_bytes


def test_an_event_more_is_encoded_alone_until_the_window_slides(model):
    states = made_states(model)
    for total in range(1, 2 * N + 1):
        ask(states, "a", total)
    # From N on the window slides every quarter; before, only the first request found nothing.
    assert states.counts.encoded == 1 + 4
    assert states.counts.extended == 2 * N - 5
    ask(states, "a", 2 * N, wait=10**6)
    assert states.counts.hits == 1


def test_an_event_that_arrives_late_changes_the_middle_and_is_encoded_anew(model):
    states = made_states(model)
    rows, times = window_of(8)
    states.encode("a", np.delete(rows, 3), np.delete(times, 3), int(times[-1]), generation=0)
    y = ask(states, "a", 8)
    assert states.counts.encoded == 2
    torch.testing.assert_close(y, encode_whole(model, 8), rtol=0, atol=1e-12)


def test_who_was_not_seen_for_longest_goes_first(model):
    ask(one := made_states(model), "a", 10)
    states = made_states(model, max_bytes=2 * one.num_bytes)
    for user in ("a", "b", "a", "c", "a"):
        ask(states, user, 10)
    assert states.counts.evicted == 1
    assert states.counts.hits == 2
    assert len(states) == 2
    ask(states, "b", 10)
    assert states.counts.encoded == 4


def test_a_state_larger_than_the_whole_cache_is_answered_and_not_kept(model):
    states = made_states(model, max_bytes=10)
    torch.testing.assert_close(ask(states, "a", 10), encode_whole(model, 10), rtol=0, atol=1e-12)
    assert (len(states), states.num_bytes) == (0, 0)


def test_forgetting_leaves_nothing(model):
    states = made_states(model)
    ask(states, "a", 10)
    assert states.forget("a")
    assert not states.forget("a")
    assert (len(states), states.num_bytes) == (0, 0)


@pytest.mark.skipif(choose_backend("cpu")[0] != "cpu", reason="no C++ compiler")
def test_users_take_the_memory_that_is_counted():
    """Encoding needs much more for a moment than what is kept, which must not come to lie in between."""
    torch.manual_seed(1)
    shape = {"max_len": 200, "dim": 50, "head_dim_qk": 50, "head_dim_v": 50, "num_heads": 1}
    states = made_states(build_model("hstu", model_settings(**shape), NUM_ITEMS).eval())

    def serve(first, end):
        for user in range(first, end):
            states.encode(str(user), ROWS[:2], TIMES[:2], int(TIMES[2]), generation=0)

    serve(0, 500)
    resident, counted = psutil.Process().memory_info().rss, states.num_bytes
    serve(500, 2_500)
    assert psutil.Process().memory_info().rss - resident < 2 * (states.num_bytes - counted)


def test_what_was_read_before_a_user_was_forgotten_is_not_kept(model):
    states = made_states(model)
    generation = states.generation
    rows, times = window_of(10)
    states.forget("a")
    states.encode("a", rows, times, int(times[-1]), generation=generation)
    assert len(states) == 0
    ask(states, "a", 10)
    assert len(states) == 1


def test_many_threads_get_what_one_gets(model):
    states = made_states(model, max_bytes=40_000)
    expected = {total: encode_whole(model, total) for total in range(1, 40)}
    wrong = []

    def work(start):
        for step in range(60):
            total = 1 + (start + step) % 39
            y = ask(states, str(step % 4), total)
            if not torch.allclose(y, expected[total], rtol=0, atol=1e-12):
                wrong.append(total)

    threads = [threading.Thread(target=work, args=(7 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert states.num_bytes == sum(window.num_bytes for window in states._windows.values()) <= states.max_bytes


class Named:
    """Something to stand for a recommender."""


def made_events(first, end):
    return tuple(StoredEvent(str(number), number, number) for number in range(first, end))


def test_a_known_history_grows_by_the_rest_only_where_that_continues_it():
    recommender = Named()
    rows = np.array([4, -1, 7])
    last, total = made_events(9, 10), 10
    known = KnownHistory(rows, np.array([7, 8, 9]), np.array([4, 5]), last, total, "a.10", weakref.ref(recommender))

    def grown(version, total, events):
        rows = np.array([event.item_id for event in events], np.int64)
        return known.grown(History(events, total, version, is_rest=True), rows, rows, max_len=3)

    assert grown("a.10", 10, made_events(9, 10)) is known
    two_more = grown("a.12", 12, made_events(9, 12))
    assert two_more.rows_n.tolist() == [7, 10, 11]
    assert two_more.timestamps_n.tolist() == [9, 10, 11]
    assert sorted(two_more.seen_rows) == [-1, 4, 5, 7, 10, 11]
    assert (two_more.last, two_more.total, two_more.arrived) == (made_events(11, 12), 12, 12)
    assert grown("a.12", 12, made_events(10, 12)) is None  # another event where the last one was
    assert grown("a.12", 11, made_events(9, 12)) is None  # the oldest were dropped


def test_what_was_kept_is_recalled_for_the_model_whose_rows_it_holds_only(model):
    states, recommender = made_states(model), Named()
    rows, times = window_of(3)
    history = KnownHistory(rows, times, rows[:0], made_events(2, 3), 3, "a.3", weakref.ref(recommender))
    states.encode("ann", rows, times, int(times[-1]), generation=0, history=history)
    assert states.recall("ann", recommender) is history
    assert states.recall("ann", Named()) is None
    assert states.recall("bob", recommender) is None


def test_a_request_reads_from_the_store_what_came_in_since_the_one_before(tmp_path, monkeypatch):
    keys = [f"item-{number}" for number in range(40)]
    recommender = Recommender.load(write_checkpoint(tmp_path / "checkpoint", keys))
    with closing(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}")) as engine:
        lengths, read = [], engine.store.read

        def note(*args, **options):
            stored = read(*args, **options)
            lengths.append(len(stored.events))
            return stored

        monkeypatch.setattr(engine.store, "read", note)
        total = 0
        for new in (2, 0, 1, 1, 0):
            events = [StoredEvent(str(n), keys[n], n) for n in range(total, total + new)]
            engine.append("ann", events)
            total += new
            assert engine.look(user_id="ann", request_time=100).rows.tolist() == list(range(total))
        assert lengths == [2, 1, 2, 2, 1]  # the first request all, the others one more than is new
        engine.append("ann", [StoredEvent("late", keys[30], 2)])  # before others
        assert engine.look(user_id="ann", request_time=100).rows.tolist() == [0, 1, 2, 30, 3]
        assert lengths[5:] == [5]


def test_a_store_that_lost_what_it_had_acknowledged_is_read_anew(tmp_path):
    """As Redis may at a failover: the same number of events of the same lineage, and others at the end."""
    keys = [f"item-{number}" for number in range(40)]
    recommender = Recommender.load(write_checkpoint(tmp_path / "checkpoint", keys))
    with closing(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}")) as engine:
        engine.append("ann", [StoredEvent("a", keys[1], 1)])
        copies = {}
        for item in (2, 3):
            for file in tmp_path.glob("h.db*"):
                copies.setdefault(file, file.read_bytes())
            engine.append("ann", [StoredEvent(str(item), keys[item], 2)])
            assert engine.look(user_id="ann", request_time=100).rows.tolist() == [1, item]
            engine.store.close()
            for file in tmp_path.glob("h.db*"):
                file.unlink()
            for file, content in copies.items():
                file.write_bytes(content)
            engine._lazy_store._store = None  # as a connection that was lost


def test_the_store_is_asked_once_at_most_what_a_user_of_a_long_history_has_seen(tmp_path, monkeypatch):
    keys = [f"item-{number}" for number in range(40)]
    recommender = Recommender.load(write_checkpoint(tmp_path / "checkpoint", keys))
    with closing(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}")) as engine:
        asked, seen = [], engine.store.seen
        monkeypatch.setattr(engine.store, "seen", lambda user_id: asked.append(user_id) or seen(user_id))
        for number in range(20):
            engine.append("ann", [StoredEvent(str(number), keys[number], number)])
            glance = engine.look(user_id="ann", request_time=100)
            assert sorted(glance.seen_rows) == list(range(number + 1))
        assert asked == []  # all came by here
        engine.append("ann", [StoredEvent("late", keys[30], 3)])
        for _ in range(3):
            assert sorted(engine.look(user_id="ann", request_time=100).seen_rows) == [*range(20), 30]
            assert asked == ["ann"]
        engine.forget("ann")
        assert engine.states.recall("ann", recommender) is None
        assert engine.states.num_bytes == 0
