"""The service: POST /recommend, answered by the model that was packaged with it.

    bentoml serve hstuflow:latest
    curl -s localhost:3000/recommend -H 'Content-Type: application/json' -d '{
        "history": [{"item_id": 50, "timestamp": 881250949}], "k": 10, "request_time": 881251000}'

A bad request is answered with {"error": one sentence} and status 400, 413 or 415; the schemas below are the only place
that says what a good one is. BentoML serves /livez, /readyz, /metrics and the OpenAPI page.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import bentoml
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from components.errors import HstuflowError, InputError
from components.recommender import Answer, Recommender, resolve_request_time

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTE = "/recommend"
MAX_K = 1_000
MAX_EVENTS = 10_000  # 50 times the longest history the model reads; older events only say what was seen
MAX_BODY_BYTES = 2 * 1024 * 1024  # MAX_EVENTS events take 0.5 MB, as many exclusions 0.2 MB
MAX_SECONDS = 253_402_300_799  # the end of year 9999: a timestamp in milliseconds is beyond it, so it is refused


class BodyTooLargeError(InputError):
    """The body is longer than MAX_BODY_BYTES."""

    http_status = 413


class MediaTypeError(InputError):
    """The body is not declared to be JSON."""

    http_status = 415


class Schema(BaseModel):
    """JSON whose types mean what they say (no "5" for 5), and where an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _check_item_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("Input should be an integer or a string")  # noqa: TRY004 - pydantic catches ValueError only
    return value


ItemId = Annotated[int | str, BeforeValidator(_check_item_id), Field(description="your own item id; 50 is also '50'")]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS, description="seconds since 1970-01-01 UTC")]


class HistoryEvent(Schema):
    """One thing the user did."""

    item_id: ItemId
    timestamp: Seconds


class RecommendRequest(Schema):
    """Whom to recommend to, how much, and what to leave out."""

    history: list[HistoryEvent] = Field(max_length=MAX_EVENTS, description="in any order; empty: popular items")
    k: int = Field(10, ge=1, le=MAX_K, description="how many items; fewer come back where fewer are left")
    request_time: Seconds | None = Field(None, description="when it will be shown; now, unless given")
    exclude_seen: bool = Field(True, description="leave out what the history holds")
    exclude: list[ItemId] = Field(default=[], max_length=MAX_EVENTS, description="leave these out, too")

    @model_validator(mode="after")
    def _check_request_time(self) -> RecommendRequest:
        resolve_request_time([event.timestamp for event in self.history], self.request_time)
        return self


class RecommendedItem(BaseModel):
    """One answer; `score` is null for a popular item."""

    item_id: int | str
    score: float | None
    title: str


class ModelFacts(BaseModel):
    """Which code (`bento`) and which model (`tag`) answered, and how the gate judged it."""

    bento: str
    tag: str
    name: str
    protocol: str
    verdict: str
    data_hash: str
    git_commit: str


class RecommendAnswer(BaseModel):
    """Best item first. `source` is "popular" where the history held no item that the model knows."""

    items: list[RecommendedItem]
    source: Literal["model", "popular"]
    unknown_items: list[int | str] = Field(description="named in the request, unknown to the model")
    model: ModelFacts


@bentoml.service(name="hstuflow", workers=1, traffic={"timeout": 10})
class RecommendService:
    """Recommends items to a user from what the user did so far."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # scale by workers: two threads on a busy machine are 3-5x slower than one
        stored = bentoml.models.get("checkpoint")  # the alias under which packaging.py put it into this Bento
        self.recommender = Recommender.load(Path(stored.path))
        self.facts = _model_facts(str(stored.tag), stored.info.metadata)
        self.recommender.recommend([(self.recommender.catalogue.item_ids[0], 0)], k=1)  # the first call is the slow one

    @bentoml.api(route=ROUTE, input_spec=RecommendRequest, output_spec=RecommendAnswer)  # type: ignore[untyped-decorator]
    def recommend(
        self,
        history: list[HistoryEvent],
        k: int,
        request_time: int | None,
        exclude_seen: bool,
        exclude: list[int | str],
    ) -> RecommendAnswer:
        """Return the k items this user most likely wants at `request_time`."""
        events = [(event.item_id, event.timestamp) for event in history]
        if request_time is None:  # a client's clock may run ahead of ours
            request_time = max(int(time.time()), *(timestamp for _, timestamp in events), 0)
        answer = self.recommender.recommend(events, k, request_time, exclude_seen=exclude_seen, exclude=exclude)
        return _render(answer, self.facts)


class RequestGuard:
    """ASGI middleware: whatever RecommendRequest refuses is answered with one sentence before BentoML sees it.

    BentoML alone would read a body of any size and answer with a list of pydantic's own error records.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request; what is not POST /recommend passes untouched."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", ROUTE):
            await self.app(scope, receive, send)
            return
        try:
            _check_media_type(Headers(scope=scope))
            body = await _read_body(receive)
            RecommendRequest.model_validate_json(body)
        except (HstuflowError, ValidationError) as error:
            await _refuse(error)(scope, receive, send)
        else:
            await self.app(scope, _replay(body, receive), send)


RecommendService.add_asgi_middleware(RequestGuard)  # type: ignore[attr-defined] # mypy ignores class decorators


def _model_facts(tag: str, metadata: Mapping[str, Any]) -> ModelFacts:
    context = bentoml.server_context
    names = ("name", "protocol", "verdict", "data_hash", "git_commit")
    return ModelFacts(
        bento=f"{context.bento_name}:{context.bento_version}", tag=tag, **{name: metadata[name] for name in names}
    )


def _render(answer: Answer, facts: ModelFacts) -> RecommendAnswer:
    return RecommendAnswer(
        items=[RecommendedItem(item_id=i.item_id, score=i.score, title=i.title) for i in answer.items],
        source=answer.source,
        unknown_items=list(answer.unknown_items),
        model=facts,
    )


def _check_media_type(headers: Headers) -> None:
    # curl -d declares a form unless told otherwise, and BentoML would read the body as one.
    media_type = headers.get("content-type", "nothing").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError("Content-Type is wrong", observed=media_type, expected="application/json")


async def _read_body(receive: Receive) -> bytes:
    """Read the whole body; raises BodyTooLargeError as soon as it is too long."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError("the body is too long", expected=f"at most {MAX_BODY_BYTES:,} bytes")
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` once more, then what the client sends next (that it left)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _refuse(error: HstuflowError | ValidationError) -> JSONResponse:
    if isinstance(error, HstuflowError):
        return JSONResponse({"error": str(error)}, status_code=error.http_status)
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where or 'the body'}: {_explain(first)}"}, status_code=InputError.http_status)


def _explain(error: ErrorDetails) -> str:
    """Say what is wrong; pydantic's own words serve wherever they say what to do."""
    observed = f", observed {repr(error['input'])[:80]}"
    match error["type"], error["loc"]:
        case (("missing" | "json_invalid"), _):
            return error["msg"]
        case "extra_forbidden", loc:
            schema = RecommendRequest if len(loc) == 1 else HistoryEvent
            return f"unknown key, allowed: {', '.join(schema.model_fields)}"
        case "too_long", _:
            return f"should have at most {MAX_EVENTS:,} entries, observed {len(error['input']):,}"
        case "less_than_equal", (*_, "timestamp" | "request_time"):
            return f"should be seconds since 1970, not milliseconds{observed}"
        case "int_type", (*_, "timestamp" | "request_time"):
            return f"should be seconds since 1970 as an integer{observed}"
        case _:
            return error["msg"].removeprefix("Value error, ") + observed
