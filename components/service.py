"""The service: what was packaged, behind HTTP.

    bentoml serve hstuflow:latest
    curl -s localhost:3000/recommend -H 'Content-Type: application/json' -d '{
        "history": [{"item_id": 50, "timestamp": 881250949}], "k": 10, "request_time": 881251000}'

The routes are in components/serving/app.py, what they ask of the model in components/serving/engine.py. BentoML brings
the model and the process, /livez and /readyz. Read from the environment:

HSTUFLOW_HISTORIES   where histories are kept: sqlite:///hstuflow-histories.db (in the working directory), or redis://...
HSTUFLOW_CACHE_MB    memory for encoded users (256)
HSTUFLOW_TOKEN       what clients have to send as `Authorization: Bearer <token>`; unset: nothing
HSTUFLOW_FOLLOW      registry/champion.json: serve the model that it names, from the store, and the next one once it
                     names another (components/serving/following.py); unset: the model of this Bento
HSTUFLOW_REQUESTS    folder for what monitoring needs of each recommendation (components/serving/request_log.py);
                     unset: nothing is kept
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bentoml
import torch

from components.errors import HstuflowError, StateError
from components.recommender import Recommender
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app, routes_of
from components.serving.deadline import RequestDeadline
from components.serving.engine import Engine
from components.serving.following import Follower
from components.serving.guard import RequestGuard
from components.serving.history_store import check_url
from components.serving.item_map import ItemMap, load_item_map
from components.serving.request_log import RequestLog
from components.serving.search import EXACT_UP_TO
from components.serving.watching import MODEL_SINCE, RequestWatch, log_as_json

_MODEL = "checkpoint"  # the alias under which packaging.py put it into this Bento
_HISTORIES = "sqlite:///hstuflow-histories.db"
_SECONDS = 10

log = logging.getLogger("hstuflow.service")


def _load(folder: Path, *, exact_up_to: int = EXACT_UP_TO) -> tuple[Recommender, ItemMap | None]:
    recommender = Recommender.load(folder, exact_up_to=exact_up_to)
    return recommender, load_item_map(folder, dim=recommender.vectors_XD.shape[1])


def _find(tag: str) -> bentoml.Model:
    """Return a stored model; raises StateError where there is none."""
    try:
        return bentoml.models.get(tag)
    except bentoml.exceptions.NotFound:
        raise StateError(
            "is not in the BentoML store", where=tag, todo="`python -m components promote` brings it in"
        ) from None


def _state_of(tag: str) -> object:
    """Return what changes when a stored model does, None where there is none, or none that can be read."""
    try:
        folder = Path(_find(tag).path)
        return sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    except Exception:  # noqa: BLE001 - BentoML raises KeyError or a YAML error where model.yaml is damaged
        return None


def _served() -> Served:
    here: Served = bentoml.get_current_service().served
    return here


def _refuse_a_broken_model() -> None:
    """End `bentoml serve` where the model cannot be loaded: a worker that fails would be started again for ever.

    Only a Bento has the model; whoever imports this file without one (a test) is not concerned.
    """
    try:
        stored = bentoml.models.get(_MODEL)
    except bentoml.exceptions.NotFound:
        return
    try:
        _load(Path(stored.path), exact_up_to=sys.maxsize)  # the worker builds the index: 10 s at a million items
    except HstuflowError as error:
        sys.exit(f"the service does not start: {error}")


def _read_environment() -> tuple[str, int, str | None]:
    """Return where histories are kept, the bytes of the cache, and the token; ends the process where one is wrong."""
    url, megabytes = os.environ.get("HSTUFLOW_HISTORIES", _HISTORIES), os.environ.get("HSTUFLOW_CACHE_MB", "256")
    token = os.environ.get("HSTUFLOW_TOKEN", "").strip()  # a secret's file ends in a line break
    try:
        check_url(url)
    except HstuflowError as error:
        sys.exit(f"the service does not start: HSTUFLOW_HISTORIES: {error}")
    if not megabytes.isdecimal():
        sys.exit(f"the service does not start: HSTUFLOW_CACHE_MB: observed {megabytes!r}, expected megabytes: 256")
    if not token.isascii():
        sys.exit("the service does not start: HSTUFLOW_TOKEN: expected letters that an HTTP header can hold (ASCII)")
    return url, int(megabytes) << 20, token or None


_refuse_a_broken_model()
_STORE_URL, _CACHE_BYTES, _TOKEN = _read_environment()
_FOLLOW, _REQUESTS = (os.environ.get(name, "").strip() for name in ("HSTUFLOW_FOLLOW", "HSTUFLOW_REQUESTS"))
APP = build_app(_served)


# BentoML makes spans of every request, by default to throw them away: 5.4 to 6.9 ms of CPU time a request with that and
# its access log, 3.8 to 4.9 without. Its configuration can turn both on again (docs/serving.md).
@bentoml.asgi_app(APP, path="/")
@bentoml.service(
    name="hstuflow",
    workers=1,
    traffic={"timeout": _SECONDS + 5},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},  # a second line a request, with user ids in paths
    tracing={"excluded_urls": ".*"},
)
class RecommendService:
    """Recommends items to a user from what the user did so far."""

    def __init__(self) -> None:
        log_as_json()
        torch.set_num_threads(1)  # scale by workers: two threads on a busy machine are 3-5x slower than one
        self.served: Served | None = None  # replaced as a whole
        self.requests = RequestLog(Path(_REQUESTS)) if _REQUESTS else None
        self.follower = Follower(Path(_FOLLOW), take=self._take, state_of=_state_of) if _FOLLOW else None
        if self.follower:
            self.follower.look()
        if self.served is None:
            self._swap(bentoml.models.get(_MODEL))
        gc.collect()
        gc.freeze()  # what was imported stays: walking through it again and again stopped every request for 0.3 s
        # Requests leave hardly a cycle (decision 0018): look for old ones seldom. It takes .1 s with 64 in work.
        # For young ones as often as ever: a body that is no JSON is in one, and 600 of them were 240 MB.
        gc.set_threshold(700, 50, 100)
        if self.follower:
            self.follower.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Let go of the store, and write what is still to be written."""
        if self.follower:
            self.follower.close()
        if self.requests:
            self.requests.close()
        if self.served:
            self.served.engine.close()

    def _take(self, tag: str) -> bool:
        """Serve a model by its tag; return whether it took another one's place."""
        stored, before = _find(tag), self.served
        if before is not None and before.facts.tag == str(stored.tag):
            return False
        self._swap(stored)
        return before is not None

    def _swap(self, stored: bentoml.Model) -> None:
        """Load a model with all that belongs to it, warm it up, and let it answer from the next request on."""
        began, before = time.monotonic(), self.served
        metadata: Mapping[str, Any] = stored.info.metadata
        recommender, item_map = _load(Path(stored.path))
        engine = before.engine.follow_with(recommender, item_map) if before else _first_engine(recommender, item_map)
        facts = _model_facts(str(stored.tag), metadata)
        # Packages of earlier versions say nothing of their item table: it was float32 then.
        served = Served(engine, facts, metadata["metrics"], metadata.get("item_table"), self.follower, self.requests)
        _warm_up(recommender)
        engine.new_items.follow()  # a thread, so after all that a model of another version may fail in
        self.served = served
        MODEL_SINCE.set(served.since)
        log.info("serving %s, loaded in %.1f s, code of %s", facts.tag, time.monotonic() - began, facts.bento)
        if before:
            before.engine.new_items.close()


