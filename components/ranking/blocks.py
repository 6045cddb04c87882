"""Rank the whole catalogue for every target, in blocks of bounded memory.

Filtered: items of the user's whole history (not only of the model's last max_len events) are taken out of the ranking.
A target that is itself in the history, a repeat, stays in: it would otherwise be a miss whatever the model says.
Scores come from a `Scorer`, so a model and a popularity count are ranked by the same code.
Shapes: T targets of a block, X catalogue size, D width, L events of an encoder batch, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from components.console import Progress
from components.dataset import Batch, iterate_in_blocks, rows_of_ranges
from components.metrics import Ranks, rank_targets
from components.ranking.targets import Targets, find_encoder_windows

if TYPE_CHECKING:
    from components.model import SequenceModel

EVENTS_A_BATCH = 8_192  # activations of one encoder batch: about 8 KB an event at D = 50
_BYTES_A_SCORE = 8  # float32 score, its masked copy's byte mask, and the booleans of two comparisons


class Scorer(Protocol):
    """Scores the catalogue for some targets, from nothing but their histories and times."""

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X) float scores for targets with known items; the caller may overwrite them."""
        ...


class ModelScorer:
    """Cosine of encoded history and item vector."""

    def __init__(self, model: SequenceModel, max_len: int) -> None:
        self._model, self._max_len = model, max_len
        with torch.inference_mode():
            self._vectors_XD = model.item_vectors()

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        with torch.inference_mode():
            scores_TX: Tensor = encode_histories(self._model, targets, self._max_len) @ self._vectors_XD.T
        return scores_TX


class PopularityScorer:
    """The same score for everybody: how often each item occurred, (X,)."""

    def __init__(self, counts: np.ndarray) -> None:
        # Ranks of counts instead of counts: exact in float32, which counts above 2**24 are not.
        _, places = np.unique(counts, return_inverse=True)
        self._scores_X = torch.from_numpy(places).float()

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        return self._scores_X.repeat(len(targets), 1)


@torch.inference_mode()
def rank_catalogue(
    scorers: Mapping[str, Scorer], targets: Targets, num_items: int, *, block_bytes: int, what: str
) -> dict[str, dict[str, Ranks]]:
    """Rank each target by each scorer: {scorer: {"filtered": Ranks, "unfiltered": Ranks}} over all targets.

    A target whose item is unknown is a miss and never scored. `what` names the work on the progress line.
    """
    known = np.flatnonzero(targets.items >= 0)
    found: dict[str, dict[str, list[Ranks]]] = {name: {"filtered": [], "unfiltered": []} for name in scorers}
    block_size = max(1, block_bytes // (_BYTES_A_SCORE * num_items))
    with Progress(what, total=len(known)) as progress:
        for block in iterate_in_blocks(len(known), block_size):
            part = targets.take(known[block])
            seen_TX = mark_seen(part, num_items)
            for name, scorer in scorers.items():
                unfiltered, filtered = _rank_block(scorer(part), part, seen_TX)
                found[name]["unfiltered"].append(unfiltered)
                found[name]["filtered"].append(filtered)
            progress.advance(len(part))
    return {
        name: {kind: _spread(blocks, known, len(targets)) for kind, blocks in kinds.items()}
        for name, kinds in found.items()
    }


def mark_seen(targets: Targets, num_items: int) -> Tensor:
    """Return (T, X) bool: the item is in the target's history and is not the target."""
    seen_TX = np.zeros((len(targets), num_items), dtype=bool)
    for row, first, position in zip(seen_TX, targets.firsts, targets.positions, strict=True):
        row[targets.known_items[first:position]] = True
    seen_TX[np.arange(len(targets)), targets.items] = False
    return torch.from_numpy(seen_TX)


def encode_histories(
    model: SequenceModel, targets: Targets, max_len: int, *, events_a_batch: int = EVENTS_A_BATCH
) -> Tensor:
    """Return (T, D): each target's history, its last `max_len` known events, encoded for the target's time."""
    windows, window_of_target = find_encoder_windows(targets, max_len)
    device = next(model.parameters()).device
    vectors = []
    for chosen in _batches_of_windows(windows, events_a_batch):
        encoded_LD = model(_batch_windows(targets, windows[chosen]).to(device))
        first, stop = np.searchsorted(
            window_of_target, [chosen.start, chosen.stop]
        )  # targets and windows ascend together
        window = window_of_target[first:stop]
        offsets = np.cumsum([0, *np.diff(windows[chosen], axis=1)[:, 0]])
        rows = offsets[window - chosen.start] + targets.positions[first:stop] - 1 - windows[window, 0]
        vectors.append(encoded_LD[torch.from_numpy(rows).to(device)])
    return torch.cat(vectors)


def _batch_windows(targets: Targets, windows: np.ndarray) -> Batch:
    """Batch rows windows[w, 0]:windows[w, 1] of the known events; the event after a window's last is a target."""
    lengths = windows[:, 1] - windows[:, 0]
    rows = rows_of_ranges(windows[:, 0], lengths)
    return Batch(
        items=torch.from_numpy(targets.known_items[rows]),
        timestamps=torch.from_numpy(targets.known_timestamps[rows]),
        next_timestamps=torch.from_numpy(targets.known_timestamps[rows + 1]),
        offsets=torch.from_numpy(np.cumsum([0, *lengths])),
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


def _rank_block(scores_TX: Tensor, targets: Targets, seen_TX: Tensor) -> tuple[Ranks, Ranks]:
    """Rank without and with the filter; overwrites the scores."""
    items = torch.from_numpy(targets.items).to(scores_TX.device)
    unfiltered = rank_targets(scores_TX, items)
    scores_TX.masked_fill_(seen_TX.to(scores_TX.device), -torch.inf)
    return unfiltered, rank_targets(scores_TX, items)


def _spread(blocks: list[Ranks], known: np.ndarray, num_targets: int) -> Ranks:
    """Put the ranks of the known targets at their places among all; the others are misses."""
    above, tied = torch.full((num_targets,), -1), torch.zeros(num_targets, dtype=torch.int64)
    where = torch.from_numpy(known)
    if blocks:
        above[where] = torch.cat([ranks.above for ranks in blocks]).cpu()
        tied[where] = torch.cat([ranks.tied for ranks in blocks]).cpu()
    return Ranks(above, tied)
