"""Items inserted into a running service: recommended like any other, kept for good, and seen by other services."""

import json
import threading
from contextlib import closing
from urllib.parse import quote

import numpy as np
import pytest
from made_histories import needs_redis, running_server, start_program
from made_items import GENRES, KEYS, fit, load_with_map, write_structured
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from components.catalogue import NewItem
from components.errors import InputError
from components.recommender import Recommender
from components.serving import new_items as module
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.history_store import StoreError, open_store
from components.serving.item_map import Metadata
from components.serving.stored_items import REDIS_KEYS, StoredItem, TooManyItemsError

FACTS = dict.fromkeys(("bento", "tag", "name", "protocol", "verdict", "data_hash", "git_commit"), "x")
COMEDY = {"item_id": "new-1", "title": "Laughter (1991)", "attributes": {"genres": ["Comedy"]}}
HORROR = {"item_id": "new-2", "title": "Screams (1990)", "attributes": {"genres": ["Horror"]}}
HISTORY = [{"item_id": f"item-{number}", "timestamp": 1_000 + number} for number in (1, 7, 13)]
INSERTS_UNTIL_KILLED = """
import sys
from components.serving.history_store import open_store
from components.serving.stored_items import StoredItem
store = open_store(sys.argv[1])
for i in range(10**9):
    assert store.put_items([StoredItem(f"{i}-{j}", "content", i) for j in range(3)], 10**9).new == 3
    print(i, flush=True)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_with_map(tmp_path_factory.mktemp("items") / "checkpoint")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'histories.db'}"
    server = request.getfixturevalue("server")
    with closing(open_store(server.url)) as store:
        store._client.flushall()
    return server.url


@pytest.fixture
def store(url):
    with closing(open_store(url)) as store:
        yield store


@pytest.fixture
def start(loaded, url):
    """Start a service on the same store; all are closed at the end."""
    engines = []

    def start(recommender=loaded[0], item_map=loaded[1], url=url):
        engines.append(Engine(recommender, store_url=url, item_map=item_map))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(start):
    return start()


@pytest.fixture
def client(engine):
    return make_client(engine)


def make_client(engine):
    served = Served(engine, ModelFacts(**FACTS), {"ndcg@10": {"value": 0.1, "low": 0.0, "high": 0.2}})
    return TestClient(RequestGuard(build_app(lambda: served)), raise_server_exceptions=False)


def ask(client, route="/recommend", status=200, **request):
    response = client.post(route, json=request)
    assert response.status_code == status, response.text
    return response.json()


def insert(client, *items, status=200):
    return ask(client, "/items", status, items=list(items))


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def recommend(client, **request):
    return ask(client, **({"history": HISTORY, "request_time": 5_000, "k": 100} | request))


def test_an_inserted_item_is_recommended_marked_and_scored_like_any_other(client):
    before = recommend(client)
    assert insert(client, COMEDY, HORROR) == {"new": 2, "replaced": 0, "unchanged": 0, "known": []}
    after = recommend(client)
    assert [item for item in after["items"] if "new" not in item] == before["items"]
    new = {item["item_id"]: item for item in after["items"] if item.get("new")}
    assert {key: item["title"] for key, item in new.items()} == {"new-1": "Laughter (1991)", "new-2": "Screams (1990)"}
    ranked = ask(client, "/rank", history=HISTORY, request_time=5_000, candidates=["new-1", "item-2"])
    scores = {item["item_id"]: item["score"] for item in after["items"]}
    assert {item["item_id"]: item["score"] for item in ranked["items"]} == {k: scores[k] for k in ("new-1", "item-2")}


def test_an_inserted_item_is_filtered_capped_excluded_and_allowed(client):
    insert(client, COMEDY, HORROR)
    assert "new-1" not in ids(recommend(client, attributes={"genres": {"none_of": ["Comedy"]}}))
    assert "new-2" in ids(recommend(client, attributes={"genres": {"any_of": ["Horror"]}}))
    assert ids(recommend(client, allow=["new-1", "item-2"], caps={"genres": 1})) in (
        ["new-1", "item-2"],
        ["item-2", "new-1"],
    )
    assert ids(recommend(client, allow=["new-1"], exclude=["new-1"])) == []
    assert "new-1" in ids(recommend(client, first_seen_from=1_000_000_000))  # it came in just now
    assert len(ids(recommend(client, first_seen_from=1_000_000_000))) == 2


def test_an_inserted_item_is_similar_to_its_like_and_found_by_title(client):
    insert(client, COMEDY)
    nearest = ids(ask(client, "/similar", item_id="new-1", k=10))
    assert all("Comedy" in GENRES[KEYS.index(key)] for key in nearest)
    assert "new-1" in ids(ask(client, "/similar", item_id="item-1", k=60))
    found = client.get("/items", params={"query": "laugh"}).json()
    assert found == {"items": [{"item_id": "new-1", "title": "Laughter (1991)", "new": True}]}
    assert len(client.get("/items", params={"query": "film", "limit": 100}).json()["items"]) == 60


def test_an_inserted_item_counts_as_known_in_histories_and_is_explained(client):
    insert(client, COMEDY)
    with_it = [*HISTORY, {"item_id": "new-1", "timestamp": 2_000}]
    answer = recommend(client, history=with_it)
    assert answer["unknown_items"] == []
    assert "new-1" not in ids(answer)
    assert [i["score"] for i in answer["items"]] != [i["score"] for i in recommend(client)["items"]]
    explained = ask(client, "/explain", history=with_it, request_time=5_000, item_ids=["item-2", "new-1"])
    assert {reason["item_id"] for reason in explained["items"][0]["reasons"]} <= {
        "new-1",
        "item-1",
        "item-7",
        "item-13",
    }
    assert explained["items"][1]["score"] is not None
    assert ask(client, history=[], k=61)["items"][-1]["item_id"] == "new-1"  # nobody had it yet


def test_sent_again_an_item_changes_nothing_and_with_other_content_it_is_replaced(client, engine):
    insert(client, COMEDY)
    before = engine.recommender
    assert insert(client, COMEDY)["unchanged"] == 1
    assert engine.recommender is before
    assert insert(client, COMEDY | {"attributes": {"genres": ["Drama"]}}) == {
        "new": 0,
        "replaced": 1,
        "unchanged": 0,
        "known": [],
    }
    assert "new-1" in ids(recommend(client, attributes={"genres": {"any_of": ["Drama"]}}))


def test_what_training_knows_is_reported_and_stays_as_it_is(client):
    before = recommend(client)
    assert insert(client, COMEDY | {"item_id": "item-5"}) == {
        "new": 0,
        "replaced": 0,
        "unchanged": 0,
        "known": ["item-5"],
    }
    assert recommend(client) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attributes": {"genres": ["Comedi"]}}, "no item has this value of genres"),
        ({"attributes": {"mood": ["dark"]}}, "items have no attribute of this name"),
        ({"attributes": {}, "title": "Nothing Heard of"}, "nothing in title and attributes tells"),
        ({"title": ""}, "items.1.title"),
        ({"title": "\ud800"}, "items.1.title"),
        ({"tittle": "x"}, "unknown key, allowed: item_id, title, attributes"),
        ({"item_id": "new-1"}, "an item comes twice"),
    ],
)
def test_one_wrong_item_refuses_them_all_in_one_sentence(client, change, sentence):
    body = json.dumps({"items": [COMEDY, HORROR | change]})  # httpx itself would not send half a surrogate pair
    response = client.post("/items", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert sentence in response.json()["error"]
    assert len(ids(recommend(client, exclude_seen=False))) == 60


def test_a_withdrawn_item_is_gone_and_stays_unknown_in_histories(client):
    insert(client, COMEDY, HORROR)
    assert client.delete("/items/new-1").json() == {"withdrawn": 1}
    assert "new-1" not in ids(recommend(client))
    assert "new-2" in ids(recommend(client))
    assert recommend(client, exclude=["new-1"])["unknown_items"] == ["new-1"]
    for key in ("new-1", "item-5"):
        response = client.delete(f"/items/{key}")
        assert (response.status_code, "no item of this id was inserted" in response.text) == (404, True)


def test_a_stored_history_is_encoded_anew_when_an_item_of_it_becomes_known_changes_or_goes(client, engine):
    """Through the cache of encoded users: another item may by then have the row of a withdrawn one."""
    events = [
        *HISTORY,
        {"item_id": "new-1", "timestamp": 2_000},
        {"item_id": "new-2", "timestamp": 2_001},
        {"item_id": "item-2", "timestamp": 2_002},
    ]
    ask(client, "/events", user_id="ann", events=[event | {"event_id": str(n)} for n, event in enumerate(events)])

    def check():
        stored = recommend(client, user_id="ann", history=None)
        given = recommend(client, history=events)
        assert ids(stored) == ids(given)
        scores = [[item["score"] for item in answer["items"]] for answer in (stored, given)]
        np.testing.assert_allclose(*scores, atol=1e-5)
        return scores[0]

    seen = [check()]
    insert(client, COMEDY)
    seen.append(check())
    insert(client, HORROR)
    client.delete("/items/new-1")  # new-2 takes its row
    seen.append(check())
    insert(client, HORROR | {"attributes": {"genres": ["Drama"]}})  # another vector in the same row
    seen.append(check())
    assert len({tuple(np.round(scores[:20], 5)) for scores in seen}) == 4
    counts = engine.states.counts
    assert (counts.hits, counts.encoded) == (0, 4)
    check()
    assert engine.states.counts.hits == 1


def test_items_survive_a_restart_and_other_services_see_them(start):
    first, second = start(), start()
    insert(make_client(first), COMEDY)
    assert second.new_items.refresh()
    assert not second.new_items.refresh()
    third = start()
    third.new_items.follow()
    answers = [recommend(make_client(engine)) for engine in (first, second, third)]
    assert answers[0] == answers[1] == answers[2]
    assert "new-1" in ids(answers[0])
    make_client(third).delete("/items/new-1")
    second.new_items.refresh()
    assert "new-1" not in ids(recommend(make_client(second)))


def test_a_service_that_follows_takes_over_what_another_inserts(start, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.01)
    first, second = start(), start()
    second.new_items.follow()
    insert(make_client(first), COMEDY)
    while not second.recommender.catalogue.new:
        threading.Event().wait(0.01)
    assert "new-1" in ids(recommend(make_client(second)))


def test_a_store_out_of_reach_breaks_no_answer_and_refuses_insertions(loaded, tmp_path):
    with closing(Engine(loaded[0], store_url=f"sqlite:///{tmp_path}/none/h.db", item_map=loaded[1])) as engine:
        engine.new_items.follow()
        client = make_client(engine)
        assert len(ids(recommend(client, exclude_seen=False))) == 60
        insert(client, COMEDY, status=503)
        assert client.delete("/items/new-1").status_code == 503


def test_a_model_without_a_map_takes_no_items_and_says_so(start, client):
    insert(client, COMEDY)
    without = make_client(start(item_map=None))
    assert "this model takes no new items" in insert(without, COMEDY, status=409)["error"]
    assert without.get("/info").json()["item_map"] is None
    assert "new-1" not in ids(recommend(without))


def test_the_next_model_keeps_what_it_does_not_know_and_leaves_out_what_does_not_fit(start, client, tmp_path, store):
    insert(client, COMEDY, HORROR)
    store.put_items([StoredItem("bad", "no JSON", 1)], 100)
    store.put_items([StoredItem("odd", '{"title": "x", "attributes": {"genres": ["Unheard"]}}', 1)], 100)
    retrained = Recommender.load(write_structured(tmp_path / "next", ["new-1", *KEYS[1:]]))
    following = start(retrained, fit(retrained))
    following.new_items.follow()
    assert [item.item_id for item in following.recommender.catalogue.new] == ["new-2"]


@pytest.mark.parametrize(
    "content", ['{"title": "x", "attributes": {"genres": [1]}}', '{"title": "x", "attributes": []}']
)
def test_a_damaged_row_of_the_store_is_left_out_and_does_not_stop_the_service(start, client, store, content):
    insert(client, COMEDY)
    store.put_items([StoredItem("bad", content, 1)], 100)
    again = start()
    again.new_items.follow()
    assert [item.item_id for item in again.recommender.catalogue.new] == ["new-1"]


@needs_redis
@pytest.mark.parametrize("row", [b"soon:{}", b"no colon", b"12:\xff", b""])
def test_a_damaged_row_of_redis_is_left_out_and_can_be_put_again(start, server, row):
    import redis

    with closing(open_store(server.url)) as store, closing(redis.Redis.from_url(server.url)) as raw:
        raw.flushall()
        insert(make_client(start(url=server.url)), COMEDY, HORROR)
        raw.hset(REDIS_KEYS[0], "new-1", row)
        raw.set(REDIS_KEYS[1], "another version")
        again = start(url=server.url)
        again.new_items.follow()
        assert [item.item_id for item in again.recommender.catalogue.new] == ["new-2"]
        assert insert(make_client(again), COMEDY)["replaced"] == 1
        assert [item.item_id for item in again.recommender.catalogue.new] == ["new-1", "new-2"]
        assert all(isinstance(item.since, int) for item in store.items()[1])


def test_what_training_has_learnt_takes_no_place_of_an_inserted_item(start, client, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_NEW_ITEMS", 2)
    insert(client, COMEDY, HORROR)
    assert "too many inserted items" in insert(client, COMEDY | {"item_id": "new-3"}, status=409)["error"]
    retrained = Recommender.load(write_structured(tmp_path / "next", ["new-1", "new-2", *KEYS[2:]]))
    following = start(retrained, fit(retrained))
    following.new_items.follow()
    later = make_client(following)
    insert(later, COMEDY | {"item_id": "new-3"}, HORROR | {"item_id": "new-4"})
    assert "too many inserted items" in insert(later, COMEDY | {"item_id": "new-5"}, status=409)["error"]


@pytest.mark.parametrize("item_id", [".", "..", "a\nb", "a\rb"])
def test_an_id_that_no_path_can_name_is_refused(client, item_id):
    error = insert(client, COMEDY | {"item_id": item_id}, status=400)["error"]
    assert error.startswith("items.0.item_id: Input should be an integer or a string"), error
    assert "in one line, and neither . nor .." in error


@pytest.mark.parametrize("item_id", ["...", "..a", ".a", "a.", "./a", "../a", "a/../b", "/", "a b", "?", "#"])
def test_whatever_is_inserted_can_be_withdrawn(client, item_id):
    assert insert(client, COMEDY | {"item_id": item_id})["new"] == 1
    assert client.delete(f"/items/{quote(item_id, safe='')}").json() == {"withdrawn": 1}


def test_integer_ids_stay_integers_and_other_ids_are_refused(start, tmp_path):
    numbers = [str(number) for number in range(60)]
    recommender, item_map = load_with_map(tmp_path / "ints", keys=numbers, key_type="int")
    client = make_client(start(recommender, item_map))
    insert(client, COMEDY | {"item_id": "9001"}, HORROR | {"item_id": -7})
    answer = recommend(client, history=[{"item_id": 1, "timestamp": 5}])
    assert {item["item_id"] for item in answer["items"] if item.get("new")} == {9001, -7}
    for wrong in ("x", "007", 10**30):
        assert "ids of this catalogue are integers" in insert(client, COMEDY | {"item_id": wrong}, status=400)["error"]


def test_requests_in_flight_are_answered_by_the_items_they_began_with(client, engine):
    """A thread inserts and withdraws; no answer mixes two catalogues."""
    stop, failures = threading.Event(), []

    def change():
        number = 0
        while not stop.is_set():
            number += 1
            engine.new_items.insert([NewItem(f"n{number % 5}", "Laughter (1991)", {"genres": ["Comedy"]})])
            engine.new_items.insert([NewItem(f"m{number % 3}", f"Film ({1990 + number % 3})", {"genres": ["Drama"]})])
            engine.new_items.withdraw(f"n{number % 5}")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(60):
            history = [*HISTORY, {"item_id": "n1", "timestamp": 2_000}, {"item_id": "m1", "timestamp": 2_000}]
            response = client.post("/recommend", json={"history": history, "k": 100, "exclude_seen": True})
            if response.status_code != 200 or {"n1", "m1"} & set(ids(response.json())):
                failures.append(response.text)
    finally:
        stop.set()
        changer.join()
    assert not failures


def test_info_and_metrics_say_how_many_items_were_inserted(client):
    before = REGISTRY.get_sample_value("hstuflow_insertions_total")
    insert(client, COMEDY, HORROR)
    insert(client, COMEDY)
    info = client.get("/info").json()
    assert (info["num_items"], info["num_new_items"]) == (62, 2)
    assert info["item_map"]["cosine"] > info["item_map"]["cosine_of_mean"]
    text = client.get("/metrics").text
    assert "hstuflow_new_items 2.0" in text
    assert REGISTRY.get_sample_value("hstuflow_insertions_total") == before + 2


# What the stores do


def test_a_store_tells_new_replaced_and_unchanged_items_and_keeps_the_first_time(store):
    assert (store.items(), store.items_version()) == (("", []), "")
    assert store.put_items([StoredItem("b", "1:é\n", 5), StoredItem("a", "2", 5)], 10) == (2, 0, 0)
    version = store.items_version()
    assert store.put_items([StoredItem("b", "1:é\n", 9)], 10) == (0, 0, 1)
    assert store.items_version() == version
    assert store.put_items([StoredItem("b", "other", 9), StoredItem("c", "3", 9)], 10) == (1, 1, 0)
    assert store.items_version() != version
    assert store.items() == (store.items_version(), [("a", "2", 5), ("b", "other", 5), ("c", "3", 9)])
    assert (store.drop_item("b"), store.drop_item("b")) == (True, False)
    assert [item.key for item in store.items()[1]] == ["a", "c"]


def test_too_many_items_are_refused_all_together(store):
    store.put_items([StoredItem("a", "1", 1), StoredItem("b", "1", 1)], 3)
    with pytest.raises(TooManyItemsError, match="observed 4, expected at most 3"):
        store.put_items([StoredItem("c", "1", 1), StoredItem("d", "1", 1), StoredItem("a", "2", 1)], 3)
    assert [(item.key, item.content) for item in store.items()[1]] == [("a", "1"), ("b", "1")]


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    url = f"sqlite:///{tmp_path}/histories.db"
    program = start_program(INSERTS_UNTIL_KILLED, url)
    acknowledged = [int(program.stdout.readline()) for _ in range(20)][-1]
    program.kill()
    acknowledged = max([acknowledged, *map(int, program.stdout.read().split())])
    program.wait()
    with closing(open_store(url)) as store:
        keys = {item.key for item in store.items()[1]}
    assert {f"{i}-{j}" for i in range(acknowledged + 1) for j in range(3)} <= keys
    assert len(keys) % 3 == 0


def test_a_user_called_items_is_not_the_items(store):
    assert store.seen("items") == set()
    store.put_items([StoredItem("a", "1", 1)], 10)
    assert store.forget("items") == store.forget("all") == 0
    assert len(store.items()[1]) == 1


def test_a_closed_store_says_so(store):
    store.close()
    for call in (
        store.items,
        store.items_version,
        lambda: store.drop_item("a"),
        lambda: store.put_items([StoredItem("a", "1", 1)], 9),
    ):
        with pytest.raises(StoreError, match="is closed"):
            call()


def test_a_recommender_with_items_leaves_the_one_it_came_from_alone(loaded):
    trained, item_map = loaded
    rows = item_map.vectors([Metadata("New (1990)", {"genres": ["Drama"]})])
    before = trained.recommend([("item-1", 5)], 60, 10)
    longer = trained.with_items([NewItem("x", "New", {"genres": ["Drama"]})], rows)
    assert trained.recommend([("item-1", 5)], 60, 10) == before
    assert trained.model.embedding.item.num_embeddings == 60
    assert longer.model.layers is trained.model.layers
    assert longer.vectors_XD.shape == (61, 8)
    with pytest.raises(InputError, match="no item has this value"):
        trained.with_items([NewItem("x", "New", {"genres": ["Unheard"]})], rows)
