"""Relative attention bias: a learned number per distance in position, and one per bucket of elapsed time.

    rab_ij = position_weight[N - 1 + pos_j - pos_i] + time_weight[bucket(|next_timestamps_i - timestamps_j|)]

Source: hstu-spec section 2 (arXiv 2402.17152). Shapes: L rows of the batch, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

import torch
from torch import Tensor

NUM_TIME_BUCKETS = 129


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """What the bias of one layer is computed from; a table that is None adds nothing.

    position_weight is (2N-1,), time_weight (129,), shared by the heads. Row i takes next_timestamps[i], key j takes
    timestamps[j], both (L,) int64 seconds; they may be None where time_weight is.
    """

    position_weight: Tensor | None
    time_weight: Tensor | None
    timestamps: Tensor | None
    next_timestamps: Tensor | None
    cache: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    """What a backend derived from the timestamps alone, shared by the layers of a model (`with_tables`)."""

    def with_tables(self, position_weight: Tensor | None, time_weight: Tensor | None) -> RelativeBias:
        """Return the same timestamps with another layer's tables: their buckets are computed once per batch."""
        return replace(self, position_weight=position_weight, time_weight=time_weight)


def _integer_thresholds() -> tuple[int, ...]:
    """ceil(exp(0.301 b)) for b = 1..128, in decimal arithmetic so that every platform agrees to the last second.

    A float64 exp is not enough: past b = 122 the thresholds exceed 2^53.
    """
    with localcontext() as context:
        context.prec = 60
        powers = (Decimal("0.301") * b for b in range(1, NUM_TIME_BUCKETS))
        return tuple(int(power.exp().to_integral_value(ROUND_CEILING)) for power in powers)


TIME_THRESHOLDS = _integer_thresholds()


def time_buckets(gaps: Tensor) -> Tensor:
    """Return the bucket (0..128) of each time gap (int64 seconds, any sign): how many thresholds are <= max(|gap|, 1)."""
    thresholds = torch.tensor(TIME_THRESHOLDS, dtype=torch.int64, device=gaps.device)
    return torch.bucketize(gaps.abs(), thresholds, right=True)
