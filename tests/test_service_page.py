"""The files of the page at / and the two routes that it asks, in this process."""

import re

import pytest
from made_checkpoints import write_checkpoint
from made_titles import FACTS, HISTORY, KEYS, TITLES, TOKEN, explain, make_app, open_titles
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving.engine import Engine
from components.serving.pages import PAGE_FILES, TitleFinder


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with open_titles(tmp_path_factory.mktemp("page")) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    return TestClient(make_app(engine), raise_server_exceptions=False)


def titles(client, **query):
    response = client.get("/items", params=query)
    assert response.status_code == 200, response.text
    return [item["title"] for item in response.json()["items"]]


# GET /items


def test_titles_that_hold_all_words_come_back_those_that_begin_with_them_first(client):
    assert titles(client, query="wars") == ["Wars of the Stars", "Wars", "Star Wars (1977)"]
    assert titles(client, query="WARS  star") == ["Star Wars (1977)", "Wars of the Stars"]
    assert titles(client, query="star wars") == ["Star Wars (1977)", "Wars of the Stars"]
    assert titles(client, query="wars heat") == []


def test_case_accents_and_spaces_do_not_matter(client):
    for query in ("amelie", "AMÉLIE", "Ame\u0301lie", " amelie  (2001) "):
        assert titles(client, query=query) == ["Amélie (2001)"]
    assert titles(client, query="fargo (1996)") == ["Fargo  (1996)"]


def test_without_words_the_popular_titles_come_back(client):
    assert titles(client, limit=3) == TITLES[:3]
    assert titles(client, query="  ", limit=3) == TITLES[:3]
    assert titles(client) == TITLES[:20]
    assert titles(client, limit=100) == TITLES


def test_values_of_attributes_come_only_when_asked_for(client):
    assert client.get("/items").json().keys() == {"items"}
    answer = client.get("/items", params={"with_attributes": "true", "limit": 1}).json()
    assert answer["attributes"] == {"genres": ["Action", "Comedy", "Drama"]}


def test_of_an_attribute_with_many_values_the_commonest_come_back(tmp_path):
    genres = ["zebra|common"] * 20 + [f"rare {number:03}" for number in range(200)] + ["zebra"] * 20
    keys = [str(number) for number in range(240)]
    catalogue = Recommender.load(write_checkpoint(tmp_path / "checkpoint", keys, genres=genres)).catalogue
    values = TitleFinder(catalogue).values["genres"]
    assert values == ["common", *(f"rare {number:03}" for number in range(98)), "zebra"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"limit": 0}, "query.limit: Input should be greater than or equal to 1"),
        ({"limit": 101}, "query.limit: Input should be less than or equal to 100"),
        ({"limit": "many"}, "query.limit: Input should be a valid integer"),
        ({"query": "x" * 201}, "query.query: String should have at most 200 characters"),
        ({"words": "x"}, "query.words: unknown key"),
    ],
)
def test_a_wrong_search_gets_400_and_one_sentence(client, query, sentence):
    response = client.get("/items", params=query)
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)


# POST /explain


def test_explained_scores_are_those_of_rank_in_the_order_asked(client):
    asked = ["item:9", "elsewhere", "item:5"]
    answer = explain(client, history=HISTORY, request_time=5_000, item_ids=asked)
    ranked = client.post("/rank", json={"history": HISTORY, "request_time": 5_000, "candidates": asked}).json()
    scores = {item["item_id"]: item["score"] for item in ranked["items"]}
    assert [item["item_id"] for item in answer["items"]] == asked
    for item in answer["items"]:
        assert item["score"] == (None if item["item_id"] == "elsewhere" else pytest.approx(scores[item["item_id"]]))
    assert answer["items"][1]["reasons"] == []
    assert (answer["unknown_items"], answer["source"], answer["history_from"]) == (["elsewhere"], "model", "request")
    assert answer["model"] == FACTS


