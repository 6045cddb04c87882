"""From a checkpoint to top-k: the one way a history becomes recommendations, offline and in the service.

    recommender = Recommender.load(Path("artifacts/checkpoints/time_split/hstu"))
    answer = recommender.recommend([(50, 881250949), (172, 881250950)], k=10, request_time=881260000)

Framework-free: torch and numpy.
Shapes: X items of the catalogue, D width, L events.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from components.catalogue import Catalogue, ItemId, NewItem, load_catalogue
from components.checkpoint import load_model
from components.dataset import make_batch
from components.errors import InputError, StateError
from components.model import HSTU, SequenceModel
from components.model.embedding import l2_normalize
from components.model.heads import DotHead
from components.model.incremental import Encoder
from components.serving.exposure import NUM_HISTORIES, Asked
from components.serving.rules import (
    Eligible,
    Rules,
    Selection,
    Wanted,
    apply,
    best_rows,
    check_k,
    scores_of_order,
    select,
)
from components.serving.search import EXACT_UP_TO, Search, build, make_histories

log = logging.getLogger("hstuflow.service")

Event = tuple[ItemId, int]  # the user's own item id, timestamp in seconds

_Choose = Callable[[Eligible, int, Mapping[str, int]], tuple[Selection, Sequence[float | None]]]  # of k, under caps


class UnknownItemError(InputError):
    """What is asked for is about an item that the catalogue lacks."""

    http_status = 404


class Wishes(TypedDict, total=False):
    """The rules of components/serving/rules.py, in the user's own item ids."""

    exclude_seen: bool
    exclude: Iterable[ItemId]
    allow: Iterable[ItemId] | None
    attributes: Mapping[str, Wanted]
    caps: Mapping[str, int]
    first_seen_from: int | None


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; a popular one has no score.

    `score` lies in [-1, 1]: the cosine of history and item, or with head mixture a weighted mean of several; of an
    inserted item times the `length` of its map (components/serving/item_map.py).
    """

    item_id: ItemId
    score: float | None
    title: str
    is_new: bool = False  # inserted after training


@dataclass(frozen=True)
class Answer:
    """Best item first. `unknown_items`: what the request named and the catalogue lacks, in order of appearance."""

    items: tuple[Recommendation, ...]
    unknown_items: tuple[ItemId, ...]
    source: Literal["model", "popular"]
    removed: dict[str, int]  # rule -> items of the catalogue that it kept out


class Recommender:
    """One immutable model, what its scores need of the items, its catalogue. Safe to call from several threads."""

    def __init__(
        self, model: SequenceModel, facts: dict[str, Any], catalogue: Catalogue, search: Search | None = None
    ) -> None:
        self.facts = facts  # checkpoint.json
        self.catalogue = catalogue
        self.max_len = int(facts["settings"]["max_len"])
        self.model = model
        self.search = search  # None: all items are scored
        self.encoder = Encoder(model) if isinstance(model, HSTU) else None
        with torch.inference_mode():
            self.vectors_XD = model.item_vectors()
            self._items = model.head.split_items(self.vectors_XD)  # of head dot these very vectors, not a copy
        self._popularity_X = scores_of_order(_popularity_order(facts["popular"], catalogue.counts))

    @classmethod
    def load(cls, checkpoint: Path, *, exact_up_to: int = EXACT_UP_TO) -> Recommender:
        """Load a checkpoint folder; a catalogue of more than `exact_up_to` items is searched approximately.

        Raises:
            StateError: it is missing or does not fit together.
        """
        model, facts = load_model(checkpoint)
        catalogue = load_catalogue(checkpoint, key_type=facts["split"]["key_type"])
        if len(catalogue.item_ids) != facts["num_items"]:
            raise StateError(
                "weights and catalogue differ",
                where=str(checkpoint),
                observed=f"{len(catalogue.item_ids)} rows in catalogue.parquet",
                expected=f"{facts['num_items']}",
                todo="Train again: `dvc repro`",
            )
        return cls(model, facts, catalogue, _open_search(model, facts, catalogue, exact_up_to))

    def with_items(self, items: Sequence[NewItem], rows_MD: Tensor, length: float = 1.0) -> Recommender:
        """Return a recommender that knows M more items, after its own; all trained weights are shared.

        Args:
            items: of ids that the catalogue lacks.
            rows_MD: their rows of the embedding table.
            length: factor of their scores, where the head is `dot`.

        Raises:
            InputError: an item has an attribute, or a value of one, that no item of ours has.
        """
        longer = copy.copy(self)
        longer.catalogue = self.catalogue.with_items(items)
        longer.model = _with_rows(self.model, rows_MD)
        if self.encoder is not None:
            longer.encoder = self.encoder.with_embedding(longer.model.embedding)
        with torch.inference_mode():
            vectors_MD = length * l2_normalize(rows_MD)
            longer.vectors_XD = torch.cat([self.vectors_XD, vectors_MD])
            side = zip(self._items, self.model.head.split_items(vectors_MD), strict=True)
            longer._items = tuple(
                longer.vectors_XD if ours is self.vectors_XD else torch.cat([ours, more]) for ours, more in side
            )
        first = len(self._popularity_X)  # nobody had them yet: after all others
        added = -np.arange(first, first + len(items), dtype=self._popularity_X.dtype)
        longer._popularity_X = np.concatenate([self._popularity_X, added])
        return longer

    def recommend(
        self,
        history: Sequence[Event],
        k: int,
        request_time: int | None = None,
        **rules: Unpack[Wishes],
    ) -> Answer:
        """Return the `k` best items for a history, fewer where the rules leave fewer.

        Events are ordered by time, equal times in the order given. Unknown items are skipped and reported; with no
        known event left the answer is what was popular. Equal scores are ordered by catalogue row.

        Args:
            history: events in any order.
            k: how many items, at least 1.
            request_time: seconds; the largest part of HSTU's gain over SASRec, so pass it. Without it the request
                comes right after the last event.
            rules: what the answer may hold; `exclude_seen` leaves out what the history holds, however old.

        Raises:
            InputError: k < 1, request_time lies before the last event, or a rule is wrong.
        """
        rows, times = self.read(history)
        when = resolve_request_time(times[-1:].tolist(), request_time)
        y_1D = self.encode(rows, times, when) if (rows >= 0).any() else None
        named = [item for item, _ in history] if (rows < 0).any() else []
        return self.answer(y_1D, rows, k, named=named, **rules)

    def read(self, history: Sequence[Event]) -> tuple[np.ndarray, np.ndarray]:
        """Return catalogue rows (L,), -1 for unknown items, and timestamps (L,), both int64 in time order."""
        events = sorted(history, key=itemgetter(1))
        rows = self.catalogue.find_all(item for item, _ in events)
        return rows, np.array([timestamp for _, timestamp in events], dtype=np.int64)

    def encode(self, rows: np.ndarray, timestamps: np.ndarray, request_time: int) -> Tensor:
        """Return (1, D): one history (L,) of rows in time order, with one known at least, as it is at `request_time`.

        Only its last `max_len` known events count.
        """
        if self.encoder is not None:
            window = np.flatnonzero(rows >= 0)[-self.max_len :]
            return self.encoder.encode(rows[window], timestamps[window], request_time)
        batch = make_batch([(rows, timestamps)], [request_time], max_len=self.max_len)
        with torch.inference_mode():
            y_1D: Tensor = self.model(batch)[-1:]
        return y_1D

    def score(self, y_1D: Tensor) -> np.ndarray:
        """Return the whole catalogue's scores for an encoded history, (X,) float32."""
        with torch.inference_mode():
            scores: np.ndarray = self.model.score(y_1D, self._items)[0].numpy()
        return scores

    def scores(self, rows: np.ndarray, timestamps: np.ndarray, request_time: int) -> np.ndarray:
        """Return `score` of what `encode` makes of these."""
        return self.score(self.encode(rows, timestamps, request_time))

    def answer(
        self,
        y_1D: Tensor | None,
        seen_rows: Sequence[int] | np.ndarray,
        k: int,
        *,
        named: Iterable[ItemId] = (),
        **wishes: Unpack[Wishes],
    ) -> Answer:
        """Return the `k` best items for an encoded history, popular ones without it.

        `named` is what the request mentions besides its rules, to be reported where it is unknown.

        Raises:
            InputError: k < 1 or a rule is wrong.
        """
        choose = self._choose_popular if y_1D is None else partial(self._choose, y_1D, self.score)
        return self._answer(choose, seen_rows, k, named, wishes, source="popular" if y_1D is None else "model")

    def rank(self, y_1D: Tensor | None, candidates: Sequence[ItemId]) -> tuple[float | None, ...]:
        """Return the score of each candidate: that of `answer`, whatever else is asked; None for an unknown item.

        Without an encoded history every score is None.
        """
        if y_1D is None:
            return (None,) * len(candidates)
        rows = self.catalogue.find_all(candidates)
        scores_C = self.score(y_1D)[rows] if self.search is None else self._cosines(y_1D, rows)
        pairs = zip(rows.tolist(), scores_C.tolist(), strict=True)
        return tuple(score if row >= 0 else None for row, score in pairs)

    def similar(self, item: ItemId, k: int, **wishes: Unpack[Wishes]) -> Answer:
        """Return the `k` items nearest to one by the cosine of their vectors, itself left out.

        Scores of inserted items are shorter by their map's length, as everywhere.

        Raises:
            UnknownItemError: the catalogue lacks the item.
            InputError: k < 1, or a rule is wrong.
        """
        row = self.catalogue.find(item)
        if row < 0:
            raise UnknownItemError("the model does not know this item", where="item_id", observed=repr(item)[:80])
        choose = partial(self._choose, l2_normalize(self.vectors_XD[row : row + 1]), self._all_cosines)
        left_out: Wishes = {"exclude_seen": False, "exclude": [item, *wishes.pop("exclude", ())]}
        return self._answer(choose, [], k, [], wishes | left_out, source="model")

    def ask_made(self, rows_N: np.ndarray | None = None) -> Asked | None:
        """Return made histories of these rows of the catalogue (None: all), whose numbers are then places in `rows_N`.

        None where the model's scores are no inner products of what is encoded and an item's vector.
        """
        if not isinstance(self.model.head, DotHead):
            return None
        rows_N = np.arange(len(self.vectors_XD)) if rows_N is None else rows_N
        made = make_histories(
            self.vectors_XD.numpy()[rows_N], self.catalogue.counts[rows_N], self.max_len, number=NUM_HISTORIES
        )
        y_QD = _encode_made(self.model, [(rows_N[places], times) for places, times in made], self.max_len)
        return Asked([places for places, _ in made], y_QD)

    def unknown(self, named: Iterable[ItemId]) -> tuple[ItemId, ...]:
        """Return those of `named` that the catalogue lacks, once each, in order of appearance."""
        return tuple(dict.fromkeys(item for item in named if self.catalogue.find(item) < 0))

    def _choose(
        self,
        query_1D: Tensor,
        score_all: Callable[[Tensor], np.ndarray],
        eligible: Eligible,
        k: int,
        caps: Mapping[str, int],
    ) -> tuple[Selection, list[float]]:
        """Choose the `k` best by exact scores: of what the search proposes, or of all items.

        Caps need all scores: they report how many items they kept out.
        """
        rows_C = None if self.search is None or caps else self.search.nominate(query_1D[0].numpy(), eligible, k)
        if rows_C is None:
            scores_X = score_all(query_1D)
            selection = select(scores_X, eligible, k, caps)
            chosen = np.array(selection.rows, dtype=np.int64)
            if self.search is None:
                return selection, scores_X[chosen].tolist()
            scores_K = self._cosines(query_1D, chosen)
            order = np.lexsort((chosen, -scores_K))  # the product that chose them rounds otherwise
            return Selection(chosen[order].tolist(), selection.passed_over), scores_K[order].tolist()
        scores_C = self._cosines(query_1D, rows_C)
        best = best_rows(scores_C, None, k)
        return Selection(rows_C[best].tolist(), {}), scores_C[best].tolist()

    def _cosines(self, query_1D: Tensor, rows: np.ndarray) -> np.ndarray:
        """Return the scores of rows (C,) by head dot, each the same to the last bit whatever is asked with it.

        A matrix product's last bits depend on its shape, so it cannot serve /recommend and /rank alike.
        """
        with torch.inference_mode():
            cosines_C: np.ndarray = (self.vectors_XD[torch.from_numpy(rows)] * query_1D).sum(1).numpy()
        return cosines_C

    def _all_cosines(self, vector_1D: Tensor) -> np.ndarray:
        cosines_X: np.ndarray = (self.vectors_XD @ vector_1D[0]).numpy()
        return cosines_X

    def _choose_popular(self, eligible: Eligible, k: int, caps: Mapping[str, int]) -> tuple[Selection, list[None]]:
        """Choose the `k` most popular; they have no scores."""
        selection = select(self._popularity_X, eligible, k, caps)
        return selection, [None] * len(selection.rows)

    def _answer(
        self,
        choose: _Choose,
        seen_rows: Sequence[int] | np.ndarray,
        k: int,
        named: Iterable[ItemId],
        wishes: Wishes,
        *,
        source: Literal["model", "popular"],
    ) -> Answer:
        check_k(k)
        rules, mentioned = self._rules(wishes)
        eligible = apply(rules, seen_rows, self.catalogue.attributes)
        selection, scores = choose(eligible, k, rules.caps)
        return Answer(
            items=tuple(map(self._item, selection.rows, scores)),
            unknown_items=self.unknown([*named, *mentioned]),
            source=source,
            removed=eligible.removed | {f"caps.{name}": count for name, count in selection.passed_over.items()},
        )

    def _rules(self, wishes: Wishes) -> tuple[Rules, list[ItemId]]:
        """Return the rules with catalogue rows in them, and the items they name."""
        exclude, allow = list(wishes.get("exclude", ())), wishes.get("allow")
        allowed = None if allow is None else list(allow)
        rules = Rules(
            exclude_seen=wishes.get("exclude_seen", True),
            exclude=[self.catalogue.find(item) for item in exclude],
            allow=None if allowed is None else [self.catalogue.find(item) for item in allowed],
            attributes=wishes.get("attributes", {}),
            caps=wishes.get("caps", {}),
            first_seen_from=wishes.get("first_seen_from"),
        )
        return rules, exclude + (allowed or [])

    def _item(self, row: int, score: float | None) -> Recommendation:
        catalogue = self.catalogue
        return Recommendation(catalogue.item_ids[row], score, catalogue.titles[row], row >= catalogue.num_trained)


