"""What operators see: Prometheus metrics (GET /metrics), one JSON line a request, and a request id in both worlds.

    hstuflow_requests_total{route, method, status}     hstuflow_request_seconds{route}
    hstuflow_answers_total{route, source, history_from}
    hstuflow_history_items_total{known}                the share of items that the model does not know
    hstuflow_user_states_total{result}                 hits, extended, encoded, evicted of the cache
    hstuflow_user_states_bytes, hstuflow_user_states   its memory and users
    hstuflow_items_removed_total{rule}                 what filters and caps kept out
    hstuflow_insertions_total, hstuflow_new_items      items inserted or replaced; how many there are
    hstuflow_best_score                                of each answer, in [-1, 1]: a drift shows here first
    hstuflow_request_log_rows_total{result}            written, dropped (too many at once), failed (disk)
    hstuflow_model_since_timestamp_seconds             when the model that serves was loaded
    hstuflow_model_swaps_total, hstuflow_model_swaps_failed_total   by a service that follows the champion

A client that left counts as 499. BentoML's own metrics are off: their labels are paths as they come, so every user id,
and all that a stranger tries, would stay in memory and in Prometheus.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from starlette.datastructures import Headers, MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from components.recommender import Answer, Recommender
    from components.serving.engine import Reading
    from components.serving.user_states import UserStates

log = logging.getLogger("hstuflow.requests")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SCORES = tuple(round(0.1 * tenth, 1) for tenth in range(-5, 11))
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}")

REQUEST_ID: ContextVar[str | None] = ContextVar("hstuflow_request_id", default=None)

REQUESTS = Counter("hstuflow_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram("hstuflow_request_seconds", "Time to the last byte of an answer.", ["route"], buckets=_SECONDS)
ANSWERS = Counter("hstuflow_answers", "Answers by where they came from.", ["route", "source", "history_from"])
HISTORY_ITEMS = Counter("hstuflow_history_items", "Items of the histories that were looked at.", ["known"])
STATES = Counter("hstuflow_user_states", "What the cache of encoded users did.", ["result"])
STATES_BYTES = Gauge("hstuflow_user_states_bytes", "Memory of encoded users.", multiprocess_mode="livesum")
STATES_USERS = Gauge("hstuflow_user_states_users", "Users that are encoded.", multiprocess_mode="livesum")
REMOVED = Counter("hstuflow_items_removed", "Items of the catalogue that a rule kept out.", ["rule"])
INSERTIONS = Counter("hstuflow_insertions", "Items that were inserted or replaced through this service.")
NEW_ITEMS = Gauge("hstuflow_new_items", "Inserted items that are recommended.", multiprocess_mode="livemax")
BEST_SCORE = Histogram("hstuflow_best_score", "Score of the best item of an answer.", buckets=_SCORES)
LOGGED = Counter("hstuflow_request_log_rows", "Rows for the log of requests.", ["result"])
MODEL_SINCE = Gauge("hstuflow_model_since_timestamp_seconds", "Load of the served model.", multiprocess_mode="livemin")
SWAPS = Counter("hstuflow_model_swaps", "Models that took the place of another one.")
FAILED_SWAPS = Counter("hstuflow_model_swaps_failed", "Champions that could not be served, once a try.")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON, with the id of the request that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Send all of hstuflow's log records to standard error as lines of JSON, and to nobody else."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("hstuflow")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def collect_metrics() -> bytes:
    """Return Prometheus' text, of all workers where BentoML runs several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class Watch:
    """Counts what happened. Safe to call from several threads."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._lock = threading.Lock()

    def looked(self, glance: Reading) -> None:
        """Count the known and unknown items of a history."""
        known = int(np.count_nonzero(np.asarray(glance.seen_rows) >= 0))
        HISTORY_ITEMS.labels("yes").inc(known)
        HISTORY_ITEMS.labels("no").inc(len(glance.seen_rows) - known)

    def answered(self, route: str, answer: Answer, history_from: str) -> None:
        """Count an answer, what its rules removed, and its best score."""
        ANSWERS.labels(route, answer.source, history_from).inc()
        for rule, removed in answer.removed.items():
            REMOVED.labels(rule).inc(removed)
        if answer.items and answer.items[0].score is not None:
            BEST_SCORE.observe(answer.items[0].score)

    def inserted(self, count: int) -> None:
        """Count items that were inserted or replaced."""
        INSERTIONS.inc(count)

    def holds(self, recommender: Recommender) -> None:
        """Say how many inserted items there are, whoever inserted them."""
        NEW_ITEMS.set(len(recommender.catalogue.new))

    def cached(self, states: UserStates) -> None:
        """Bring the cache's figures up to date."""
        with self._lock:
            now = asdict(states.counts)
            for result, count in now.items():
                STATES.labels(result).inc(count - self._counted.get(result, 0))
            self._counted = now
        STATES_BYTES.set(states.num_bytes)
        STATES_USERS.set(len(states))


class RequestWatch:
    """ASGI middleware: a request id, the time, the status, one line of JSON."""

    def __init__(self, app: ASGIApp, routes: Iterable[str] = ()) -> None:
        self.app, self._routes = app, tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on and report it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started, status = _request_id(scope), time.perf_counter(), 499  # the client left, as nginx has it
        REQUEST_ID.set(request_id)

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            self._report(scope, status, time.perf_counter() - started)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route_of(scope["path"])
        method = scope["method"] if scope["method"] in _METHODS else "other"  # a client may make any up
        REQUESTS.labels(route, method, str(status)).inc()
        SECONDS.labels(route).observe(seconds)
        facts = {"method": method, "route": route, "status": status, "milliseconds": round(1_000 * seconds, 2)}
        log.info("answered", extra={"facts": facts})

    def _route_of(self, path: str) -> str:
        """Return the route of a path without the ids in it: neither a metric nor a log is a place for user ids."""
        for route in self._routes:
            prefix, has_parameter, _ = route.partition("{")
            if path == route or (has_parameter and path.startswith(prefix)):
                return route
        return "other"


def _request_id(scope: Scope) -> str:
    """Return the client's own id where it is one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
