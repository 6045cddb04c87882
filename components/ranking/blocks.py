"""Rank the whole catalogue for every target, in blocks of bounded memory.

Filtered: items of the user's whole history (not only of the model's last max_len events) are taken out of the ranking.
A target that is itself in the history, a repeat, stays in: it would otherwise be a miss whatever the model says.
Scores come from a `Scorer`, so a model and a popularity count are ranked by the same code; of a `WideScorer` a block
needs no whole row of scores, so a catalogue of any size fits (components/ranking/tiles.py counts).
Shapes: T targets of a block, X catalogue size, C items of a tile, D width, L events of an encoder batch, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeGuard

import numpy as np
import torch
from torch import Tensor

from components.console import Progress
from components.dataset import Batch, iterate_in_blocks, rows_of_ranges
from components.metrics import Ranks
from components.ranking.targets import Targets, find_encoder_windows
from components.ranking.tiles import BlockRanks, ScoreItems, SeenItems, Shape, choose_shape, rank_block

if TYPE_CHECKING:
    from components.model import SequenceModel

EVENTS_A_BATCH = 8_192  # activations of one encoder batch: about 8 KB an event at D = 50


class Scorer(Protocol):
    """Scores the catalogue for some targets, from nothing but their histories and times."""

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X) float scores for targets with known items; the caller may overwrite them."""
        ...


class WideScorer(Scorer, Protocol):
    """Also scores a part of the catalogue, as catalogues need of which a few rows of scores fill the memory."""

    def encode(self, targets: Targets) -> Any:  # noqa: ANN401 - what the scorer likes
        """Return what of the scores depends on the targets only."""
        ...

    def score_items(self, encoded: Any, items: slice | np.ndarray) -> Tensor:  # noqa: ANN401
        """Return (T, C): the scores of a range or a list of items; the caller may overwrite them."""
        ...


class Ranking(TypedDict):
    """What one scorer made of all targets; those with unknown items are misses, with empty top lists."""

    filtered: Ranks
    unfiltered: Ranks
    top: Tensor  # (T, K) int64, the filtered ranking's K best items, best first; -1 where there are fewer


class ModelScorer:
    """The model's own score of encoded history and item.

    One that looks at no request time may say so: whatever the targets' are, their histories then share windows.
    """

    def __init__(self, model: SequenceModel, max_len: int, *, uses_request_time: bool = True) -> None:
        self._model, self._max_len, self._uses_request_time = model, max_len, uses_request_time
        with torch.inference_mode():
            self._items = model.item_side()

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        with torch.inference_mode():
            return self._model.score(self.encode(targets), self._items)

    def encode(self, targets: Targets) -> Tensor:
        """Return (T, D)."""
        timed = targets if self._uses_request_time else targets.restore_request_times()
        with torch.inference_mode():
            return encode_histories(self._model, timed, self._max_len)

    def score_items(self, encoded: Tensor, items: slice | np.ndarray) -> Tensor:
        """Return (T, C)."""
        with torch.inference_mode():
            return self._model.score(encoded, tuple(part[items] for part in self._items))


@torch.inference_mode()
def rank_catalogue(
    scorers: Mapping[str, Scorer], targets: Targets, num_items: int, *, block_bytes: int, what: str, top: int = 0
) -> dict[str, Ranking]:
    """Rank each target by each scorer, and list the `top` best items of each filtered ranking.

    A target whose item is unknown is a miss and never scored. `what` names the work on the progress line, which counts
    a target once for each scorer.
    """
    known = np.flatnonzero(targets.items >= 0)
    found: dict[str, list[BlockRanks]] = {name: [] for name in scorers}
    with Progress(what, total=len(known) * len(scorers)) as progress:
        for shape, names in _share_out(scorers, num_items, block_bytes).items():
            for block in iterate_in_blocks(len(known), shape.rows):
                part = targets.take(known[block])
                seen = SeenItems(part)
                for name in names:
                    score = _scoring(scorers[name], part, is_whole=shape.width == num_items)
                    found[name].append(rank_block(score, part, seen, num_items, shape.width, top))
                    progress.advance(len(part))
    return {name: _spread(blocks, known, len(targets), top) for name, blocks in found.items()}


