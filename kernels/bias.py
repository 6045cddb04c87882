"""Relative attention bias: a learned number per distance in position, and one per bucket of elapsed time.

    rab_ij = position_weight[N - 1 + pos_j - pos_i] + time_weight[bucket(|next_timestamps_i - timestamps_j|)]

Source: arXiv 2402.17152 and its implementation, meta-recsys/generative-recommenders.
Shapes: L rows of the batch, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """What the bias of one layer is computed from; a table that is None adds nothing.

    position_weight is (2N-1,), time_weight (129,), shared by the heads. Row i takes next_timestamps[i], key j takes
    timestamps[j], both (L,) int64 seconds less than 2^62 from 0; they may be None where time_weight is.
    """

    position_weight: Tensor | None
    time_weight: Tensor | None
    timestamps: Tensor | None
    next_timestamps: Tensor | None

    def with_tables(self, position_weight: Tensor | None, time_weight: Tensor | None) -> RelativeBias:
        """Return the same timestamps with another layer's tables: what is derived from those is made once per batch."""
        return replace(self, position_weight=position_weight, time_weight=time_weight)

    def times(self) -> tuple[Tensor, Tensor]:
        """Return (timestamps, next_timestamps).

        Raises:
            ValueError: one of them is missing, and time_weight needs it.
        """
        if self.timestamps is None or self.next_timestamps is None:
            raise ValueError("time_weight was given without timestamps and next_timestamps")
        return self.timestamps, self.next_timestamps
