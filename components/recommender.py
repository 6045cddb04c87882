"""From a checkpoint to top-k: the one way a history becomes recommendations, offline and in the service.

    recommender = Recommender.load(Path("artifacts/checkpoints/time_split/hstu"))
    answer = recommender.recommend([(50, 881250949), (172, 881250950)], k=10, request_time=881260000)

Framework-free: torch and numpy; safetensors and pyarrow only to read the folder.
Shapes: X items of the catalogue, D width, L events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from components.dataset import make_batch
from components.errors import InputError, StateError
from components.files import read_json, reading
from components.model import SequenceModel, build_model

if TYPE_CHECKING:
    from components.settings import TrainSettings

ItemId = int | str
Event = tuple[ItemId, int]  # the user's own item id, timestamp in seconds

_NEEDED = ("model", "settings", "num_items", "popular", "split")
# Keys of train.<model> that checkpoints of earlier versions lack, with the value that means what those did.
_SINCE_THEN = {
    "bias_per_head": False,
    "attention": "pointwise",
    "gated_residual": False,
    "head": "dot",
    "mixture_query_vectors": 1,
    "mixture_item_vectors": 1,
    "request_time_dropout": 0.0,
}


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; a popular one has no score.

    `score` lies in [-1, 1]: the cosine of history and item, or with head mixture a weighted mean of several.
    """

    item_id: ItemId
    score: float | None
    title: str


@dataclass(frozen=True)
class Answer:
    """Best item first. `unknown_items`: what the request named and the catalogue lacks, in order of appearance."""

    items: tuple[Recommendation, ...]
    unknown_items: tuple[ItemId, ...]
    source: Literal["model", "popular"]


@dataclass(frozen=True)
class Catalogue:
    """The items a model knows; row r is the item with index r."""

    item_ids: tuple[ItemId, ...]  # as the log had them: strings, or ints
    titles: tuple[str, ...]
    counts: np.ndarray  # (X,) int64, events in train
    rows: dict[str, int]  # an id's text -> row

    def find(self, item_id: ItemId) -> int:
        """Return the row of `item_id`, -1 where it is unknown.

        An id is its text: 50 and "50" are one item, because clients turn numbers into strings and back.
        """
        return self.rows.get(str(item_id), -1)


def load_model(checkpoint: Path, *, selected: bool = False) -> tuple[SequenceModel, dict[str, Any]]:
    """Return the model of a checkpoint folder in evaluation mode, and checkpoint.json.

    `selected`: as it was before a refit, if there was one: the only one that validation may judge.

    Raises:
        StateError: the folder is missing, is no checkpoint, or its weights belong to another model.
    """
    from safetensors import SafetensorError  # not on the bare GPU machine
    from safetensors.torch import load_file

    facts = _read_facts(checkpoint)
    # The backend is a matter of this machine, not of the one that trained: a Triton checkpoint also serves on a CPU.
    earlier = _SINCE_THEN | {"feed_forward": "gelu" if facts["model"] == "sasrec" else "none"}
    settings = SimpleNamespace(**(earlier | facts["settings"] | {"backend": "auto"}))
    model = build_model(facts["model"], cast("TrainSettings", settings), facts["num_items"])
    is_refit = bool(facts.get("refit_epochs"))
    weights = checkpoint / ("selected.safetensors" if selected and is_refit else "weights.safetensors")
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except FileNotFoundError:
        raise StateError("is missing", where=str(weights), todo="Run `dvc repro`") from None
    except (SafetensorError, RuntimeError) as error:
        raise StateError(
            "does not fit the model that checkpoint.json describes",
            where=str(weights),
            observed=str(error)[:200],
            todo="Train again: `dvc repro`",
        ) from error
    return model.eval(), facts


def load_catalogue(checkpoint: Path, *, key_type: str) -> Catalogue:
    """Read the catalogue that lies beside the weights; `key_type` says whether ids are ints or strings."""
    import pyarrow.parquet as pq  # not on the bare GPU machine

    file = checkpoint / "catalogue.parquet"
    with reading(file, todo="Run `dvc repro`"):
        table = pq.read_table(file, columns=["key", "title", "count"])
    keys = table["key"].to_pylist()
    return Catalogue(
        item_ids=tuple(map(int, keys)) if key_type == "int" else tuple(keys),
        titles=tuple(table["title"].to_pylist()),
        counts=table["count"].to_numpy(),
        rows={key: row for row, key in enumerate(keys)},
    )


