"""Whatever comes in, each answer is JSON of the service's own: never 5xx, and a refusal is one sentence."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import SCHEMAS, Served, build_app
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.watching import RequestWatch

KEYS = [f"item-{number}" for number in range(12)]
FACTS = dict.fromkeys(("bento", "tag", "name", "protocol", "verdict", "data_hash", "git_commit"), "x")
ROUTES = sorted(route for route in SCHEMAS if route != "/items")
JSON = {"Content-Type": "application/json"}

odd = st.sampled_from(
    [
        -0.0,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        2**53,
        2**63,
        -(2**64),
        10**400,
        0,
        True,
        "\ud800",
        "\0",
        "item-1",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
events = st.fixed_dictionaries(
    {"item_id": odd | values, "timestamp": odd | values}, optional={"event_id": odd | values, "x": values}
)
right = {
    "user_id": st.just("ann"),
    "history": st.lists(events, max_size=3),
    "events": st.lists(events, max_size=3),
    "candidates": st.lists(odd, max_size=3),
    "item_ids": st.lists(odd, max_size=3),
    "requests": st.lists(st.fixed_dictionaries({"history": st.lists(events, max_size=2)}), max_size=2),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    genres = ["Action|Comedy", None] * 6
    recommender = Recommender.load(write_checkpoint(folder / "checkpoint", KEYS, genres=genres))
    engine = Engine(recommender, store_url=f"sqlite:///{folder / 'histories.db'}")
    served = Served(engine, ModelFacts(**FACTS), {})
    app = RequestWatch(RequestGuard(build_app(lambda: served)))
    yield TestClient(app, raise_server_exceptions=False)
    engine.close()


def check(response, context=None):
    assert response.status_code < 500, (context, response.text)
    answer = json.loads(response.content, parse_constant=pytest.fail)
    if response.status_code >= 400:
        assert list(answer) == ["error"], (context, answer)
        assert len(answer["error"].splitlines()) == 1, (context, answer)
    return response.status_code


def requests_of(route):
    """Objects with the keys of a route, each right by half or anything at all."""
    keys = {name: right.get(name, odd) | values for name in SCHEMAS[route].model_fields}
    return st.fixed_dictionaries({}, optional=keys) | values


@pytest.mark.parametrize("route", ROUTES)
def test_wrong_types_in_any_place_are_answered_or_refused_in_one_sentence(client, route):
    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(requests_of(route))
    def run(request):
        check(client.post(route, content=json.dumps(request), headers=JSON), request)

    run()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"1" * 5_000,
        b'{"history": [{"item_id": 1' + b"0" * 5_000 + b', "timestamp": 1}]}',
        b'{"user_id": "ann", "history": [{"item_id": "item-1", "timest',
        b'{"user_id": "ann"} and more',
        b"\xef\xbb\xbf{}",
        '{"user_id": 7}'.encode("utf-16"),
        '{"user_id": "ann", "history": []}'.encode("utf-16"),
        '{"user_id": "ann", "history": []}'.encode("utf-32-le"),
        gzip.compress(b'{"user_id": "ann", "history": []}'),
        b'{"user_id": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"attributes": ' + b'{"a": ' * 5_000 + b"1" + b"}" * 5_001,
    ],
    ids=[
        "empty",
        "a space",
        "null",
        "a number of 5,000 digits",
        "an item id of 5,000 digits",
        "cut off",
        "more after it",
        "a byte order mark",
        "UTF-16, wrong type",
        "UTF-16, else right",
        "UTF-32, else right",
        "gzip",
        "lists 500 deep",
        "objects 5,000 deep",
    ],
)
def test_a_body_that_is_no_request_is_refused(client, route, body):
    assert check(client.post(route, content=body, headers=JSON)) == 400


def test_a_compressed_body_is_refused_though_it_says_so(client):
    body = gzip.compress(b'{"user_id": "ann", "history": []}')
    headers = JSON | {"Content-Encoding": "gzip"}
    assert check(client.post("/recommend", content=body, headers=headers)) == 400


def test_a_key_with_a_line_break_is_named_in_one_line(client):
    for key, shown in (("a\nb", "a\\nb"), ("\u2028", "\\u2028"), ("Größe", "Größe")):
        response = client.post("/similar", content=json.dumps({"item_id": "item-1", key: 1}), headers=JSON)
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"{shown}: unknown key")


def test_of_a_key_that_comes_twice_the_last_counts(client):
    body = b'{"history": [], "k": 5, "k": 2}'
    assert len(client.post("/recommend", content=body, headers=JSON).json()["items"]) == 2


def test_minus_zero_is_zero_and_a_boolean_is_no_number(client):
    def post(route, **request):
        return client.post(route, content=json.dumps(request), headers=JSON)

    assert post("/recommend", history=[{"item_id": "item-1", "timestamp": -0.0}]).status_code == 200
    for request in (
        {"history": [{"item_id": True, "timestamp": 1}]},
        {"history": [{"item_id": "item-1", "timestamp": False}]},
        {"history": [], "k": True},
        {"history": [], "exclude": [False]},
    ):
        assert check(post("/recommend", **request), request) == 400


def test_candidates_named_twice_are_scored_twice_and_an_event_twice_counts_once(client):
    request = {"history": [{"item_id": "item-1", "timestamp": 1}], "candidates": ["item-2", "item-2", "item-3"]}
    found = client.post("/rank", json=request)
    assert check(found) in (200, 400)
    if found.status_code == 200:
        assert sorted(item["item_id"] for item in found.json()["items"]) == ["item-2", "item-2", "item-3"]
    event = {"event_id": "e", "item_id": "item-1", "timestamp": 1}
    answer = client.post("/events", json={"user_id": "twice", "events": [event, event]}).json()
    assert answer == {"new": 1, "duplicates": 1}


def test_k_beyond_the_catalogue_gives_the_whole_of_it_and_k_0_is_refused(client):
    assert len(client.post("/recommend", json={"history": [], "k": 1_000}).json()["items"]) == len(KEYS)
    for k in (0, -1, 1_001, 10**30):
        assert check(client.post("/recommend", json={"history": [], "k": k})) == 400


def test_events_out_of_order_and_of_the_future_are_put_in_order(client):
    history = [{"item_id": f"item-{n}", "timestamp": t} for n, t in ((1, 50), (2, 4_000_000_000), (3, 10))]
    answers = [
        client.post("/recommend", json={"history": order, "request_time": 4_000_000_001}).json()
        for order in (history, history[::-1])
    ]
    assert answers[0]["items"] == answers[1]["items"]
    assert check(client.post("/recommend", json={"history": history})) == 200  # now is before the last event


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "MADEUP"])
@pytest.mark.parametrize("route", ["/recommend", "/users/ann", "/info", "/nowhere"])
def test_another_method_is_refused(client, route, method):
    response = client.request(method, route, headers=JSON)
    assert response.status_code in (404, 405)
    if method != "HEAD":
        check(response)
