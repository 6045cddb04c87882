"""The routes, in this process: what they answer, what they refuse, and that the OpenAPI document is true."""

import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_checkpoints import write_checkpoint
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app, routes_of
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.watching import JsonLines, RequestWatch

KEYS = [f"item-{number}" for number in range(40)]
GENRES = ["Action|Comedy", "Comedy", "Drama", None] * 10
GENRES_OF = dict(zip(KEYS, GENRES, strict=True))
HISTORY = [{"item_id": f"item-{number}", "timestamp": 1_000 + number} for number in (3, 7, 11)]
EVENTS = [(event["item_id"], event["timestamp"]) for event in HISTORY]
FACTS = dict.fromkeys(("bento", "tag", "name", "protocol", "verdict", "data_hash", "git_commit"), "x")


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("app") / "checkpoint", KEYS, genres=GENRES)
    return Recommender.load(folder)


@pytest.fixture
def engine(recommender, tmp_path):
    engine = Engine(recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}")
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    return make_client(engine)


def make_client(engine, token=None):
    served = Served(engine, ModelFacts(**FACTS), {"ndcg@10": {"value": 0.1, "low": 0.0, "high": 0.2}})
    return TestClient(RequestGuard(build_app(lambda: served), token=token), raise_server_exceptions=False)


def ask(client, route="/recommend", **request):
    response = client.post(route, json=request)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def as_events(history):
    return [event | {"event_id": f"{number}"} for number, event in enumerate(history)]


def test_rules_are_applied_and_each_says_what_it_removed(client, recommender):
    answer = ask(
        client,
        history=HISTORY,
        request_time=5_000,
        k=40,
        exclude=["item-0", "item-3", "elsewhere"],
        attributes={"genres": {"none_of": ["Drama"]}},
        caps={"genres": 2},
    )
    # Seen: 3, 7 and 11; excluded: 0, and 3 was gone; dramas: 10 items, none of them gone before.
    assert {name: answer["removed"][name] for name in ("seen", "exclude", "attributes.genres")} == {
        "seen": 3,
        "exclude": 1,
        "attributes.genres": 10,
    }
    assert len(answer["items"]) == 40 - 3 - 1 - 10 - answer["removed"]["caps.genres"]
    values = [value for item in ids(answer) for value in (GENRES_OF[item] or "").split("|")]
    assert values.count("Comedy") == 2
    assert values.count("Action") <= 2
    assert "Drama" not in values
    assert answer["unknown_items"] == ["elsewhere"]
    expected = recommender.recommend(EVENTS, 40, 5_000)
    order = [item.item_id for item in expected.items]
    assert sorted(ids(answer), key=order.index) == ids(answer)


def test_only_allowed_items_come_back(client):
    answer = ask(client, history=HISTORY, k=10, allow=["item-5", "item-3", "item-9", "elsewhere"])
    assert sorted(ids(answer)) == ["item-5", "item-9"]
    assert answer["removed"] == {"seen": 3, "allow": 35}
    assert answer["unknown_items"] == ["elsewhere"]


def test_a_batch_answers_as_the_requests_alone(client):
    requests = [
        {"history": HISTORY, "request_time": 5_000, "k": 4},
        {"history": [], "k": 2},
        {"history": HISTORY[:1], "request_time": 9_000},
    ]
    answers = ask(client, "/recommend_batch", requests=requests)["answers"]
    assert answers == [ask(client, **request) for request in requests]


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": HISTORY, "request_time": 5},
        {"history": HISTORY, "attributes": {"colour": {"any_of": ["red"]}}},
    ],
    ids=["a time before the last event", "no such attribute"],
)
def test_a_batch_says_which_request_is_wrong(client, wrong):
    response = client.post("/recommend_batch", json={"requests": [{"history": []}, wrong]})
    alone = client.post("/recommend", json=wrong).json()["error"]
    assert (response.status_code, response.json()["error"]) == (400, f"requests.1: {alone}")


