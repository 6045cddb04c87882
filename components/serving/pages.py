"""The page at `/` where a person tries the model, and the two routes behind it: GET /items and POST /explain.

The page is hand-written HTML, CSS and ES modules in components/serving/page: no build step, nothing from elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import FileResponse

from components.serving.answers import (
    ExplainAnswer,
    ExplainedItem,
    FoundAnswer,
    FoundItem,
    Reason,
)
from components.serving.reasons import Explanation, explain
from components.serving.requests import ExplainRequest, ItemsQuery
from components.serving.wording import refusals

if TYPE_CHECKING:
    from components.catalogue import Catalogue, NewItem
    from components.serving.app import Served
    from components.serving.attributes import Attribute

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/service.js": ("service.js", "text/javascript"),
    "/address.js": ("address.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file and media type. They hold no secret, so RequestGuard lets them pass without a token."""

MAX_VALUES = 100  # of one attribute: more make no chips, and an attribute may have as many values as there are items

_FOLDER = Path(__file__).parent / "page"
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI, served: Callable[[], Served]) -> None:
    """Add the page, its files, and the routes that it asks beside those of components/serving/app.py."""
    for path, (name, media_type) in PAGE_FILES.items():
        app.add_route(path, _sender(_FOLDER / name, media_type), include_in_schema=False)

    @app.get("/items", responses=refusals(400, 401, 429, 504), response_model_exclude_unset=True)
    def items(asked: Annotated[ItemsQuery, Query()]) -> FoundAnswer:
        """Find items by the words of their titles; without words, the most popular ones."""
        here = served()
        finder, catalogue = here.titles, here.engine.recommender.catalogue
        rows = finder.find(asked.query, asked.limit, catalogue.new)
        found = [_found(row, catalogue) for row in rows]
        return FoundAnswer(items=found, attributes=finder.values) if asked.with_attributes else FoundAnswer(items=found)

    @app.post("/explain", responses=refusals(400, 401, 413, 415, 429, 503, 504))
    def explained(request: ExplainRequest) -> ExplainAnswer:
        """Say which past events moved the scores of some items most.

        The effect of an event is the score with it minus the score without it, of each of the latest 50 events. That
        is leave-one-out influence, no causal claim; effects do not add up.
        """
        return _explain(served(), request)


class TitleFinder:
    """A catalogue's titles, folded once (0.1 s for 100,000), and the values of its attributes. Immutable."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._rows: list[int] = np.argsort(-catalogue.counts, kind="stable").tolist()  # the most popular first
        self._titles = [_fold(catalogue.titles[row]) for row in self._rows]
        names = catalogue.attributes.names
        self.values = {name: _common_values(catalogue.attributes.attribute(name)) for name in names}

    def find(self, query: str, limit: int, new: Sequence[NewItem] = ()) -> list[int]:
        """Return catalogue rows of up to `limit` titles that hold every word of `query`, in any case and accent.

        Those that begin with the query come first, then the popular ones; equally popular ones by catalogue row.
        `new`: items after the trained ones, which nobody had yet.
        """
        phrase, rows, titles = _fold(query), self._rows, self._titles
        if new:
            rows = rows + list(range(len(rows), len(rows) + len(new)))
            titles = titles + [_fold(item.title) for item in new]
        places: Sequence[int] = range(len(titles))
        for word in sorted(phrase.split(), key=len, reverse=True):  # a long word rules out most titles at once
            places = [place for place in places if word in titles[place]]
        begin = (place for place in places if titles[place].startswith(phrase))
        others = (place for place in places if not titles[place].startswith(phrase))
        return [rows[place] for place in islice(chain(begin, others), limit)]


def _fold(text: str) -> str:
    """Return a text without case, accents and spaces beyond one between words."""
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(text.casefold().split())


def _common_values(attribute: Attribute) -> list[str]:
    """Return the values of most items, ascending, at most MAX_VALUES."""
    items_S = np.bincount(attribute.sets_X, minlength=attribute.num_sets)
    items_V = np.array([items_S[attribute.sets_with(v)].sum() for v in range(len(attribute.known))])
    most = np.argsort(-items_V, kind="stable")[:MAX_VALUES]
    return [attribute.known[v] for v in sorted(most)]


def _explain(here: Served, request: ExplainRequest) -> ExplainAnswer:
    found = here.engine.read(request.read_history(), request.user_id, request.request_time)
    recommender, catalogue = found.recommender, found.recommender.catalogue
    items = [catalogue.find(item) for item in request.item_ids]
    with here.engine.turn:
        explanations = explain(recommender, found.rows, found.timestamps, found.request_time, items)
    return ExplainAnswer(
        items=[_render(item, one, catalogue) for item, one in zip(request.item_ids, explanations, strict=True)],
        unknown_items=list(recommender.unknown([*found.named, *request.item_ids])),
        source="model" if found.is_known else "none",
        history_from=found.history_from,
        model=here.facts,
    )


def _found(row: int, catalogue: Catalogue) -> FoundItem:
    is_new = row >= catalogue.num_trained
    return FoundItem(item_id=catalogue.item_ids[row], title=catalogue.titles[row], new=is_new)


def _render(item: int | str, explanation: Explanation, catalogue: Catalogue) -> ExplainedItem:
    reasons = [
        Reason(
            item_id=catalogue.item_ids[reason.row],
            title=catalogue.titles[reason.row],
            timestamp=reason.timestamp,
            effect=reason.effect,
        )
        for reason in explanation.reasons
    ]
    return ExplainedItem(item_id=item, score=explanation.score, reasons=reasons)


def _sender(file: Path, media_type: str) -> Callable[[Request], Awaitable[FileResponse]]:
    async def send(_: Request) -> FileResponse:
        return FileResponse(file, media_type=media_type, headers=_HEADERS)

    return send
