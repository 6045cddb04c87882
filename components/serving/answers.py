"""What is answered: the bodies of all routes' answers, and so the other half of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

HistoryFrom = Annotated[
    Literal["request", "store", "request, store unreachable", "nowhere, store unreachable"],
    Field(description="whose history it was: with a user_id the store's, unless that could not be reached"),
]


class Answered(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


New = Annotated[bool, Field(exclude_if=lambda value: not value, description="inserted after training; else left out")]


class RecommendedItem(Answered):
    """One answer; `score` is null for a popular item."""

    item_id: int | str
    score: float | None
    title: str
    new: New = False


class ModelFacts(Answered):
    """Which code (`bento`) and which model (`tag`) answered, and how the gate judged it."""

    bento: str
    tag: str
    name: str
    protocol: str
    verdict: str
    data_hash: str
    git_commit: str


class ItemsAnswer(Answered):
    """Best item first."""

    items: list[RecommendedItem]
    unknown_items: list[int | str] = Field(description="named in the request, unknown to the model")
    removed: dict[str, int] = Field(description="rule -> items it kept out, each counted under the first such rule")
    model: ModelFacts


class RecommendAnswer(ItemsAnswer):
    """`source` is "popular" where the history held no item that the model knows."""

    source: Literal["model", "popular"]
    history_from: HistoryFrom


class RecommendBatchAnswer(Answered):
    """One answer a request, in their order."""

    answers: list[RecommendAnswer]


class RankedItem(TypedDict):
    """A candidate; `score` is null where the model does not know it, or nothing of the history.

    No model, because an answer may hold 10,000 of them: pydantic makes and checks 1,000 in 0.7 ms instead of 2.6.
    """

    item_id: int | str
    score: float | None


class RankAnswer(Answered):
    """The candidates, best first, equal ones in the order given, those without a score last."""

    items: list[RankedItem]
    unknown_items: list[int | str]
    source: Literal["model", "none"] = Field(description='"none": no known item in the history, so no scores')
    history_from: HistoryFrom
    model: ModelFacts


class EventsAnswer(Answered):
    """What became of the events: `new` ones are kept for good, `duplicates` had been there."""

    new: int
    duplicates: int


class InsertedAnswer(Answered):
    """What became of the items: all but `known` are kept for good."""

    new: int
    replaced: int = Field(description="inserted before, with other content")
    unchanged: int = Field(description="inserted before, as they are")
    known: list[int | str] = Field(description="ids that training knew; these items stay as they are")


class WithdrawnAnswer(Answered):
    """How many items were withdrawn."""

    withdrawn: int


class ForgottenAnswer(Answered):
    """How many events of the user there were; there are none now."""

    deleted: int


class ItemTableCost(Answered):
    """A quantized item table minus the float32 one, on the validation part: NDCG@10, paired by user."""

    ndcg_difference: float
    low: float
    high: float
    confidence: float
    top_10_overlap: float = Field(description="share of the ten best that stays")
    num_users: int
    num_targets: int
    part: str


class ItemTable(Answered):
    """How the item vectors were packaged; all but `values` where that is not float32."""

    values: Literal["float32", "int8", "int4"]
    outlier_share: float | None = Field(None, description="of all values, the largest: these are kept in float32")
    float32_bytes: int | None = None
    bytes: int | None = None
    cost: ItemTableCost | None = None


class ItemMapFacts(Answered):
    """How good the vectors of inserted items are, by cross-validation over the trained ones."""

    features: int
    strength: float = Field(description="of the ridge")
    spread: float = Field(description="factor away from the mean, so that new items are not shown too often")
    cosine: float = Field(description="of mapped and true vectors of held-out items, mean")
    cosine_of_mean: float = Field(description="the same of the mean vector: what knowing nothing gives")
    length: float = Field(description="factor of their scores, below 1 where they would be shown too often")


class Followed(Answered):
    """The champion, of a service that follows it."""

    tag: str | None = Field(description="of the champion's model; null where its pointer cannot be read")
    refused: str | None = Field(description="why it is not what is served; null: it is")


class Info(Answered):
    """What is served, and what evaluation said of it."""

    model: ModelFacts
    model_since: int = Field(description="seconds; when this model was loaded")
    champion: Followed | None = Field(description="null: the service was not told to follow it")
    metrics: dict[str, dict[str, float]] = Field(description="metric -> value, low, high: the test part's")
    item_table: ItemTable
    num_items: int = Field(description="with the inserted ones")
    num_new_items: int = Field(description="inserted after training")
    item_map: ItemMapFacts | None = Field(description="null: no items can be inserted into this model")
    max_len: int = Field(description="events of a history that the model reads")
    attributes: list[str] = Field(description="names that filters and caps may use")
    train_until: int | None = Field(description="seconds; the model has seen nothing later")


class Error(Answered):
    """What is wrong, where, and what to do."""

    error: str


class FoundItem(Answered):
    """An item of the catalogue."""

    item_id: int | str
    title: str
    new: New = False


class FoundAnswer(Answered):
    """Best match first."""

    items: list[FoundItem]
    attributes: dict[str, list[str]] = Field(
        default={}, description="name -> the 100 commonest values, ascending; only with `with_attributes`"
    )


class Reason(Answered):
    """A past event. `effect`: the score with it minus the score without it; null for an only event."""

    item_id: int | str
    title: str
    timestamp: int
    effect: float | None


class ExplainedItem(Answered):
    """An item; `score` is null where the model does not know it, or nothing of the history."""

    item_id: int | str
    score: float | None
    reasons: list[Reason] = Field(description="the three events of the strongest effect, the strongest first")


class ExplainAnswer(Answered):
    """The items in the order asked."""

    items: list[ExplainedItem]
    unknown_items: list[int | str]
    source: Literal["model", "none"] = Field(description='"none": no known item in the history, so no scores')
    history_from: HistoryFrom
    model: ModelFacts
