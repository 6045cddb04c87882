"""What is wrong with a request, in one sentence; and what statuses mean, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from components.serving.answers import Error
from components.serving.requests import PATH_ID_IN_WORDS, DescribedItem, Filter, HistoryEvent, UserEvent

_NESTED: dict[str, type[BaseModel]] = {
    "history": HistoryEvent,
    "events": UserEvent,
    "items": DescribedItem,
    "attributes": Filter,
}
STATUSES = {
    400: "The request is wrong; nothing was done.",
    401: "HSTUFLOW_TOKEN is set, and the token is missing or wrong.",
    404: "There is no such item.",
    409: "This model takes no new items, or no more of them; nothing was done.",
    413: "The body is too long.",
    415: "Content-Type is not application/json.",
    429: "Too many requests at once: try again.",
    503: "What the answer needs is out of reach for now: try again.",
    504: "It took too long.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what FastAPI takes as `responses`: these statuses, each with an `Error` for its body."""
    return {status: {"model": Error, "description": STATUSES[status]} for status in statuses}


def explain(error: Mapping[str, Any], schema: type[BaseModel] | None) -> str:
    """Say where and what, of one of pydantic's errors about a request of `schema`; its own words where they help."""
    is_no_json = error["type"] == "json_invalid"  # its place is a column number
    location = [] if is_no_json else [part for part in error["loc"] if part != "body"]
    where = ".".join(_in_one_line(str(part)) for part in location)[:200] or "the body"
    return f"{where}: {_what(error, location, schema)}"


def _in_one_line(name: str) -> str:
    """Return a key of the client's own as it is, or escaped where it holds line breaks and the like."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _what(error: Mapping[str, Any], location: list[Any], schema: type[BaseModel] | None) -> str:
    observed = f", observed {repr(error.get('input'))[:80]}"
    match error["type"]:
        case "missing":
            return str(error["msg"])
        case "json_invalid":
            return f"is no JSON: {error['ctx']['error']}"
        case "extra_forbidden":
            return f"unknown key, allowed: {', '.join(_known_keys(location, schema))}"
        case "too_long":
            return f"should have at most {error['ctx']['max_length']:,} entries, observed {len(error['input']):,}"
        case "string_pattern_mismatch":
            return f"should be {PATH_ID_IN_WORDS}{observed}"
        case _:
            return str(error["msg"]).removeprefix("Value error, ") + observed


def _known_keys(location: list[Any], schema: type[BaseModel] | None) -> Iterable[str]:
    nested = [_NESTED[part] for part in location[:-1] if part in _NESTED]
    innermost = nested[-1] if nested else schema
    return innermost.model_fields if innermost else ("see GET /docs.json",)