# mypy ignores class decorators. The first one is the outermost.
RecommendService.add_asgi_middleware(RequestWatch, routes=routes_of(APP))  # type: ignore[attr-defined]
RecommendService.add_asgi_middleware(RequestDeadline, seconds=_SECONDS)  # type: ignore[attr-defined]
RecommendService.add_asgi_middleware(RequestGuard, token=_TOKEN)  # type: ignore[attr-defined]


def _first_engine(recommender: Recommender, item_map: ItemMap | None) -> Engine:
    return Engine(recommender, store_url=_STORE_URL, max_cache_bytes=_CACHE_BYTES, item_map=item_map)


def _warm_up(recommender: Recommender) -> None:
    """Ask once as users will: the first calls are the slow ones."""
    ids, length = recommender.catalogue.item_ids, recommender.max_len
    recommender.recommend([(ids[number % len(ids)], number) for number in range(length)], k=10)
    recommender.recommend([], k=10)


def _model_facts(tag: str, metadata: Mapping[str, Any]) -> ModelFacts:
    context = bentoml.server_context
    names = ("name", "protocol", "verdict", "data_hash", "git_commit")
    return ModelFacts(
        bento=f"{context.bento_name}:{context.bento_version}", tag=tag, **{name: metadata[name] for name in names}
    )
