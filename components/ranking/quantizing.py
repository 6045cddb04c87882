"""What a quantized item table costs: the same users ranked with it and without, on the validation part.

Not on the test part, which is read once, for the verdict: how small a table may be is a choice, and choices are made on
validation. So the model is the one from before a refit, which has not seen these events; the packaged one is it trained
on, its table quantized the same way. Shapes: T targets, U users, K the ten best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from components.dataset import Sequences
from components.errors import StateError
from components.metrics import average_by_user, expected_ndcg
from components.ranking.blocks import ModelScorer, rank_catalogue
from components.ranking.paired import compare_users
from components.ranking.targets import choose_evenly, find_targets

if TYPE_CHECKING:
    from components.model import SequenceModel

CUTOFF = 10
MAX_TARGETS = 20_000
_BLOCK_BYTES, _SAMPLES, _CONFIDENCE, _SEED = 2**25, 1_000, 0.95, 0


class Cost(TypedDict):
    """Quantized minus float32, paired by user, and how much of the float32 model's ten best stays."""

    ndcg_difference: float
    low: float
    high: float
    confidence: float
    top_10_overlap: float  # mean over targets, 1: the same items
    num_users: int
    num_targets: int
    part: str


def measure_cost(
    models: Mapping[str, SequenceModel], sequences: Sequences, max_len: int, *, part: str = "valid"
) -> Cost:
    """Compare models["float32"] with models["quantized"] on a part, or an even choice of its targets.

    Raises:
        StateError: no event of the part has a history.
    """
    targets = find_targets(sequences, part)
    if len(targets) == 0:
        raise StateError(
            f"no event of the {part} part has a history, so what a quantized table costs cannot be measured",
            todo="Set package.item_table to float32 in params.yaml, or ingest a longer log",
        )
    targets = targets.take(choose_evenly(targets, MAX_TARGETS))
    scorers = {name: ModelScorer(model, max_len) for name, model in models.items()}
    what = "ranking with the quantized table"
    rankings = rank_catalogue(scorers, targets, sequences.num_items, block_bytes=_BLOCK_BYTES, what=what, top=CUTOFF)
    users_T = torch.from_numpy(targets.users)
    ndcg = {
        name: average_by_user(expected_ndcg(found["filtered"], CUTOFF), users_T)[1] for name, found in rankings.items()
    }
    paired = compare_users(ndcg["quantized"], ndcg["float32"], samples=_SAMPLES, confidence=_CONFIDENCE, seed=_SEED)
    return Cost(
        ndcg_difference=paired.difference,
        low=paired.low,
        high=paired.high,
        confidence=_CONFIDENCE,
        top_10_overlap=round(_overlap(rankings["quantized"]["top"], rankings["float32"]["top"]), 4),
        num_users=paired.num_users,
        num_targets=len(targets),
        part=part,
    )


def _overlap(a_TK: Tensor, b_TK: Tensor) -> float:
    """Return the mean share of b's items that a has too; targets without lists (-1) left out."""
    is_item_TK = b_TK >= 0
    is_shared_TK = (b_TK[:, :, None] == a_TK[:, None, :]).any(2) & is_item_TK
    has_list_T = is_item_TK.any(1)
    shares_T = is_shared_TK.sum(1)[has_list_T].double() / is_item_TK.sum(1)[has_list_T]
    return float(shares_T.mean()) if len(shares_T) else 1.0
