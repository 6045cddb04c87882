"""The routes: JSON in, JSON out, and an OpenAPI document (GET /docs.json) that says so.

BentoML runs this application (components/service.py) and adds what a process needs: workers, /livez, /readyz. Every
error is {"error": one sentence}.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from components.catalogue import NewItem
from components.errors import HstuflowError, InputError
from components.recommender import Answer, Wishes
from components.serving.answers import (
    EventsAnswer,
    Followed,
    ForgottenAnswer,
    Info,
    InsertedAnswer,
    ItemMapFacts,
    ItemsAnswer,
    ItemTable,
    ModelFacts,
    RankAnswer,
    RankedItem,
    RecommendAnswer,
    RecommendBatchAnswer,
    RecommendedItem,
    WithdrawnAnswer,
)
from components.serving.guard import refuse
from components.serving.history_store import StoredEvent, StoreError
from components.serving.pages import TitleFinder, add_page
from components.serving.request_log import describe
from components.serving.requests import (
    MAX_ID_LENGTH,
    PATH_ID,
    EventsRequest,
    ExplainRequest,
    Filters,
    ItemsQuery,
    ItemsRequest,
    RankRequest,
    RecommendBatchRequest,
    RecommendRequest,
    SimilarRequest,
    Whose,
)
from components.serving.rules import Wanted
from components.serving.watching import Watch, collect_metrics
from components.serving.wording import explain, refusals

if TYPE_CHECKING:
    from components.serving.engine import Engine, Reading
    from components.serving.following import Follower
    from components.serving.request_log import RequestLog

log = logging.getLogger("hstuflow.service")

# By path; of GET, what its query may hold.
SCHEMAS: dict[str, type[BaseModel]] = {
    "/recommend": RecommendRequest,
    "/recommend_batch": RecommendBatchRequest,
    "/rank": RankRequest,
    "/similar": SimilarRequest,
    "/events": EventsRequest,
    "/explain": ExplainRequest,
    "/items": ItemsRequest,
}


class _Text(Convertor[str]):
    """Any text in a path; Starlette's own `path` stops at a line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _Text())


PathItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, pattern=PATH_ID)]
PathUserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, pattern=PATH_ID)]


class Served:
    """What the routes need of the running service: one model and all that belongs to it.

    A service that follows the champion replaces it as a whole, so a request asks for it once and keeps what it got.
    """

    def __init__(
        self,
        engine: Engine,
        facts: ModelFacts,
        metrics: Mapping[str, Mapping[str, float]],
        item_table: Mapping[str, Any] | None = None,
        follower: Follower | None = None,
        requests: RequestLog | None = None,
    ) -> None:
        self.engine, self.facts, self.metrics = engine, facts, metrics
        self.item_table = ItemTable(**(item_table or {"values": "float32"}))
        self.follower, self.requests = follower, requests
        self.since = int(time.time())
        self.watch = Watch()

    @cached_property
    def titles(self) -> TitleFinder:
        """The trained items by the words of their titles."""
        return TitleFinder(self.engine.new_items.trained.catalogue)

    @property
    def champion(self) -> Followed | None:
        """What is known of the champion, where it is followed."""
        return Followed(tag=self.follower.tag, refused=self.follower.refused) if self.follower else None

    def forget(self, user_id: str) -> int:
        """Delete a user from store, caches and the log of requests; return how many events there were."""
        deleted = self.engine.forget(user_id)
        if self.requests is not None:
            self.requests.forget(user_id)
        return deleted

    def look(self, request: Whose) -> Reading:
        """Encode the history that a request is about."""
        glance = self.engine.look(request.read_history(), request.user_id, request.request_time)
        self.watch.looked(glance)
        if self.engine.states is not None:
            self.watch.cached(self.engine.states)
        return glance


def build_app(served: Callable[[], Served]) -> FastAPI:
    """Return the application; `served` is asked at every request, because a service exists only once it runs."""
    app = FastAPI(title="hstuflow", openapi_url="/docs.json", docs_url=None, redoc_url=None)
    _add_recommendations(app, served)
    _add_facts(app, served)
    _add_users(app, served)
    _add_items(app, served)
    add_page(app, served)
    _addrefusals(app)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign] # FastAPI's own way of changing it
    return app