def test_a_reason_is_the_score_with_an_event_minus_the_score_without_it(client):
    (item,) = explain(client, history=HISTORY, request_time=5_000, item_ids=["item:9"])["items"]
    assert {reason["item_id"] for reason in item["reasons"]} == {"item:3", "item:7", "item:11"}
    effects = [abs(reason["effect"]) for reason in item["reasons"]]
    assert effects == sorted(effects, reverse=True)
    for reason in item["reasons"]:
        kept = [event for event in HISTORY if event["item_id"] != reason["item_id"]]
        without = client.post("/rank", json={"history": kept, "request_time": 5_000, "candidates": ["item:9"]}).json()
        assert reason["effect"] == pytest.approx(item["score"] - without["items"][0]["score"], abs=1e-6)
        assert reason["title"] == TITLES[KEYS.index(reason["item_id"])]


def test_a_stored_history_is_explained_as_it_is_served(client):
    events = [{"item_id": KEYS[n % 9], "timestamp": 1_000 * n, "event_id": str(n)} for n in range(1, 20)]
    client.post("/events", json={"user_id": "ann", "events": events})
    for request_time in (10**6, None):
        asked = {"user_id": "ann", "request_time": request_time}
        answer = explain(client, **asked, item_ids=KEYS[:20])
        served = client.post("/rank", json=asked | {"candidates": KEYS[:20]}).json()
        scores = {item["item_id"]: item["score"] for item in served["items"]}
        assert answer["history_from"] == "store"
        for item in answer["items"]:
            assert item["score"] == pytest.approx(scores[item["item_id"]], abs=1e-5)


def test_without_its_store_the_history_of_the_request_is_explained(engine, tmp_path):
    (tmp_path / "histories.db").write_text("no database at all, and long enough to be taken for one" * 100)
    client = TestClient(make_app(Engine(engine.recommender, store_url=f"sqlite:///{tmp_path / 'histories.db'}")))
    answer = explain(client, user_id="ann", history=HISTORY, request_time=5_000, item_ids=["item:9"])
    assert answer["history_from"] == "request, store unreachable"
    assert answer["items"] == explain(client, history=HISTORY, request_time=5_000, item_ids=["item:9"])["items"]
    nothing = explain(client, user_id="ann", item_ids=["item:9"])
    assert (nothing["source"], nothing["history_from"]) == ("none", "nowhere, store unreachable")


def test_without_a_known_event_nothing_is_explained(client):
    answer = explain(client, history=[{"item_id": "elsewhere", "timestamp": 5}], item_ids=["item:9"])
    assert answer["items"] == [{"item_id": "item:9", "score": None, "reasons": []}]
    assert (answer["source"], answer["unknown_items"]) == ("none", ["elsewhere"])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"history": HISTORY, "item_ids": []}, "item_ids: List should have at least 1 item"),
        ({"history": HISTORY, "item_ids": KEYS[:21]}, "item_ids: should have at most 20 entries, observed 21"),
        ({"item_ids": ["item:9"]}, "the body: give a history or a user_id"),
        ({"history": HISTORY, "request_time": 5, "item_ids": ["item:9"]}, "request_time lies before the last event"),
    ],
)
def test_what_cannot_be_explained_gets_400_and_one_sentence(client, request_, sentence):
    response = client.post("/explain", json=request_)
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)


# The files of the page


@pytest.mark.parametrize(("path", "media_type"), [(path, file[1]) for path, file in PAGE_FILES.items()])
def test_the_page_loads_without_a_token_and_lets_nothing_in_from_elsewhere(engine, path, media_type):
    client = TestClient(make_app(engine, token=TOKEN))
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"].split(";")[0] == media_type
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", response.text)
    assert client.post(path, json={}).status_code == 405


def test_every_file_of_the_page_is_served_and_what_it_asks_is_not_open(engine):
    from components.serving.pages import _FOLDER

    assert {file.name for file in _FOLDER.iterdir()} == {name for name, _ in PAGE_FILES.values()}
    client = TestClient(make_app(engine, token=TOKEN))
    assert (client.get("/items").status_code, client.post("/explain", json={}).status_code) == (401, 401)
