"""A request that takes too long: 504 with one sentence and its id; what it began is finished all the same."""

import asyncio
import json
import logging
import threading

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from components.serving.deadline import RequestDeadline
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