def _add_recommendations(app: FastAPI, served: Callable[[], Served]) -> None:
    @app.post("/recommend", response_model=RecommendAnswer, responses=refusals(400, 401, 413, 415, 429, 503, 504))
    def recommend(request: RecommendRequest) -> Response:
        """Return the k items this user most likely wants at `request_time`."""
        return _send(_recommend(served(), request, "/recommend"))

    @app.post(
        "/recommend_batch", response_model=RecommendBatchAnswer, responses=refusals(400, 401, 413, 415, 429, 503, 504)
    )
    def recommend_batch(request: RecommendBatchRequest) -> Response:
        """Answer several requests to /recommend."""
        return _send(RecommendBatchAnswer(answers=_recommend_all(served(), request.requests)))

    @app.post("/rank", response_model=RankAnswer, responses=refusals(400, 401, 413, 415, 429, 503, 504))
    def rank(request: RankRequest) -> Response:
        """Score items of your own choice: the scores of /recommend, whatever else is asked with them."""
        here = served()
        glance = here.look(request)
        recommender = glance.recommender
        with here.engine.turn:
            scores = recommender.rank(glance.y_1D, request.candidates)
        return _send(
            RankAnswer(
                items=_best_first(request.candidates, scores),
                unknown_items=list(recommender.unknown([*glance.named, *request.candidates])),
                source="none" if glance.y_1D is None else "model",
                history_from=glance.history_from,
                model=here.facts,
            )
        )

    @app.post("/similar", responses=refusals(400, 401, 404, 413, 415, 429, 504))
    def similar(request: SimilarRequest) -> ItemsAnswer:
        """Return the items nearest to one."""
        here = served()
        with here.engine.turn:
            answer = here.engine.recommender.similar(request.item_id, request.k, **_wishes(request))
        return ItemsAnswer(**_items(answer), model=here.facts)


