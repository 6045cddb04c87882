"""The host's clock is set back, or was years ahead: what a client was told stays true, and nothing fails.

Every look at the clock goes through `time.time`, which is replaced here; what is timed is timed by monotonic clocks.
"""

import ast
import asyncio
import datetime as dt
import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from made_items import load_with_map
from starlette.testclient import TestClient

import components
from components.drift.requests import read_requests
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.deadline import RequestDeadline
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.request_log import RequestLog, read_rows
from components.serving.watching import RequestWatch

FACTS = dict.fromkeys(("bento", "name", "protocol", "verdict", "data_hash", "git_commit"), "x") | {"tag": "m:1"}
DAY, NOON = 86_400, 1_764_417_600.0  # 2026-11-29 12:00 UTC
# An hour, over midnight and back, three days, a year, to a machine without a battery, and forth again.
JUMPS = [0, -3_600, -13 * 3_600, 60, -3 * DAY, -365 * DAY, 30 - NOON, 400 * DAY, -1, 120]
COMEDY = {"item_id": "new-1", "title": "Laughter (1991)", "attributes": {"genres": ["Comedy"]}}


class Clock:
    def __init__(self):
        self.seconds = NOON

    def __call__(self):
        return self.seconds

    def jump(self, seconds):
        self.seconds = NOON + seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_with_map(tmp_path_factory.mktemp("clock") / "checkpoint")


@pytest.fixture
def log(tmp_path):
    with closing(RequestLog(tmp_path / "requests")) as log:
        yield log


@pytest.fixture
def engine(loaded, tmp_path):
    recommender, item_map = loaded
    with closing(Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}", item_map=item_map)) as engine:
        yield engine


@pytest.fixture
def client(engine, log):
    served = Served(engine, ModelFacts(**FACTS), {}, requests=log)
    app = RequestWatch(RequestDeadline(RequestGuard(build_app(lambda: served)), seconds=10))
    return TestClient(app, raise_server_exceptions=False)


def ask(client, route="/recommend", **request):
    response = client.post(route, json=request)
    assert response.status_code == 200, response.text
    return response.json()


def event(number, timestamp):
    return {"event_id": f"e{number}", "item_id": f"item-{number}", "timestamp": timestamp}


def scores(answer):
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-5)) for item in answer["items"]]


def files_of(log):
    """Return the files and their bytes, with all rows that were waiting."""
    log.forget("nobody")
    return {file: file.read_bytes() for file in log.folder.glob("*/*.jsonl")}


def users_in(log):
    return sorted(row["user_id"] for file in files_of(log) for row in read_rows(file))


def test_no_request_fails_and_no_event_is_lost_or_doubled_or_moved_whatever_the_clock_does(client, engine, clock):
    for number, jump in enumerate(JUMPS):
        clock.jump(jump)
        # Clients have clocks of their own: times ascend, and every third one comes late.
        events = [event(number, 1_000 + (number if number % 3 else -number))]
        assert ask(client, "/events", user_id="ann", events=events) == {"new": 1, "duplicates": 0}
        for seconds in (0, -DAY):  # the answer was lost, and is asked for again after another jump
            clock.jump(jump + seconds)
            assert ask(client, "/events", user_id="ann", events=events) == {"new": 0, "duplicates": 1}
        assert ask(client, user_id="ann", k=5)["history_from"] == "store"
        ask(client, history=[{"item_id": "item-3", "timestamp": 2**33}], k=5)
        ask(client, history=[], k=5)
        ask(client, "/rank", user_id="ann", candidates=["item-50"])
        ask(client, "/explain", user_id="ann", item_ids=["item-50"])
        assert ask(client, "/items", items=[COMEDY | {"item_id": f"new-{number}"}])["new"] == 1
        assert client.get("/info").status_code == client.get("/metrics").status_code == 200
    stored = engine.store.read("ann", limit=100).events
    order = sorted(range(len(JUMPS)), key=lambda n: 1_000 + (n if n % 3 else -n))
    assert [one.event_id for one in stored] == [f"e{number}" for number in order]
    assert len(engine.recommender.catalogue.new) == len(JUMPS)