def test_ranked_candidates_have_the_scores_of_recommend_and_do_not_depend_on_each_other(client):
    everything = ask(client, history=HISTORY, request_time=5_000, k=40, exclude_seen=False)
    scores = {item["item_id"]: item["score"] for item in everything["items"]}
    candidates = ["item-9", "item-3", "elsewhere", "item-30", "item-9"]
    ranked = ask(client, "/rank", history=HISTORY, request_time=5_000, candidates=candidates)
    assert sorted(ids(ranked)) == sorted(candidates)
    for item in ranked["items"]:
        assert item["score"] == scores.get(item["item_id"])
        alone = ask(client, "/rank", history=HISTORY, request_time=5_000, candidates=[item["item_id"]])
        assert alone["items"] == [item]
    known = [item["score"] for item in ranked["items"][:-1]]
    assert known == sorted(known, reverse=True)
    assert ranked["items"][-1] == {"item_id": "elsewhere", "score": None}
    assert ranked["unknown_items"] == ["elsewhere"]


def test_candidates_without_a_known_history_have_no_scores(client):
    ranked = ask(client, "/rank", history=[], candidates=["item-1", "item-0"])
    assert ranked["source"] == "none"
    assert ranked["items"] == [{"item_id": "item-1", "score": None}, {"item_id": "item-0", "score": None}]


def test_similar_items_are_the_nearest_by_cosine_and_not_the_item_itself(client, recommender):
    vectors = recommender.model.item_vectors().detach().numpy()
    cosines = vectors @ vectors[5]
    expected = [KEYS[row] for row in np.argsort(-cosines) if row != 5][:7]
    assert ids(ask(client, "/similar", item_id="item-5", k=7)) == expected
    some = ask(client, "/similar", item_id="item-5", k=7, attributes={"genres": {"any_of": ["Drama"]}})
    assert ids(some) == [KEYS[row] for row in np.argsort(-cosines) if row % 4 == 2 and row != 5][:7]


def test_a_stored_history_is_answered_as_the_same_history_in_the_request(client):
    assert ask(client, "/events", user_id="ann", events=as_events(HISTORY)) == {"new": 3, "duplicates": 0}
    assert ask(client, "/events", user_id="ann", events=as_events(HISTORY)[1:]) == {"new": 0, "duplicates": 2}
    for route, more in (("/recommend", {"k": 40}), ("/rank", {"candidates": KEYS})):
        stored = ask(client, route, user_id="ann", request_time=5_000, **more)
        given = ask(client, route, history=HISTORY, request_time=5_000, **more)
        assert (stored.pop("history_from"), given.pop("history_from")) == ("store", "request")
        np.testing.assert_allclose(
            [item.pop("score") for item in stored["items"]], [item.pop("score") for item in given["items"]], atol=1e-5
        )
        assert stored == given


def test_an_event_that_arrives_changes_the_next_answer(client, engine):
    for n in range(1, 20):
        event = {"item_id": f"item-{n % 7}", "timestamp": 1_000 * n, "event_id": str(n)}
        ask(client, "/events", user_id="bob", events=[event])
        stored = ask(client, user_id="bob", request_time=10**6, k=5, exclude_seen=False)
        window = [(f"item-{m % 7}", 1_000 * m) for m in range(max(1, n - 5), n + 1)]  # six events, quarters of one
        expected = engine.recommender.recommend(window, 5, 10**6, exclude_seen=False)
        np.testing.assert_allclose(
            [item["score"] for item in stored["items"]], [item.score for item in expected.items], atol=1e-5
        )
    assert engine.states.counts.extended > 0


def test_what_the_user_saw_long_ago_is_excluded_too(client):
    history = [{"item_id": f"item-{n}", "timestamp": n, "event_id": str(n)} for n in range(30)]
    ask(client, "/events", user_id="cleo", events=history)
    answer = ask(client, user_id="cleo", k=40)
    assert sorted(ids(answer)) == sorted(KEYS[30:])
    assert answer["removed"] == {"seen": 30}


def test_a_user_without_events_gets_popular_items(client):
    answer = ask(client, user_id="nobody", k=3)
    assert (answer["source"], answer["history_from"]) == ("popular", "store")
    assert ids(answer) == ["item-2", "item-0", "item-1"]


