"""What may be asked: the only place that says what a good request is, and half of the OpenAPI document.

JSON types mean what they say: "5" is no 5, and an unknown key is an error.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import custom_error_schema

from components.recommender import Event, resolve_request_time

MAX_K = 1_000
MAX_EVENTS = 10_000  # 50 times the longest history the model reads; older events only say what was seen
MAX_CANDIDATES = 10_000
MAX_REQUESTS = 100  # of a batch: 0.3 s at 200 events each
MAX_VALUES = 1_000  # of one attribute, in one request
MAX_APPENDED = 1_000
MAX_KEYS = 50  # of an object; four times as many as the largest schema has
MAX_ID_LENGTH = 256
MAX_INSERTED = 1_000  # in one request
MAX_TITLE_LENGTH = 1_000
MAX_SECONDS = 253_402_300_799  # the end of year 9999: a timestamp in milliseconds is beyond it, so it is refused


class Schema(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, data: object) -> object:
        """Each unknown key is an error record: a body of 380,000 took 12 s, on the thread that answers everybody."""
        if isinstance(data, dict) and len(data) > MAX_KEYS:
            raise ValueError(f"an object should have at most {MAX_KEYS} keys")
        return data


def _whole(value: object) -> object:
    """JSON has one kind of number: 5.0 is the integer 5, there and in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_whole(value: float) -> int:
    if not value.is_integer():  # infinities and NaN are none either
        raise ValueError
    return int(value)


def _check_seconds(value: int) -> int:
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError
    return value


class _CheckedAs:
    """Checks a value as the first of some types that takes it, and says one sentence where none does."""

    def __init__(self, types: object, sentence: str) -> None:
        self.types, self.sentence = types, sentence

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema; a union by itself would list the complaints of all its members."""
        union = handler.generate_schema(Annotated[self.types, Field(union_mode="left_to_right")])
        return custom_error_schema(union, "wrong", custom_error_message=self.sentence)


# Of the 1,200 ids and times in a request to /rank, each cost 2 us where Python had to look at it: members that pydantic
# checks by itself come first, and only floats get to a function of ours.
_Whole = Annotated[float, AfterValidator(_to_whole)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
ItemId = Annotated[
    int | str,
    _CheckedAs(
        int | Text | _Whole, f"Input should be an integer or a string, of 1 to {MAX_ID_LENGTH} Unicode characters"
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer"},
                {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH},
            ],
            "description": "your own item id; 50 is also '50'",
        }
    ),
]
# What is kept must be deletable by an id in a path: BentoML finds no route for a path with a line break, and `.` and
# `..` at the end of a path are taken away by clients, escaped or not.
PATH_ID = r"^(?:[^.\r\n][^\r\n]*|\.[^.\r\n][^\r\n]*|\.\.[^\r\n]+)$"
PATH_ID_IN_WORDS = "in one line, and neither . nor .."
UserId = Annotated[Text, Field(pattern=PATH_ID, description=f"your own user id, {PATH_ID_IN_WORDS}")]
NewItemId = Annotated[
    int | str,
    _CheckedAs(
        int | Annotated[Text, Field(pattern=PATH_ID)] | _Whole,
        f"Input should be an integer or a string, of 1 to {MAX_ID_LENGTH} Unicode characters, {PATH_ID_IN_WORDS}",
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer"},
                {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH, "pattern": PATH_ID},
            ],
            "description": "your own item id; 50 is also '50'",
        }
    ),
]
Seconds = Annotated[
    int,
    _CheckedAs(
        Annotated[int, Field(ge=0, le=MAX_SECONDS)] | Annotated[_Whole, AfterValidator(_check_seconds)],
        "should be seconds since 1970 as an integer, not milliseconds",
    ),
    WithJsonSchema(
        {"type": "integer", "minimum": 0, "maximum": MAX_SECONDS, "description": "seconds since 1970-01-01 UTC"}
    ),
]
Count = Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)]
Values = Annotated[list[Text], Field(max_length=MAX_VALUES)]


class HistoryEvent(Schema):
    """One thing the user did."""

    item_id: ItemId
    timestamp: Seconds


class Filter(Schema):
    """What an item's attribute must and must not be."""

    any_of: Values = Field(default=[], description="one of these at least; empty: no demand")
    none_of: Values = Field(default=[], description="none of these")


