"""Following the champion, in this process: when a model is taken, when it is refused, and what of the old one stays."""

import gc
import json
import logging
import os
import threading
import time
import weakref
from contextlib import closing
from types import SimpleNamespace

import pytest
from made_checkpoints import write_checkpoint
from made_items import KEYS, fit, load_with_map, write_structured

from components.catalogue import NewItem
from components.errors import StateError
from components.recommender import Recommender
from components.serving import following
from components.serving.answers import ModelFacts
from components.serving.app import Served
from components.serving.engine import Engine
from components.serving.following import Follower
from components.serving.history_store import StoredEvent
from components.serving.watching import FAILED_SWAPS, SWAPS

FACTS = dict.fromkeys(("bento", "tag", "name", "protocol", "verdict", "data_hash", "git_commit"), "x")


class Store:
    """Models by tag, as a service finds them, and which of them serves."""

    def __init__(self, *tags):
        self.states, self.serving, self.tries = dict.fromkeys(tags, "whole"), "own:1", []

    def take(self, tag):
        self.tries.append(tag)
        if self.states.get(tag) is None:
            raise StateError("is not in the store", where=f"/secret/place/{tag}")
        if self.states[tag] == "strange":
            raise KeyError("dim")
        if self.states[tag] != "whole":
            raise StateError("is broken", where=f"/secret/place/{tag}")
        before, self.serving = self.serving, tag
        return before != tag


@pytest.fixture
def store():
    return Store("m:1", "m:2")


@pytest.fixture
def pointer(tmp_path):
    return tmp_path / "champion.json"


@pytest.fixture
def follower(pointer, store):
    follower = Follower(pointer, take=store.take, state_of=store.states.get)
    yield follower
    follower.close()


def point(pointer, tag):
    pointer.write_text(json.dumps({"model_tag": tag}))


def counted(counter):
    return counter._value.get()


def test_the_model_that_the_pointer_names_is_taken_once(follower, pointer, store):
    before = counted(SWAPS)
    for tag in ("m:1", "m:1", "m:2", "m:2"):
        point(pointer, tag)
        follower.look()
    assert store.tries == ["m:1", "m:2"]
    assert (store.serving, follower.tag, follower.refused) == ("m:2", "m:2", None)
    assert counted(SWAPS) == before + 2


def test_another_content_with_an_older_time_is_seen(follower, pointer, store):
    point(pointer, "m:1")
    follower.look()
    point(pointer, "m:2")
    os.utime(pointer, (0, 0))
    follower.look()
    assert store.serving == "m:2"


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (None, "the pointer: there is no champion"),
        ("", "the pointer: there is no champion"),
        ("<<<<<<< HEAD\n", "the pointer: the pointer is damaged"),
        ("[]", "the pointer: the pointer is damaged"),
        ('{"model_tag": 5}', "the pointer: the pointer is damaged"),
        ('{"model_tag": "../../etc:1"}', "the pointer: the pointer is damaged"),
        ('{"model_tag": "m:3"}', "m:3: is not in the store"),
        ('{"model_tag": "m:4"}', "m:4: is broken"),
        ('{"model_tag": "m:5"}', "m:5: it cannot be loaded"),
    ],
)
def test_what_cannot_be_served_leaves_the_model_that_serves_and_says_so_once(
    follower, pointer, store, caplog, content, refused
):
    store.states |= {"m:4": "cut short", "m:5": "strange"}
    if content is not None:
        pointer.write_text(content)
    failed = counted(FAILED_SWAPS)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            follower.look()
    assert (store.serving, follower.refused) == ("own:1", refused)
    assert len(caplog.records) == 1
    assert counted(FAILED_SWAPS) == failed + 1
    assert len(store.tries) <= 1  # a broken model is not loaded again and again
    point(pointer, "m:1")
    follower.look()
    assert (store.serving, follower.refused) == ("m:1", None)


@pytest.mark.parametrize("state", [None, "cut short"])
def test_a_model_that_appears_or_is_mended_is_taken_without_a_change_of_the_pointer(follower, pointer, store, state):
    store.states["m:1"] = state
    point(pointer, "m:1")
    follower.look()
    assert store.serving == "own:1"
    store.states["m:1"] = "whole"
    follower.look()
    assert (store.serving, follower.refused) == ("m:1", None)


def test_what_failed_and_did_not_change_is_tried_again_after_a_minute(follower, pointer, store, monkeypatch):
    store.states["m:1"] = "cut short"
    point(pointer, "m:1")
    now = time.monotonic()
    for seconds in (0, 30, 59, 61, 90, 125):
        monkeypatch.setattr(following.time, "monotonic", lambda at=now + seconds: at)
        follower.look()
    assert len(store.tries) == 3


def test_a_pointer_that_disappears_leaves_the_model_and_comes_back(follower, pointer, store):
    point(pointer, "m:1")
    follower.look()
    pointer.unlink()
    follower.look()
    assert (store.serving, follower.refused) == ("m:1", "the pointer: there is no champion")
    point(pointer, "m:1")
    follower.look()
    assert (store.serving, follower.refused) == ("m:1", None)


