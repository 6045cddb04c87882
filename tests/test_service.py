"""A packaged, promoted model behind a real `bentoml serve`, asked over HTTP: good requests, all kinds of bad ones."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import psutil
import pytest
from made_challenges import write_challenge
from made_checkpoints import write_judged
from made_items import GENRES, structure
from made_ports import free_port
from made_services import await_lines, await_metric, stop, wait_until_ready

from components import packaging, registry
from components.recommender import Recommender
from components.settings import PackageSettings

KEYS = [f"item-{number}" for number in range(40)]
HISTORY = [{"item_id": f"item-{number}", "timestamp": 1_000 + number} for number in (7, 3, 11)]
KEYS_OF_A_REQUEST = "history, user_id, request_time, exclude, allow, attributes, caps, first_seen_from, k, exclude_seen"
EVENTS = [(event["item_id"], event["timestamp"]) for event in HISTORY]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace whose model was packaged and promoted into the store root/bentoml."""
    root = tmp_path_factory.mktemp("service")
    structure(write_judged(root, KEYS, verdict="inconclusive", genres=GENRES[: len(KEYS)]), len(KEYS))
    folders = {"artifacts": root / "artifacts", "reports": root / "reports"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(root / "bentoml"))
        for commit in ("a" * 40, "b" * 40):  # the store keeps the first one's model, of the same weights
            patch.setattr(packaging, "find_commit", lambda commit=commit: packaging.Commit(commit, 1_760_000_000))
            packaging.package(PackageSettings(model="hstu", name="hstuflow"), **folders)
            write_challenge(root)
            registry.promote(**folders, registry=root / "registry")
    return root


@pytest.fixture(scope="module")
def client(served):
    """An HTTP client of the server."""
    return served[0]