def test_a_forgotten_user_is_as_one_never_seen(client, engine):
    ask(client, "/events", user_id="dora/1", events=as_events(HISTORY))
    ask(client, user_id="dora/1")
    response = client.delete("/users/dora%2F1")
    assert (response.status_code, response.json()) == (200, {"deleted": 3})
    assert len(engine.states) == 0
    assert ask(client, user_id="dora/1")["source"] == "popular"
    assert client.delete("/users/dora%2F1").json() == {"deleted": 0}


def test_the_cache_goes_on_after_somebody_is_forgotten_while_it_is_empty(client, engine):
    client.delete("/users/nobody")
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    for _ in range(3):
        ask(client, user_id="ann")
    assert (engine.states.counts.encoded, engine.states.counts.hits) == (1, 2)


def test_a_user_forgotten_through_another_process_leaves_the_cache_when_asked_for(client, engine):
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    ask(client, user_id="ann")
    engine.store.forget("ann")
    assert ask(client, user_id="ann")["source"] == "popular"
    assert len(engine.states) == 0


def test_a_stored_event_later_than_the_request_does_not_shut_the_user_out(client):
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    early, late = (ask(client, user_id="ann", request_time=when)["items"] for when in (5, 1_011))
    assert [item["item_id"] for item in early] == [item["item_id"] for item in late]
    assert [item["score"] for item in early] == pytest.approx([item["score"] for item in late], abs=1e-6)


def test_too_many_requests_at_once_get_429(engine):
    served = Served(engine, ModelFacts(**FACTS), {})
    client = TestClient(RequestGuard(build_app(lambda: served), most_at_once=0))
    response = client.post("/recommend", json={"history": []})
    assert (response.status_code, response.json()) == (429, {"error": "too many requests at once. Try again"})
    assert client.get("/").status_code == 200


def test_requests_compute_one_at_a_time(client, recommender, monkeypatch):
    score, working, most = recommender.score, [], []

    def slow_score(y_1D):
        working.append(1)
        most.append(len(working))
        time.sleep(0.01)
        working.pop()
        return score(y_1D)

    monkeypatch.setattr(recommender, "score", slow_score)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(client, history=HISTORY, request_time=5_000), range(8)))
    assert most == [1] * 8
    assert answers == [answers[0]] * 8


def test_whoever_waits_for_the_store_keeps_nobody_else_waiting(client, engine, monkeypatch):
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    read, is_reading, may_go_on = engine.store.read, threading.Event(), threading.Event()

    def slow_read(*args, **options):
        is_reading.set()
        assert may_go_on.wait(60)
        return read(*args, **options)

    monkeypatch.setattr(engine.store, "read", slow_read)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, client, user_id="ann", request_time=5_000)
        assert is_reading.wait(60)
        answer = ask(client, history=HISTORY, request_time=5_000)
        may_go_on.set()
        assert ids(waiting.result(60)) == ids(answer)


def test_metrics_hold_no_user_and_no_path_that_a_stranger_makes_up(engine):
    served = Served(engine, ModelFacts(**FACTS), {})
    app = build_app(lambda: served)
    client = TestClient(RequestWatch(app, routes=routes_of(app)))
    client.delete("/users/ann%40example.org")
    client.get("/made-up-path")
    client.request("MADEUP", "/recommend")
    text = client.get("/metrics").text
    assert 'route="/users/{user_id}"' in text
    assert not [word for word in ("ann@", "made-up-path", "MADEUP") if word in text]


def test_without_its_store_the_service_answers_from_the_request_and_says_so(recommender, tmp_path):
    (tmp_path / "histories.db").write_text("no database at all, and long enough to be taken for one" * 100)
    client = make_client(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}"))
    answer = ask(client, user_id="ann", history=HISTORY, request_time=5_000)
    assert answer["history_from"] == "request, store unreachable"
    assert answer["items"] == ask(client, history=HISTORY, request_time=5_000)["items"]
    alone = ask(client, user_id="ann")
    assert (alone["source"], alone["history_from"]) == ("popular", "nowhere, store unreachable")
    for response in (
        client.post("/events", json={"user_id": "ann", "events": as_events(HISTORY)}),
        client.delete("/users/ann"),
    ):
        assert response.status_code == 503
        assert response.json() == {"error": "the store of histories is out of reach: try again"}


