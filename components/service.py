"""The service: what was packaged, behind HTTP.

    bentoml serve hstuflow:latest
    curl -s localhost:3000/recommend -H 'Content-Type: application/json' -d '{
        "history": [{"item_id": 50, "timestamp": 881250949}], "k": 10, "request_time": 881251000}'

The routes are in components/serving/app.py, what they ask of the model in components/serving/engine.py. BentoML brings
the model and the process, /livez and /readyz. Read from the environment:

HSTUFLOW_HISTORIES   where histories are kept: sqlite:///hstuflow-histories.db (in the working directory), or redis://...
HSTUFLOW_CACHE_MB    memory for encoded users (256)
HSTUFLOW_TOKEN       what clients have to send as `Authorization: Bearer <token>`; unset: nothing
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bentoml
import torch

from components.errors import HstuflowError
from components.recommender import Recommender
from components.serving.app import Served, build_app, routes_of
from components.serving.deadline import RequestDeadline
from components.serving.engine import Engine
from components.serving.guard import RequestGuard
from components.serving.history_store import check_url
from components.serving.item_map import ItemMap, load_item_map
from components.serving.schemas import ModelFacts
from components.serving.search import EXACT_UP_TO
from components.serving.watching import RequestWatch, log_as_json

_MODEL = "checkpoint"  # the alias under which packaging.py put it into this Bento
_HISTORIES = "sqlite:///hstuflow-histories.db"
_SECONDS = 10


def _load(folder: Path, *, exact_up_to: int = EXACT_UP_TO) -> tuple[Recommender, ItemMap | None]:
    recommender = Recommender.load(folder, exact_up_to=exact_up_to)
    return recommender, load_item_map(folder, dim=recommender.vectors_XD.shape[1])


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
APP = build_app(_served)


@bentoml.asgi_app(APP, path="/")
@bentoml.service(name="hstuflow", workers=1, traffic={"timeout": _SECONDS + 5}, metrics={"enabled": False})
class RecommendService:
    """Recommends items to a user from what the user did so far."""

    def __init__(self) -> None:
        log_as_json()
        logging.getLogger("bentoml.access").setLevel(logging.WARNING)  # a second line a request, with user ids in paths
        torch.set_num_threads(1)  # scale by workers: two threads on a busy machine are 3-5x slower than one
        stored = bentoml.models.get(_MODEL)
        metadata: Mapping[str, Any] = stored.info.metadata
        recommender, item_map = _load(Path(stored.path))
        engine = Engine(recommender, store_url=_STORE_URL, max_cache_bytes=_CACHE_BYTES, item_map=item_map)
        engine.new_items.follow()
        self.served = Served(
            engine, _model_facts(str(stored.tag), metadata), metadata["metrics"], metadata["item_table"]
        )
        recommender.recommend([(recommender.catalogue.item_ids[0], 0)], k=1)  # the first call is the slow one
        gc.collect()
        gc.freeze()  # what was imported stays: walking through it again and again stopped every request for 0.3 s

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Let go of the store."""
        self.served.engine.close()


# mypy ignores class decorators. The first one is the outermost.
RecommendService.add_asgi_middleware(RequestWatch, routes=routes_of(APP))  # type: ignore[attr-defined]
RecommendService.add_asgi_middleware(RequestDeadline, seconds=_SECONDS)  # type: ignore[attr-defined]
RecommendService.add_asgi_middleware(RequestGuard, token=_TOKEN)  # type: ignore[attr-defined]


def _model_facts(tag: str, metadata: Mapping[str, Any]) -> ModelFacts:
    context = bentoml.server_context
    names = ("name", "protocol", "verdict", "data_hash", "git_commit")
    return ModelFacts(
        bento=f"{context.bento_name}:{context.bento_version}", tag=tag, **{name: metadata[name] for name in names}
    )