class Whose(Schema):
    """A history in the request, or a user whose events the service keeps, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["history"], "properties": {"history": {"type": "array"}}},
                {"required": ["user_id"], "properties": {"user_id": {"type": "string"}}},
            ]
        }
    )
    history: list[HistoryEvent] | None = Field(
        None, max_length=MAX_EVENTS, description="in any order; beside a user_id only for when the store is down"
    )
    user_id: UserId | None = Field(None, description="instead of a history: the events sent to POST /events")
    request_time: Seconds | None = Field(None, description="when it will be shown; now, unless given")

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        if self.history is None and self.user_id is None:
            raise ValueError("give a history or a user_id")
        return self

    def read_history(self) -> list[Event] | None:
        """Return item ids and timestamps; raises InputError where the request's time lies before the last event."""
        if self.history is None:
            return None
        resolve_request_time([event.timestamp for event in self.history], self.request_time)
        return [(event.item_id, event.timestamp) for event in self.history]


class Filters(Schema):
    """Rules of the answer. Each one's effect is in the answer's `removed`."""

    exclude: list[ItemId] = Field(default=[], max_length=MAX_EVENTS, description="leave these out")
    allow: list[ItemId] | None = Field(None, max_length=MAX_CANDIDATES, description="only these")
    attributes: dict[Text, Filter] = Field(
        default={}, max_length=20, description='by attribute: {"genres": {"any_of": ["Comedy"]}}'
    )
    caps: dict[Text, Count] = Field(
        default={}, max_length=20, description="by attribute: items that may share a value of it"
    )
    first_seen_from: Seconds | None = Field(None, description="only items whose first event is not older")


class RecommendRequest(Filters, Whose):
    """Whom to recommend to, how much, and what to leave out."""

    k: Count = Field(10, description="how many items; fewer come back where fewer are left")
    exclude_seen: bool = Field(True, description="leave out what the history holds")


class RecommendBatchRequest(Schema):
    """Several requests; one that is wrong fails them all."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=MAX_REQUESTS)


class RankRequest(Whose):
    """Items of your own choice, to be scored."""

    candidates: list[ItemId] = Field(min_length=1, max_length=MAX_CANDIDATES, description="may repeat")


class SimilarRequest(Filters):
    """An item, and how many like it."""

    item_id: ItemId
    k: Count = 10


class UserEvent(HistoryEvent):
    """One thing a user did, to be kept."""

    event_id: Text = Field(description="your own, unique per user: sent again, the event counts once")


class EventsRequest(Schema):
    """Events of one user, kept all together or not at all."""

    user_id: UserId
    events: list[UserEvent] = Field(min_length=1, max_length=MAX_APPENDED, description="in any order")


class DescribedItem(Schema):
    """An item that training did not know, and what there is to say of it."""

    item_id: NewItemId
    title: str = Field(min_length=1, max_length=MAX_TITLE_LENGTH, description="with its year where other titles have")
    attributes: dict[Text, Values] = Field(
        default={}, max_length=20, description='values that other items have: {"genres": ["Comedy"]}'
    )


class ItemsRequest(Schema):
    """Items to be recommended from now on, all together or none."""

    items: list[DescribedItem] = Field(min_length=1, max_length=MAX_INSERTED, description="no id twice")


class ItemsQuery(BaseModel):
    """What to look for. Not strict: everything in a URL is text."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    query: str = Field("", max_length=200, description="words of a title; empty: what is popular")
    limit: int = Field(20, ge=1, le=100)
    with_attributes: bool = Field(False, description="say also which values the attributes of the catalogue have")


class ExplainRequest(Whose):
    """Items whose scores are to be explained."""

    item_ids: list[ItemId] = Field(min_length=1, max_length=20, description="may repeat")