def _add_facts(app: FastAPI, served: Callable[[], Served]) -> None:
    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """Return Prometheus' text."""
        here = served()
        here.watch.holds(here.engine.recommender)
        return Response(collect_metrics(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/info", responses=refusals(401, 429, 504))
    def info() -> Info:
        """Say what is served, and what evaluation said of it."""
        here = served()
        recommender = here.engine.recommender
        split, item_map = recommender.facts["split"], here.engine.new_items.item_map
        return Info(
            model=here.facts,
            model_since=here.since,
            champion=here.champion,
            metrics={name: dict(metric) for name, metric in here.metrics.items()},
            item_table=here.item_table,
            num_items=len(recommender.catalogue.item_ids),
            num_new_items=len(recommender.catalogue.new),
            item_map=ItemMapFacts(**asdict(item_map.worth)) if item_map else None,
            max_len=recommender.max_len,
            attributes=list(recommender.catalogue.attributes.names),
            train_until=split.get("valid_end") if recommender.facts.get("refit_epochs") else split.get("train_end"),
        )


def _add_users(app: FastAPI, served: Callable[[], Served]) -> None:
    @app.post("/events", responses=refusals(400, 401, 413, 415, 429, 503, 504))
    def events(request: EventsRequest) -> EventsAnswer:
        """Keep events of a user: all or none, and once answered, for good. Sent again, they count once."""
        new = [StoredEvent(event.event_id, event.item_id, event.timestamp) for event in request.events]
        appended = served().engine.append(request.user_id, new)
        return EventsAnswer(new=appended.new, duplicates=appended.duplicates)

    @app.delete("/users/{user_id:text}", responses=refusals(400, 401, 429, 503, 504))
    def forget(user_id: PathUserId) -> ForgottenAnswer:
        """Forget a user for good."""
        return ForgottenAnswer(deleted=served().forget(user_id))


def _add_items(app: FastAPI, served: Callable[[], Served]) -> None:
    @app.post("/items", responses=refusals(400, 401, 409, 413, 415, 429, 503, 504))
    def insert(request: ItemsRequest) -> InsertedAnswer:
        """Insert items that training did not know: all or none, and once answered, for good.

        Sent again, an item changes nothing; with other content it is replaced. Their vectors come from title and
        attributes (GET /info says how good they are), so they are worse than those of trained items.
        """
        here = served()
        new = [NewItem(item.item_id, item.title, item.attributes) for item in request.items]
        inserted = here.engine.new_items.insert(new)
        here.watch.inserted(inserted.new + inserted.replaced)
        return InsertedAnswer(**inserted._asdict())

    @app.delete("/items/{item_id:text}", responses=refusals(400, 401, 404, 429, 503, 504))
    def withdraw(item_id: PathItemId) -> WithdrawnAnswer:
        """Withdraw an inserted item for good; it stays in histories, as an unknown one."""
        served().engine.new_items.withdraw(item_id)
        return WithdrawnAnswer(withdrawn=1)


def _recommend(here: Served, request: RecommendRequest, route: str) -> RecommendAnswer:
    generation = here.requests.generation if here.requests else 0  # from before the history is read
    glance = here.look(request)
    wishes = _wishes(request) | Wishes(exclude_seen=request.exclude_seen)
    with here.engine.turn:
        answer = glance.recommender.answer(glance.y_1D, glance.seen_rows, request.k, named=glance.named, **wishes)
    here.watch.answered(route, answer, glance.history_from)
    if here.requests is not None:
        row = describe(route, request.user_id, request.k, glance, answer, here.facts.tag)
        here.requests.add(row, generation)
    return RecommendAnswer(**_items(answer), source=answer.source, history_from=glance.history_from, model=here.facts)


def _recommend_all(here: Served, requests: Sequence[RecommendRequest]) -> list[RecommendAnswer]:
    answers = []
    for number, request in enumerate(requests):
        try:
            answers.append(_recommend(here, request, "/recommend_batch"))
        except InputError as error:
            error.inside(f"requests.{number}")
            raise
    return answers


def _wishes(request: Filters) -> Wishes:
    return Wishes(
        exclude=request.exclude,
        allow=request.allow,
        attributes={name: Wanted(tuple(f.any_of), tuple(f.none_of)) for name, f in request.attributes.items()},
        caps=request.caps,
        first_seen_from=request.first_seen_from,
    )


def _items(answer: Answer) -> dict[str, Any]:
    items = [RecommendedItem(item_id=i.item_id, score=i.score, title=i.title, new=i.is_new) for i in answer.items]
    return {"items": items, "unknown_items": list(answer.unknown_items), "removed": answer.removed}


def _best_first(candidates: Iterable[int | str], scores: Iterable[float | None]) -> list[RankedItem]:
    known: list[RankedItem] = []
    others: list[RankedItem] = []
    for item, score in zip(candidates, scores, strict=True):
        (others if score is None else known).append(RankedItem(item_id=item, score=score))
    return sorted(known, key=itemgetter("score"), reverse=True) + others


def _send(answer: BaseModel) -> Response:
    """Return an answer as FastAPI would, without its checking once more, in one more thread, what we made ourselves."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _addrefusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a typo explains what is missing
        return JSONResponse({"error": explain(first, _schema_of(request))}, status_code=400)

    @app.exception_handler(HstuflowError)
    async def refused(_: Request, error: HstuflowError) -> JSONResponse:
        return refuse(error)

    @app.exception_handler(StoreError)
    async def out_of_reach(_: Request, error: StoreError) -> JSONResponse:
        log.error("%s", error)  # file names and hosts are for the log, not for clients
        return JSONResponse({"error": "the store of histories is out of reach: try again"}, status_code=503)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return JSONResponse({"error": "the service failed; its log says why"}, status_code=500)

    @app.api_route(
        "/{path:text}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"], include_in_schema=False
    )
    async def nowhere(request: Request) -> None:
        allowed = _methods_of(app, request)
        if allowed:
            raise HTTPException(405, f"{request.method} is not for this path", {"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404, "there is nothing at this path; GET /docs.json says what there is")


def _schema_of(request: Request) -> type[BaseModel] | None:
    return ItemsQuery if request.method == "GET" else SCHEMAS.get(request.url.path)


def routes_of(app: FastAPI) -> list[str]:
    """Return the paths of the document's routes."""
    return [route.path_format for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]


def _methods_of(app: FastAPI, request: Request) -> set[str]:
    """Return the methods of the routes that would take this path, were it asked otherwise."""
    routes = [route for route in app.routes if getattr(route, "endpoint", None) is not request.scope["endpoint"]]
    partial = [route for route in routes if route.matches(request.scope)[0] is Match.PARTIAL]
    return {method for route in partial for method in getattr(route, "methods", None) or ()}


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, once made: FastAPI's without its own 422, which this service answers with 400."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version="1", routes=app.routes, description=__doc__)
        for operation in _operations(document):
            operation["responses"].pop("422", None)
            operation["security"] = [{}, {"token": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


def _operations(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return (operation for path in document["paths"].values() for operation in path.values())