def _share_out(scorers: Mapping[str, Scorer], num_items: int, block_bytes: int) -> dict[Shape, list[str]]:
    """Give each scorer its tiles: those of one shape share blocks, and so the marks of what was seen."""
    names: dict[Shape, list[str]] = {}
    for name, scorer in scorers.items():
        shape = choose_shape(num_items, block_bytes, is_whole=not _is_wide(scorer))
        names.setdefault(shape, []).append(name)
    return names


def _is_wide(scorer: Scorer) -> TypeGuard[WideScorer]:
    return hasattr(scorer, "score_items")


def _scoring(scorer: Scorer, targets: Targets, *, is_whole: bool) -> ScoreItems:
    """Return what scores a range of items for a block; as wide as the catalogue by the scorer's plain call."""
    if not is_whole and _is_wide(scorer):
        return partial(scorer.score_items, scorer.encode(targets))
    return lambda _: scorer(targets)


def encode_histories(
    model: SequenceModel, targets: Targets, max_len: int, *, events_a_batch: int = EVENTS_A_BATCH
) -> Tensor:
    """Return (T, D): each target's history, its last `max_len` known events, encoded for its request time."""
    windows, window_of_target = find_encoder_windows(targets, max_len)
    request_times = targets.request_times[np.searchsorted(window_of_target, np.arange(len(windows)), side="right") - 1]
    device = next(model.parameters()).device
    vectors = []
    for chosen in _batches_of_windows(windows, events_a_batch):
        encoded_LD = model(_batch_windows(targets, windows[chosen], request_times[chosen]).to(device))
        first, stop = np.searchsorted(
            window_of_target, [chosen.start, chosen.stop]
        )  # targets and windows ascend together
        window = window_of_target[first:stop]
        offsets = np.cumsum([0, *np.diff(windows[chosen], axis=1)[:, 0]])
        rows = offsets[window - chosen.start] + targets.positions[first:stop] - 1 - windows[window, 0]
        vectors.append(encoded_LD[torch.from_numpy(rows).to(device)])
    return torch.cat(vectors)


def _batch_windows(targets: Targets, windows: np.ndarray, request_times: np.ndarray) -> Batch:
    """Batch rows windows[w, 0]:windows[w, 1] of the known events; the last of each is asked at request_times[w]."""
    lengths = windows[:, 1] - windows[:, 0]
    rows = rows_of_ranges(windows[:, 0], lengths)
    ends = np.cumsum(lengths)
    # A window's last event may be the log's last: what follows it is replaced anyway.
    next_timestamps = targets.known_timestamps[np.minimum(rows + 1, len(targets.known_timestamps) - 1)]
    next_timestamps[ends - 1] = request_times
    return Batch(
        items=torch.from_numpy(targets.known_items[rows]),
        timestamps=torch.from_numpy(targets.known_timestamps[rows]),
        next_timestamps=torch.from_numpy(next_timestamps),
        offsets=torch.from_numpy(np.append(0, ends)),
    )


def _batches_of_windows(windows: np.ndarray, events_a_batch: int) -> Iterator[slice]:
    """Group consecutive windows so that a group has at most `events_a_batch` events, or is one window."""
    start, events = 0, 0
    for index, length in enumerate(np.diff(windows, axis=1)[:, 0]):
        if index > start and events + length > events_a_batch:
            yield slice(start, index)
            start, events = index, 0
        events += length
    yield slice(start, len(windows))


def _spread(blocks: list[BlockRanks], known: np.ndarray, num_targets: int, top: int) -> Ranking:
    """Put what the known targets got at their places among all; the others are misses with empty lists."""
    where = torch.from_numpy(known)
    lists = torch.full((num_targets, top), -1)
    if blocks:
        lists[where] = torch.cat([block.top for block in blocks])
    return {
        "filtered": _spread_ranks([block.filtered for block in blocks], where, num_targets),
        "unfiltered": _spread_ranks([block.unfiltered for block in blocks], where, num_targets),
        "top": lists,
    }


def _spread_ranks(blocks: list[Ranks], where: Tensor, num_targets: int) -> Ranks:
    above, tied = torch.full((num_targets,), -1), torch.zeros(num_targets, dtype=torch.int64)
    if blocks:
        above[where] = torch.cat([ranks.above for ranks in blocks])
        tied[where] = torch.cat([ranks.tied for ranks in blocks])
    return Ranks(above, tied)