def test_a_started_follower_looks_by_itself_and_survives_what_a_model_does_to_it(follower, pointer, store, monkeypatch):
    monkeypatch.setattr(following, "SECONDS_BETWEEN_LOOKS", 0.01)
    store.states["m:9"] = "strange"
    follower.start()
    for tag in ("m:9", "m:2"):
        point(pointer, tag)
        while follower.tag != tag:
            time.sleep(0.01)
    while store.serving != "m:2":
        time.sleep(0.01)
    assert follower.tag == "m:2"


def test_an_engine_that_follows_has_the_histories_and_the_inserted_items_in_its_own_rows(tmp_path):
    first, item_map = load_with_map(tmp_path / "first")
    engine = Engine(first, store_url=f"sqlite:///{tmp_path / 'h.db'}", item_map=item_map)
    fewer = Recommender.load(write_structured(tmp_path / "second", KEYS[:24], seed=7))
    with closing(engine):
        engine.new_items.insert([NewItem("fresh", "Film 9 (1991)", {"genres": ["Comedy"]})])
        engine.append("ann", [StoredEvent("1", "item-3", 5), StoredEvent("2", "fresh", 6)])
        after = engine.follow_with(fewer, fit(fewer))
        after.new_items.follow()
        glance = after.look(user_id="ann", request_time=9)
        assert sorted(glance.seen_rows) == [3, 24]  # the inserted item stands after the 24 trained ones, not after 60
        assert glance.recommender.catalogue.item_ids[24] == "fresh"
        assert (len(after.states), len(engine.states)) == (1, 0)
        assert sorted(engine.look(user_id="ann", request_time=9).seen_rows) == [3, 60]
        after.new_items.close()


@pytest.mark.parametrize("metadata", [{}, {"item_table": {"values": "int8", "of_a_later_version": 1}}])
def test_a_swap_that_fails_leaves_neither_its_model_nor_a_thread(tmp_path, monkeypatch, metadata):
    import components.service as service

    models = []

    def load(folder):
        loaded = load_with_map(folder / "model")
        models.append(weakref.ref(loaded[0]))
        return loaded

    monkeypatch.setattr(service, "_load", load)
    monkeypatch.setattr(service, "_STORE_URL", f"sqlite:///{tmp_path / 'h.db'}")
    stored = SimpleNamespace(path=tmp_path, tag="m:1", info=SimpleNamespace(metadata=metadata and FACTS | metadata))
    here = SimpleNamespace(served=None, follower=None, requests=None)
    with pytest.raises((KeyError, ValueError)):
        service.RecommendService.inner._swap(here, stored)
    assert here.served is None
    assert not [thread for thread in threading.enumerate() if thread.name == "new-items"]
    gc.collect()
    assert [model() for model in models] == [None]


def test_whoever_is_forgotten_through_one_model_is_forgotten_by_all(tmp_path):
    models = [Recommender.load(write_checkpoint(tmp_path / f"{seed}", KEYS[:9], seed=seed)) for seed in (1, 2)]
    with closing(Engine(models[0], store_url=f"sqlite:///{tmp_path / 'h.db'}")) as engine:
        after = engine.follow_with(models[1], None)
        engine.append("ann", [StoredEvent("1", "item-3", 5)])
        for one in (engine, after):
            one.look(user_id="ann")
        generations = [one.states.generation for one in (engine, after)]
        assert engine.forget("ann") == 1
        assert (len(engine.states), len(after.states)) == (0, 0)
        assert [one.states.generation for one in (engine, after)] == [number + 1 for number in generations]


def test_a_replaced_model_is_gone_without_the_collector_once_its_last_request_has_ended(tmp_path):
    """The service freezes what it loaded at its start, so nothing of that is ever collected: it has to be no cycle."""
    gc.collect()
    gc.disable()
    try:
        served, refs = None, []
        for seed in range(3):
            recommender, item_map = load_with_map(tmp_path / f"{seed}", seed=seed)
            refs += [weakref.ref(recommender), weakref.ref(recommender.model)]
            if served is None:
                engine = Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}", item_map=item_map)
            else:
                engine = served.engine.follow_with(recommender, item_map)
            engine.new_items.follow()
            before, served = served, Served(engine, ModelFacts(**FACTS), {})
            engine.append("ann", [StoredEvent(f"{seed}", "item-3", 5 + seed)])
            engine.recommender.recommend([("item-1", 5)], k=3)
            glance = engine.look(user_id="ann")
            assert served.titles.find("film", 3)
            if before is not None:
                before.engine.new_items.close()
                del before
                assert [ref() is None for ref in refs] == [True] * (len(refs) - 2) + [False] * 2
            del recommender, item_map, glance
        assert threading.active_count() < 10
        served.engine.close()
    finally:
        gc.enable()