def test_encoded_users_answer_as_new_ones_do_after_the_clock_was_set_back(client, clock, loaded, engine):
    ask(client, "/events", user_id="ann", events=[event(number, 10**9 + number) for number in range(5)])
    ask(client, user_id="ann", k=5)
    clock.jump(-300 * DAY)
    ask(client, "/events", user_id="ann", events=[event(5, 10**9 + 50)])
    warm = ask(client, user_id="ann", k=5)
    assert engine.states.counts.extended == 1
    history = [{"item_id": f"item-{n}", "timestamp": 10**9 + (50 if n == 5 else n)} for n in range(6)]
    assert scores(warm) == scores(ask(client, history=history, k=5))


def test_a_request_is_never_earlier_than_the_last_event(client, clock):
    """The model takes the time since the last event: it has no meaning below 0."""
    last = int(NOON) - 10
    events = [event(0, last - DAY), event(1, last)]
    ask(client, "/events", user_id="ann", events=events)
    history = [{"item_id": one["item_id"], "timestamp": one["timestamp"]} for one in events]
    at_last, later = (ask(client, history=history, request_time=when, k=5) for when in (last, last + 40 * DAY))
    assert scores(at_last) != scores(later)
    for jump in (-3_600, -400 * DAY, -NOON):
        clock.jump(jump)
        assert scores(ask(client, history=history, k=5)) == scores(at_last)
        assert scores(ask(client, user_id="ann", k=5)) == scores(at_last)
        assert scores(ask(client, user_id="ann", k=5, request_time=max(0, last + jump))) == scores(at_last)
    clock.jump(40 * DAY - 10)
    assert scores(ask(client, user_id="ann", k=5)) == scores(later)


def test_the_log_of_requests_keeps_every_row_once_and_touches_no_file_it_has_left(client, clock, log):
    before = {}
    for number, jump in enumerate(JUMPS):
        clock.jump(jump)
        ask(client, user_id=f"user-{number}", k=5)
        files = files_of(log)
        assert all(files[file].startswith(content) for file, content in before.items())
        before = files
    for file, content in before.items():
        moments = [dt.datetime.fromtimestamp(json.loads(row)["time"], dt.UTC) for row in content.splitlines()]
        assert {f"{moment:%Y-%m-%d}" for moment in moments} == {file.parent.name}
    users = sorted(f"user-{number}" for number in range(len(JUMPS)))
    assert users_in(log) == users
    assert client.delete("/users/user-4").status_code == 200
    assert users_in(log) == [user for user in users if user != "user-4"]


def test_days_that_a_clock_made_up_hide_no_rows_from_monitoring(client, clock, log):
    for jump in (-DAY, 400 * DAY, 0):
        clock.jump(jump)
        ask(client, user_id="ann", k=5)
        files_of(log)
    read = read_requests(log.folder, days=7, most=10).requests
    assert [one.time for one in read] == [NOON - DAY, NOON]
    clock.jump(-30 * DAY)  # of who reads: where all days are in the future, the newest ones
    assert [one.time for one in read_requests(log.folder, days=7, most=10).requests] == [NOON + 400 * DAY]


def test_an_item_inserted_before_the_clock_was_right_is_as_new_as_the_newest_of_training(client, clock, loaded):
    newest = int(loaded[0].catalogue.attributes.first_seen_X.max())
    clock.jump(-NOON)  # a machine that starts in 1970
    ask(client, "/items", items=[COMEDY])
    clock.jump(0)
    ask(client, "/items", items=[COMEDY | {"title": "More Laughter (1991)"}])
    history = [{"item_id": "item-3", "timestamp": 5}]
    answer = ask(client, history=history, k=60, first_seen_from=newest)
    assert {"item-59", "new-1"} == {item["item_id"] for item in answer["items"]}


def test_a_deadline_is_kept_though_the_clock_stands_at_another_year(clock):
    async def stall(scope, receive, send):
        clock.jump(-365 * DAY)
        await asyncio.Event().wait()

    response = TestClient(RequestDeadline(stall, seconds=0.05)).post("/recommend", json={})
    assert response.status_code == 504


def test_the_service_looks_at_the_wall_clock_in_four_places_only():
    """Limits, pauses and durations are of monotonic clocks; a fifth place has to say what a jump does to it."""
    folder = Path(components.__file__).parent
    looks = {"time.time", "dt.datetime.now", "datetime.now", "dt.date.today", "dt.datetime.utcnow", "time.time_ns"}
    found = [
        file.name
        for file in [*sorted((folder / "serving").glob("*.py")), folder / "service.py", folder / "recommender.py"]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in looks
    ]
    assert found == ["app.py", "engine.py", "new_items.py", "request_log.py"]