def test_a_model_without_a_cache_serves_stored_histories_too(tmp_path):
    recommender = Recommender.load(write_checkpoint(tmp_path / "checkpoint", KEYS, model="sasrec"))
    client = make_client(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}"))
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    stored, given = ask(client, user_id="ann", k=40), ask(client, history=HISTORY, k=40)
    assert stored["items"] == given["items"]


def test_nothing_is_similar_to_an_item_that_the_model_does_not_know(client):
    response = client.post("/similar", json={"item_id": "elsewhere"})
    sentence = "item_id: the model does not know this item: observed 'elsewhere'"
    assert (response.status_code, response.json()) == (404, {"error": sentence})


def test_only_items_that_are_new_enough_come_back(client):
    answer = ask(client, history=HISTORY, k=40, first_seen_from=35)
    assert sorted(ids(answer)) == KEYS[35:]
    assert answer["removed"] == {"seen": 3, "first_seen": 32}


def test_info_says_what_is_served(client):
    info = client.get("/info").json()
    assert info["model"] == FACTS
    assert info["metrics"]["ndcg@10"]["value"] == 0.1
    assert (info["num_items"], info["max_len"], info["attributes"]) == (40, 6, ["genres"])
    assert (info["item_table"]["values"], info["item_table"]["cost"]) == ("float32", None)


def test_info_says_what_a_quantized_item_table_costs(recommender, tmp_path):
    cost = {"ndcg_difference": -0.005, "low": -0.008, "high": -0.003, "confidence": 0.95, "top_10_overlap": 0.8}
    cost |= {"num_users": 6_040, "num_targets": 6_040, "part": "valid"}
    table = {"values": "int4", "outlier_share": 0.002, "float32_bytes": 740_800, "bytes": 111_856, "cost": cost}
    engine = Engine(recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}")
    served = Served(engine, ModelFacts(**FACTS), {}, table)
    assert TestClient(build_app(lambda: served)).get("/info").json()["item_table"] == table


@pytest.mark.parametrize(
    ("route", "request_", "sentence"),
    [
        ("/recommend", {}, "the body: give a history or a user_id, observed {}"),
        ("/recommend", {"user_id": ""}, "user_id: String should have at least 1 character, observed ''"),
        ("/recommend", {"history": [], "caps": {"genre": 1}}, "items have no attribute of this name: observed 'genre'"),
        ("/recommend", {"history": [], "caps": {"genres": 0}}, "caps.genres: Input should be greater than or equal"),
        (
            "/recommend",
            {"history": [], "attributes": {"genres": {"any_of": ["comedy"]}}},
            "no item has this value of genres: observed 'comedy', expected one of 3, such as 'Comedy'",
        ),
        (
            "/recommend",
            {"history": [], "attributes": {"genres": {"anyof": ["Comedy"]}}},
            "attributes.genres.anyof: unknown key, allowed: any_of, none_of",
        ),
        ("/rank", {"history": [], "candidates": []}, "candidates: List should have at least 1 item"),
        ("/events", {"user_id": "a", "events": [HISTORY[0]]}, "events.0.event_id: Field required"),
        ("/recommend", {str(n): n for n in range(51)}, "the body: an object should have at most 50 keys"),
        ("/recommend", {"history": [], "x" * 10**6: 1}, "x" * 200 + ": unknown key"),
        (
            "/events",
            {"user_id": "a\nb", "events": []},
            "user_id: should be in one line, and neither . nor .., observed",
        ),
        ("/recommend_batch", {"requests": [{}]}, "requests.0: give a history or a user_id"),
    ],
)
def test_a_wrong_request_gets_400_and_one_sentence(client, route, request_, sentence):
    response = client.post(route, json=request_)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(sentence)


def test_a_path_that_is_none_and_a_method_that_is_none_say_so(client):
    assert (client.get("/recommendations").status_code, client.get("/recommend").status_code) == (404, 405)
    assert client.get("/recommend").headers["Allow"] == "POST"
    assert client.get("/recommend").json() == {"error": "GET is not for this path"}
    assert "docs.json" in client.get("/recommendations").json()["error"]