@pytest.fixture(scope="module")
def served(root, tmp_path_factory):
    """An HTTP client of `bentoml serve hstuflow:latest`, started in an unrelated folder; and that process."""
    port = free_port()
    environment = os.environ | {"BENTOML_HOME": str(root / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    environment["HSTUFLOW_HISTORIES"] = f"sqlite:///{root / 'histories.db'}"
    command = [sys.executable, "-m", "bentoml", "serve", "hstuflow:latest", "--host", "127.0.0.1", "--port", str(port)]
    with (root / "server.log").open("w") as log:
        folder = tmp_path_factory.mktemp("unrelated")
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_ready(client, server, root / "server.log")
                yield client, server
        finally:
            stop(server)


def ask(client, **request):
    response = client.post("/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def offline(root):
    return Recommender.load(root / "artifacts" / "checkpoints" / "time_split" / "hstu")


@pytest.mark.parametrize(
    "options",
    [
        {"k": 5},
        {"k": 10, "request_time": 90_000},
        {"k": 1_000},  # more than the catalogue holds
        {"k": 40, "exclude_seen": False, "request_time": 1_011},
        {"k": 4, "exclude": ["item-1", "item-2", "elsewhere"], "request_time": 2_000},
    ],
)
def test_served_top_k_equals_offline_top_k(client, offline, options):
    served = ask(client, history=HISTORY, **{"request_time": 5_000, **options})
    expected = offline.recommend(EVENTS, **{"request_time": 5_000, **options})
    assert [item["item_id"] for item in served["items"]] == [item.item_id for item in expected.items]
    assert [item["title"] for item in served["items"]] == [item.title for item in expected.items]
    scores = [item["score"] for item in served["items"]]
    np.testing.assert_allclose(scores, [item.score for item in expected.items], atol=1e-6)
    assert served["unknown_items"] == list(expected.unknown_items)
    assert served["source"] == "model"


def test_without_request_time_the_request_is_now(client, offline):
    served = ask(client, history=HISTORY, k=3)
    expected = offline.recommend(EVENTS, 3, int(time.time()))  # a bucket of time is decades wide by now
    np.testing.assert_allclose(
        [item["score"] for item in served["items"]], [item.score for item in expected.items], atol=1e-6
    )


def test_a_client_whose_clock_runs_ahead_is_served(client):
    ahead = int(time.time()) + 3_600
    assert ask(client, history=[{"item_id": "item-1", "timestamp": ahead}])["source"] == "model"


def test_an_answer_names_code_model_verdict_and_data_as_package_and_champion_do(client, root):
    packaged = json.loads((root / "artifacts" / "package.json").read_text())
    champion = json.loads((root / "registry" / "champion.json").read_text())
    assert champion["previous"] is not None
    assert (champion["tag"], champion["git_commit"]) == (packaged["tag"], packaged["git_commit"])
    assert packaged["git_commit"] == "b" * 40
    assert ask(client, history=HISTORY)["model"] == {
        "bento": packaged["tag"],
        "tag": packaged["model_tag"],
        "name": "hstu",
        "protocol": "time_split",
        "verdict": "inconclusive",
        "data_hash": packaged["data_hash"],
        "git_commit": packaged["git_commit"],
    }


@pytest.mark.parametrize("history", [[], [{"item_id": "elsewhere", "timestamp": 5}, {"item_id": 7, "timestamp": 6}]])
def test_a_history_without_known_items_gets_popular_items_marked_as_such(client, history):
    answer = ask(client, history=history, k=3)
    assert answer["source"] == "popular"
    assert answer["items"] == [
        {"item_id": "item-2", "score": None, "title": "The item-2"},
        {"item_id": "item-0", "score": None, "title": "The item-0"},
        {"item_id": "item-1", "score": None, "title": "The item-1"},
    ]
    assert answer["unknown_items"] == [event["item_id"] for event in history]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"histroy": []}, f"histroy: unknown key, allowed: {KEYS_OF_A_REQUEST}"),
        ({"history": {}}, "history: Input should be a valid list, observed {}"),
        ({"history": [{"item_id": "a"}]}, "history.0.timestamp: Field required"),
        (
            {"history": [{"item_id": "a", "timestamp": 1, "rating": 5}]},
            "history.0.rating: unknown key, allowed: item_id, timestamp",
        ),
        (
            {"history": [{"item_id": True, "timestamp": 1}]},
            "history.0.item_id: Input should be an integer or a string, of 1 to 256 Unicode characters, observed True",
        ),
        (
            {"history": [{"item_id": "a", "timestamp": 1.5}]},
            "history.0.timestamp: should be seconds since 1970 as an integer, not milliseconds, observed 1.5",
        ),
        (
            {"history": [{"item_id": "a", "timestamp": "1"}]},
            "history.0.timestamp: should be seconds since 1970 as an integer, not milliseconds, observed '1'",
        ),
        (
            {"history": [{"item_id": "a", "timestamp": True}]},
            "history.0.timestamp: should be seconds since 1970 as an integer, not milliseconds, observed True",
        ),
        (
            {"history": [{"item_id": "a", "timestamp": -1}]},
            "history.0.timestamp: should be seconds since 1970 as an integer, not milliseconds, observed -1",
        ),
        (
            {"history": [{"item_id": "a", "timestamp": 1_700_000_000_000}]},
            "history.0.timestamp: should be seconds since 1970 as an integer, not milliseconds, observed 1700000000000",
        ),
        (
            {"request_time": 1_700_000_000_000},
            "request_time: should be seconds since 1970 as an integer, not milliseconds, observed 1700000000000",
        ),
        ({"k": 0}, "k: Input should be greater than or equal to 1, observed 0"),
        ({"k": 1_001}, "k: Input should be less than or equal to 1000, observed 1001"),
        ({"k": "5"}, "k: Input should be a valid integer, observed '5'"),
        ({"k": None}, "k: Input should be a valid integer, observed None"),
        ({"exclude_seen": 1}, "exclude_seen: Input should be a valid boolean, observed 1"),
        (
            {"exclude": [1.5]},
            "exclude.0: Input should be an integer or a string, of 1 to 256 Unicode characters, observed 1.5",
        ),
        (
            {"request_time": 1.5},
            "request_time: should be seconds since 1970 as an integer, not milliseconds, observed 1.5",
        ),
        (
            {"request_time": 1_010},
            "request_time lies before the last event of the history: observed 1010, expected 1011 or later."
            " Leave later events out, or ask for a later time",
        ),
    ],
)
def test_a_request_that_the_schema_refuses_gets_400_and_one_sentence(client, change, sentence):
    response = client.post("/recommend", json={"history": HISTORY} | change)
    assert (response.status_code, response.json()) == (400, {"error": sentence})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{}", "the body: give a history or a user_id"),
        (b"", "the body: Field required"),
        (b"{", "the body: is no JSON: Expecting property name"),
        (b"[]", "the body: Input should be a valid dictionary"),
        (b"\xff\xfe", "the body: is no JSON"),
        (b'{"history": [], "k": NaN}', "k: Input should be a valid integer"),
        (
            b'{"history": [{"item_id": "a", "timestamp": NaN}]}',
            "history.0.timestamp: should be seconds since 1970 as an integer",
        ),
        (b"[" * 100_000, "There was an error parsing the body"),
    ],
)
def test_a_body_that_is_not_the_right_json_gets_400_and_one_sentence(client, body, sentence):
    response = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(("key", "entry"), [("history", {"item_id": 1, "timestamp": 1}), ("exclude", 1)])
def test_too_many_events_or_exclusions_get_400(client, key, entry):
    response = client.post("/recommend", json={"history": []} | {key: [entry] * 10_001})
    assert response.status_code == 400
    assert response.json() == {"error": f"{key}: should have at most 10,000 entries, observed 10,001"}


def test_the_largest_allowed_request_is_served(client):
    history = [{"item_id": f"item-{i % 40}", "timestamp": 1_700_000_000 + i} for i in range(10_000)]
    answer = ask(client, history=history, exclude=["x" * 20] * 10_000, k=1_000, exclude_seen=False)
    assert len(answer["items"]) == 40


