"""The relative bias on the CPU: added tile by tile, and its gradient taken back tile by tile.

The position bias of a plain causal tile is a window into the reversed table, one anti-diagonal per distance. The time bias is looked up by
bucket; buckets depend on the timestamps only and are computed once per batch (`TimeIndex`).

Shapes: G sequences of a group, H heads, R query rows and C key columns of a tile, N max_len.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bias import NUM_TIME_BUCKETS, RelativeBias, time_buckets_by_slice
from kernels.hstu_cpu_tiles import Tile, Visibility

# Neighbouring columns mostly share a bucket, and an addition that waits for the one before it takes 3.8 ns. Summing every
# eighth column into its own copy of the table takes 0.65 ns; looking up is as fast from eight copies as from one.
_NUM_LANES = 8
# Larger batches (many long sequences) compute their buckets anew for every layer: 2 ns a score instead of 128 MB and more.
_MAX_KEPT = 2**24


class TimeIndex:
    """The place in the eight-fold time table that each score of a batch takes its bias from."""

    def __init__(self, timestamps: Tensor, next_timestamps: Tensor, tiles: list[Tile]) -> None:
        self.timestamps, self.next_timestamps = timestamps, next_timestamps
        num_scores = sum(tile.num_scores // tile.group.num_heads for tile in tiles)
        self._kept: dict[Tile, Tensor] | None = {} if num_scores <= _MAX_KEPT else None

    def of(self, tile: Tile) -> Tensor:
        """Return (G*R*C,) int64."""
        if self._kept is None:
            return self._compute(tile)
        if tile not in self._kept:
            self._kept[tile] = self._compute(tile)
        return self._kept[tile]

    def _compute(self, tile: Tile) -> Tensor:
        rows, columns = tile.group.rows[:, tile.rows], tile.group.rows[:, tile.columns]
        gaps_GRC = self.next_timestamps[rows][:, :, None] - self.timestamps[columns][:, None, :]
        lane = torch.arange(columns.shape[1]) % _NUM_LANES
        return (time_buckets_by_slice(gaps_GRC) + lane * NUM_TIME_BUCKETS).flatten()


class BiasTiles:
    """One layer's bias, one tile at a time."""

    def __init__(self, bias: RelativeBias, time_index: TimeIndex | None, visibility: Visibility, max_len: int) -> None:
        self.time_index, self.visibility, self.max_len = time_index, visibility, max_len
        self.position_weight, self.time_weight = bias.position_weight, bias.time_weight
        self._time_lanes = None if bias.time_weight is None else bias.time_weight.detach().repeat(_NUM_LANES)