def _with_rows(model: SequenceModel, rows_MD: Tensor) -> SequenceModel:
    """Return a model with more rows in its table that shares all the rest with `model`."""
    table_XD = torch.cat([model.embedding.item.weight.detach(), rows_MD])
    longer, embedding = copy.copy(model), copy.copy(model.embedding)
    item = nn.Embedding(len(table_XD), table_XD.shape[1], _weight=table_XD, _freeze=True)
    embedding._modules = {**embedding._modules, "item": item}  # copy.copy shares the dict
    longer._modules = {**longer._modules, "embedding": embedding}
    return longer


def resolve_request_time(timestamps: Sequence[int], request_time: int | None) -> int:
    """Return `request_time`, or the last event's time without one; raises InputError where it lies before that."""
    last = max(timestamps, default=0)
    if request_time is None:
        return last
    if timestamps and request_time < last:
        raise InputError(
            "request_time lies before the last event of the history",
            observed=request_time,
            expected=f"{last} or later",
            todo="Leave later events out, or ask for a later time",
        )
    return request_time


def _open_search(model: SequenceModel, facts: dict[str, Any], catalogue: Catalogue, exact_up_to: int) -> Search | None:
    """Return the search that this catalogue needs, None where all items are scored; says in the log which, and why."""
    num_items, max_len = len(catalogue.item_ids), int(facts["settings"]["max_len"])
    if num_items <= exact_up_to or not isinstance(model.head, DotHead):
        why = f"{num_items:,} items" if num_items <= exact_up_to else "a score of head mixture is no inner product"
        log.info("search: exact, because of %s", why)
        return None
    with torch.inference_mode():
        vectors_XD = model.item_vectors().numpy()
    histories = make_histories(vectors_XD, catalogue.counts, max_len)
    return build(vectors_XD, _encode_made(model, histories, max_len))


def _encode_made(model: SequenceModel, histories: Sequence[tuple[np.ndarray, np.ndarray]], max_len: int) -> np.ndarray:
    """Return (Q, D): made histories, asked for at their last event's next hour."""
    batch = make_batch(histories, [3_600 * len(rows) for rows, _ in histories], max_len=max_len)
    with torch.inference_mode():
        y_QD: np.ndarray = model(batch)[batch.offsets[1:] - 1].numpy()
    return y_QD


def _popularity_order(recent: Sequence[int], counts: np.ndarray) -> list[int]:
    """Return all rows: those popular in the last days of train first, then the others by their count in train."""
    rest = np.setdiff1d(np.arange(len(counts)), recent)
    return [*recent, *rest[np.argsort(-counts[rest], kind="stable")].tolist()]