def test_a_request_has_an_id_in_its_answer_and_in_its_line_of_log(engine, caplog):
    served = Served(engine, ModelFacts(**FACTS), {})
    app = build_app(lambda: served)
    client = TestClient(RequestWatch(app, routes=routes_of(app)))
    with caplog.at_level(logging.INFO, "hstuflow"):
        own = client.delete("/users/ann%40example.org", headers={"X-Request-ID": "order-7"})
        made = client.get("/nowhere", headers={"X-Request-ID": "no {id}"})
    assert own.headers["X-Request-ID"] == "order-7"
    assert len(made.headers["X-Request-ID"]) == 32
    records = [record for record in caplog.records if record.name.startswith("hstuflow")]  # httpx may log, too
    first, second = (json.loads(JsonLines().format(record)) for record in records)
    assert (first["route"], first["method"], first["status"]) == ("/users/{user_id}", "DELETE", 200)
    assert (second["route"], second["status"]) == ("other", 404)
    assert "ann" not in json.dumps([first, second])


def test_what_happened_is_counted(client):
    def counts():
        metrics = ("hstuflow_answers_total", "hstuflow_history_items_total", "hstuflow_user_states_total")
        metrics += ("hstuflow_items_removed_total", "hstuflow_best_score_count")
        found = [s for metric in REGISTRY.collect() for s in metric.samples if s.name in metrics]
        return Counter({(s.name, *sorted(s.labels.values())): s.value for s in found})

    before = counts()
    ask(client, "/events", user_id="ann", events=as_events(HISTORY))
    for _ in range(2):
        ask(client, user_id="ann", attributes={"genres": {"none_of": ["Drama"]}})
    ask(client, history=[*HISTORY, {"item_id": "elsewhere", "timestamp": 2_000}])
    assert counts() - before == {
        ("hstuflow_answers_total", "/recommend", "model", "store"): 2,
        ("hstuflow_answers_total", "/recommend", "model", "request"): 1,
        ("hstuflow_history_items_total", "yes"): 9,
        ("hstuflow_history_items_total", "no"): 1,
        ("hstuflow_user_states_total", "encoded"): 1,
        ("hstuflow_user_states_total", "hits"): 1,
        ("hstuflow_items_removed_total", "seen"): 9,
        ("hstuflow_items_removed_total", "attributes.genres"): 20,
        ("hstuflow_best_score_count",): 3,
    }


def test_with_a_token_only_who_has_it_is_answered(engine):
    client = make_client(engine, token="s3cret")  # noqa: S106 - of this test
    for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
        response = client.get("/info", headers=headers)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert list(response.json()) == ["error"]
    assert client.get("/info", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_a_failure_of_ours_shows_no_trace(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "look", lambda *_: 1 / 0)
    response = client.post("/recommend", json={"history": []})
    assert (response.status_code, response.json()) == (500, {"error": "the service failed; its log says why"})


def test_half_of_a_surrogate_pair_is_refused_in_every_id(client):
    event = {"item_id": "\ud800", "timestamp": 1}
    for route, request in (
        ("/recommend", {"history": [event]}),
        ("/recommend", {"history": [], "exclude": ["\ud800"]}),
        ("/rank", {"history": [], "candidates": ["\ud800"]}),
        ("/explain", {"history": [], "item_ids": ["\ud800"]}),
        ("/events", {"user_id": "a", "events": [event | {"event_id": "\ud800"}]}),
        ("/events", {"user_id": "\ud800", "events": [event | {"event_id": "1"}]}),
    ):
        headers = {"Content-Type": "application/json"}
        response = client.post(route, content=json.dumps(request), headers=headers)
        assert response.status_code == 400, (route, response.text)


def test_an_answer_is_json_whatever_the_request_held(client):
    for body in (b'{"history": [], "k": NaN}', b'{"history": [], "k": Infinity}', b'{"history": [], "k": 1e999}'):
        response = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert json.loads(response.content)["error"].startswith("k: ")


def test_a_path_that_is_no_utf_8_is_refused_and_forgets_nobody(client):
    ask(client, "/events", user_id="\ufffd", events=as_events(HISTORY))
    response = client.delete("/users/%ff")
    sentence = "the path is no text: observed '/users/%ff', expected percent-encoded UTF-8"
    assert (response.status_code, response.json()) == (400, {"error": sentence})
    assert client.delete("/users/%EF%BF%BD").json() == {"deleted": 3}