def test_a_body_over_four_megabytes_gets_413(client):
    declared = client.post("/recommend", json={"history": [], "exclude": ["x" * 4_200_000]})
    chunked = client.post(
        "/recommend",
        content=(b" " * 100_000 for _ in range(100)),
        headers={"Content-Type": "application/json"},
    )
    for response in (declared, chunked):
        assert response.status_code == 413
        assert response.json() == {"error": "the body is too long: expected at most 4,194,304 bytes"}


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"])
def test_a_body_that_is_not_declared_as_json_gets_415(client, media_type):
    body = json.dumps({"history": HISTORY}).encode()
    response = client.post("/recommend", content=body, headers={"Content-Type": media_type})
    expected = f"Content-Type is wrong: observed {media_type}, expected application/json"
    assert (response.status_code, response.json()) == (415, {"error": expected})


def test_json_may_be_declared_with_its_charset(client):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = client.post("/recommend", content=json.dumps({"history": HISTORY}), headers=headers)
    assert response.status_code == 200


def test_liveness_readiness_metrics_and_the_document_are_served(client):
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    ask(client, history=HISTORY)
    await_metric(client, 'hstuflow_requests_total{method="POST",route="/recommend",status="200"}')
    document = client.get("/docs.json").json()
    assert {"/recommend", "/rank", "/similar", "/events", "/users/{user_id}"} <= set(document["paths"])


def test_events_are_kept_and_a_user_is_forgotten(client, root):
    events = [event | {"event_id": str(number)} for number, event in enumerate(HISTORY)]
    assert client.post("/events", json={"user_id": "ann", "events": events}).json() == {"new": 3, "duplicates": 0}
    stored = ask(client, user_id="ann", request_time=5_000, k=40)
    given = ask(client, history=HISTORY, request_time=5_000, k=40)
    assert [item["item_id"] for item in stored["items"]] == [item["item_id"] for item in given["items"]]
    assert stored["history_from"] == "store"
    assert (root / "histories.db").exists()
    assert client.delete("/users/ann").json() == {"deleted": 3}
    assert ask(client, user_id="ann")["source"] == "popular"


def test_a_request_is_one_line_of_json_in_the_log(client, root):
    client.get("/info", headers={"X-Request-ID": "look-for-me"})
    (line,) = await_lines(root / "server.log", "look-for-me")
    assert json.loads(line)["route"] == "/info"
    client.delete("/users/somebody-in-particular", headers={"X-Request-ID": "forget-somebody"})
    (line,) = await_lines(root / "server.log", "forget-somebody")
    assert json.loads(line)["route"] == "/users/{user_id}"
    assert "somebody-in-particular" not in (root / "server.log").read_text() + client.get("/metrics").text


def test_the_service_says_what_it_is(client):
    info = client.get("/info").json()
    assert (info["num_items"], info["metrics"]["ndcg@10"]["value"]) == (40, 0.1141)


def test_a_killed_worker_comes_back_and_has_lost_nothing_that_it_acknowledged(served, root):
    client, server = served
    acknowledged = []
    item = {"item_id": "fresh", "title": "The newest item", "attributes": {"genres": ["Comedy"]}}
    inserted = client.post("/items", json={"items": [item]})
    assert (inserted.status_code, inserted.json()["new"]) == (200, 1), inserted.text

    def append(number):
        event = {"event_id": f"{number}", "item_id": f"item-{number % 40}", "timestamp": number}
        answer = client.post("/events", json={"user_id": "kim", "events": [event]})
        assert answer.status_code == 200, answer.text
        acknowledged.append(number)

    for number in range(20):
        append(number)
    (worker,) = [p for p in psutil.Process(server.pid).children(recursive=True) if "worker" in " ".join(p.cmdline())]
    worker.kill()
    with contextlib.suppress(httpx.TransportError):
        for number in range(20, 40):
            append(number)
    wait_until_ready(client, server, root / "server.log")
    assert len(acknowledged) >= 20
    assert client.delete("/users/kim").json()["deleted"] >= len(acknowledged)
    assert [item["item_id"] for item in ask(client, history=HISTORY, k=100)["items"] if item.get("new")] == ["fresh"]
    assert client.delete("/items/fresh").json() == {"withdrawn": 1}


def test_a_request_that_is_cut_off_changes_nothing(served):
    client, _ = served
    event = {"event_id": "half", "item_id": "item-1", "timestamp": 1}
    body = json.dumps({"user_id": "cut", "events": [event]}).encode()
    head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for sent in (head.encode() + body[:-1], head.encode(), head.encode()[:40]):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(sent)
    assert ask(client, user_id="cut")["source"] == "popular"
    assert client.delete("/users/cut").json() == {"deleted": 0}


def cut_short(model):
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_short, "the service does not start: .*weights.safetensors: does not fit the model"),
        (shutil.rmtree, "Model hstuflow:.* could not be found"),  # BentoML's own words, before ours are loaded
    ],
)
def test_a_service_whose_model_is_damaged_or_gone_does_not_start_and_says_why(root, tmp_path, damage, sentence):
    shutil.copytree(root / "bentoml", tmp_path / "bentoml", symlinks=True)
    for weights in list((tmp_path / "bentoml").glob("models/hstuflow/*/weights.safetensors")):
        damage(weights.parent)
    environment = os.environ | {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "hstuflow:latest", "--port", str(free_port())]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
