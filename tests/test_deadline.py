"""A request that takes too long: 504 with one sentence and its id; what it began is finished all the same."""

import asyncio
import json
import logging
import threading
import time

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from components.serving.deadline import RequestDeadline
from components.serving.guard import RequestGuard
from components.serving.turn import MUST_END, TooLongError, Turn
from components.serving.watching import JsonLines, RequestWatch

SHORT = 0.05


class Work:
    """A route that waits until it is let go."""

    def __init__(self):
        self.may_end, self.has_ended = threading.Event(), threading.Event()

    def __call__(self):
        self.may_end.wait()
        self.has_ended.set()


def make_client(app, seconds=SHORT):
    return TestClient(RequestWatch(RequestDeadline(app, seconds)), raise_server_exceptions=False)


def test_a_request_that_takes_too_long_gets_504_and_its_id_and_its_thread_goes_on(caplog):
    app, work = FastAPI(), Work()
    app.get("/slow")(work)
    with caplog.at_level(logging.INFO, "hstuflow"), make_client(app) as client:
        response = client.get("/slow", headers={"X-Request-ID": "late-1"})
        assert not work.has_ended.is_set()
        work.may_end.set()
        work.has_ended.wait()
    sentence = "the request took too long: expected 0.05 s at most. Try again"
    assert (response.status_code, response.json()) == (504, {"error": sentence})
    assert response.headers["X-Request-ID"] == "late-1"
    [line] = [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == "hstuflow.requests"]
    assert line["status"] == 504


def test_what_got_504_counts_among_the_requests_at_once_until_its_thread_ends():
    app, work = FastAPI(), Work()
    app.get("/slow")(work)
    with TestClient(RequestDeadline(RequestGuard(app, most_at_once=2), SHORT)) as client:
        assert [client.get("/slow").status_code for _ in range(4)] == [504, 504, 429, 429]
        work.may_end.set()
        while (status := client.get("/slow").status_code) != 200:
            assert status in (429, 504)  # 504: a thread that began late


def test_what_fails_after_its_504_is_nobody_s_error(caplog):
    app, work = FastAPI(), Work()

    @app.get("/slow")
    def fail():
        work()
        raise ValueError("too late to matter")

    guard = RequestGuard(app)
    with TestClient(RequestDeadline(guard, SHORT)) as client:
        assert client.get("/slow").status_code == 504
        work.may_end.set()
        while guard._in_flight:
            client.get("/elsewhere")
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_turn_that_comes_after_the_request_s_end_is_passed_on(monkeypatch):
    turn = Turn()
    with turn:
        pass
    token = MUST_END.set(time.monotonic() - 1)
    try:
        for _ in range(2):  # a lock that was kept would stop the second
            with pytest.raises(TooLongError, match=r"took too long\. Try again"), turn:
                pytest.fail("computed all the same")
    finally:
        MUST_END.reset(token)


def test_a_request_that_waits_for_its_turn_beyond_its_end_does_not_compute():
    app, turn, computed = FastAPI(), Turn(), []

    @app.get("/compute")
    def compute():
        with turn:
            computed.append(1)

    guard = RequestGuard(app)
    with TestClient(RequestDeadline(guard, SHORT)) as client:
        with turn:
            assert [client.get("/compute").status_code for _ in range(3)] == [504] * 3
        while guard._in_flight:
            client.get("/elsewhere")
        assert computed == []
        while client.get("/compute").status_code != 200:  # 504: a thread that began late
            pass
    assert computed


def test_a_body_that_never_ends_gets_504_too():
    async def read_for_ever(_scope, receive, _send):
        while True:
            await receive()

    sent = ask(RequestDeadline(read_for_ever, SHORT), receive=lambda: asyncio.sleep(3_600))
    assert sent[0]["status"] == 504


def test_an_answer_that_has_begun_is_not_cut_off():
    async def answer_slowly(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(3 * SHORT)
        await send({"type": "http.response.body", "body": b"all of it"})

    assert [message.get("body") for message in ask(RequestDeadline(answer_slowly, SHORT))] == [None, b"all of it"]


def test_a_time_limit_of_somebody_else_is_not_taken_for_this_one():
    async def fail(*_):
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        ask(RequestDeadline(fail, 60))


def ask(app, receive=None):
    """Return the messages that an application sends for one request."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    return sent