class Recommender:
    """One immutable model, what its scores need of the items, its catalogue. Safe to call from several threads."""

    def __init__(self, model: SequenceModel, facts: dict[str, Any], catalogue: Catalogue) -> None:
        self.facts = facts  # checkpoint.json
        self.catalogue = catalogue
        self.max_len = int(facts["settings"]["max_len"])
        self._model = model
        with torch.inference_mode():
            self._items = model.item_side()
        self._popular = _popularity_order(facts["popular"], catalogue.counts)

    @classmethod
    def load(cls, checkpoint: Path) -> Recommender:
        """Load a checkpoint folder; raises StateError where it is missing or does not fit together."""
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
        return cls(model, facts, catalogue)

    def recommend(
        self,
        history: Sequence[Event],
        k: int,
        request_time: int | None = None,
        *,
        exclude_seen: bool = True,
        exclude: Iterable[ItemId] = (),
    ) -> Answer:
        """Return the `k` best items for a history, fewer where exclusions leave fewer.

        Events are ordered by time, equal times in the order given. Unknown items are skipped and reported; with no
        known event left the answer is what was popular. Equal scores are ordered by catalogue row.

        Args:
            history: events in any order.
            k: how many items, at least 1.
            request_time: seconds; the largest part of HSTU's gain over SASRec, so pass it. Without it the request
                comes right after the last event.
            exclude_seen: leave out what the history holds, however old.
            exclude: further items to leave out.

        Raises:
            InputError: k < 1, or request_time lies before the last event.
        """
        if k < 1:
            raise InputError("k is out of range", observed=k, expected="1 or more")
        events = sorted(history, key=lambda event: event[1])
        when = resolve_request_time([timestamp for _, timestamp in events], request_time)
        excluded = list(exclude)
        rows = np.array([self.catalogue.find(item) for item, _ in events], dtype=np.int64)
        banned = [self.catalogue.find(item) for item in excluded] + (rows.tolist() if exclude_seen else [])
        named = [item for item, _ in history] + excluded
        unknown = tuple(dict.fromkeys(item for item in named if self.catalogue.find(item) < 0))
        if not (rows >= 0).any():
            return Answer(self._most_popular(k, banned), unknown, "popular")
        times = np.array([timestamp for _, timestamp in events], dtype=np.int64)
        return Answer(self._best(self.scores(rows, times, when), k, banned), unknown, "model")

    def scores(self, rows: np.ndarray, timestamps: np.ndarray, request_time: int) -> np.ndarray:
        """Score the whole catalogue, (X,) float32, for one history (L,) of rows in time order with one known at least.

        Only its last `max_len` known events count.
        """
        batch = make_batch([(rows, timestamps)], [request_time], max_len=self.max_len)
        with torch.inference_mode():
            scores: np.ndarray = self._model.score(self._model(batch)[-1:], self._items)[0].numpy()
        return scores

    def _best(self, scores: np.ndarray, k: int, banned: Sequence[int]) -> tuple[Recommendation, ...]:
        allowed = np.ones(len(scores), dtype=bool)
        allowed[[row for row in banned if row >= 0]] = False
        return tuple(self._item(row, float(scores[row])) for row in top_rows(scores, np.flatnonzero(allowed), k))

    def _most_popular(self, k: int, banned: Sequence[int]) -> tuple[Recommendation, ...]:
        left_out = set(banned)
        rows = [row for row in self._popular if row not in left_out][:k]
        return tuple(self._item(row, None) for row in rows)

    def _item(self, row: int, score: float | None) -> Recommendation:
        return Recommendation(self.catalogue.item_ids[row], score, self.catalogue.titles[row])


def top_rows(scores: np.ndarray, rows: np.ndarray, k: int) -> list[int]:
    """Return the `k` of `rows` (ascending) with the highest scores, best first, ties by row.

    Only what reaches the k-th best score is sorted: O(X) instead of O(X log X), and ties at the cut stay deterministic.
    """
    kept = scores[rows]
    if k < len(rows):
        threshold = np.partition(kept, -k)[-k]
        rows, kept = rows[kept >= threshold], kept[kept >= threshold]
    best: list[int] = rows[np.argsort(-kept, kind="stable")[:k]].tolist()
    return best


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


def _popularity_order(recent: Sequence[int], counts: np.ndarray) -> list[int]:
    """Return all rows: those popular in the last days of train first, then the others by their count in train."""
    rest = np.setdiff1d(np.arange(len(counts)), recent)
    return [*recent, *rest[np.argsort(-counts[rest], kind="stable")].tolist()]


def _read_facts(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / "checkpoint.json"
    with reading(file, todo="Run `dvc repro`"):
        facts: dict[str, Any] = read_json(file)
    missing = [key for key in _NEEDED if key not in facts] if isinstance(facts, dict) else list(_NEEDED)
    if missing:
        raise StateError("is not a checkpoint of hstuflow", where=str(file), expected=f"the keys {', '.join(missing)}")
    return facts
