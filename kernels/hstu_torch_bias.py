"""The relative bias in plain torch: written into the scores tile by tile, and its gradient gathered tile by tile.

Position: a tile of a causal sequence is a window sliding over the table, so one copy fills it and one sum per diagonal
gives the gradient. Time: buckets depend on the timestamps only; `TimeIndex` computes them once for all layers.

Shapes: G sequences of a group, H heads, K = H * G, R query rows and C key columns of a tile, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.hstu_torch_tiles import Tile
from kernels.time_buckets import NUM_TIME_BUCKETS, fast_time_buckets

# Neighbouring columns mostly share a bucket, and an addition that waits for the one before it takes 3.8 ns. Adding
# every eighth column to its own copy of the table takes 0.7 ns; looking up is as fast from eight copies as from one.
_NUM_LANES = 8
# Past this many scores (128 MB of indices) buckets are computed anew in every layer, at 4 ns a score.
_MAX_KEPT = 2**24


class TimeIndex:
    """Where each score of a batch finds its bias in eight copies of the time table."""

    def __init__(self, bias: RelativeBias, tiles: list[Tile]) -> None:
        self.timestamps, self.next_timestamps = bias.times()
        self._keeps = sum(tile.num_pairs for tile in tiles) <= _MAX_KEPT
        self._kept: dict[Tile, Tensor] = {}

    def of(self, tile: Tile) -> Tensor:
        """Return (G*R*C,) int64, entry = bucket + 129 * lane."""
        if tile in self._kept:
            return self._kept[tile]
        rows, columns = tile.group.rows[:, tile.rows], tile.group.rows[:, tile.columns]
        gaps_GRC = self.next_timestamps[rows][:, :, None] - self.timestamps[columns][:, None, :]
        lane = torch.arange(columns.shape[1], device=columns.device) % _NUM_LANES
        index = fast_time_buckets(gaps_GRC).add_(lane * NUM_TIME_BUCKETS).flatten()
        if self._keeps:
            self._kept[tile] = index
        return index


@dataclass(frozen=True, eq=False)
class PositionBias:
    """position_weight[N - 1 + pos_j - pos_i]; with targets in use they all stand right after the history."""

    weight: Tensor  # (2N-1,)
    num_targets: Tensor | None  # (B,) int64

    def of(self, tile: Tile) -> Tensor:
        """Return (R, C), or (G, R, C) with targets."""
        if self.num_targets is not None:
            return self.weight[self._index(tile, self.num_targets)]
        num_columns = tile.columns.stop - tile.columns.start
        return self.weight.unfold(0, num_columns, 1)[self._first(tile) :][: tile.shape[1]].flip(0)

    def add_gradient(self, grad_weight: Tensor, grad_GRC: Tensor, tile: Tile) -> None:
        """Add to (2N-1,) what the scores of `tile` contribute."""
        if self.num_targets is not None:
            index = self._index(tile, self.num_targets).flatten()
            grad_weight.index_add_(0, index, grad_GRC.flatten().to(grad_weight.dtype))
            return
        diagonals = _diagonal_sums(grad_GRC.sum(0))
        grad_weight[self._first(tile) :][: len(diagonals)] += diagonals

    def _first(self, tile: Tile) -> int:
        """Return the table's entry for the tile's last row and first column: the most distant pair."""
        first: int = (len(self.weight) + 1) // 2 - tile.rows.stop + tile.columns.start
        return first

    def _index(self, tile: Tile, num_targets: Tensor) -> Tensor:
        group = tile.group
        history_end = group.lengths - num_targets[group.sequences]
        position = torch.minimum(torch.arange(group.longest, device=history_end.device), history_end[:, None])
        return len(self.weight) // 2 + position[:, None, tile.columns] - position[:, tile.rows, None]


@dataclass(frozen=True, eq=False)
class TimeBias:
    """time_weight[bucket(|next_timestamps_i - timestamps_j|)]."""

    weight: Tensor  # (129,)
    index: TimeIndex
    _lanes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lanes", self.weight.repeat(_NUM_LANES))

    def write(self, scores_GRC: Tensor, tile: Tile) -> None:
        """Overwrite contiguous scores with the bias."""
        torch.index_select(self._lanes, 0, self.index.of(tile), out=scores_GRC.view(-1))

    def add_gradient(self, grad_weight: Tensor, grad_GRC: Tensor, tile: Tile) -> None:
        """Add to (129,) what the scores of `tile` contribute."""
        lanes = torch.zeros_like(self._lanes).scatter_add_(0, self.index.of(tile), grad_GRC.flatten())
        grad_weight += lanes.view(_NUM_LANES, -1).sum(0)


@dataclass(frozen=True, eq=False)
class TileBias:
    """Both parts together, each of which may be missing."""

    position: PositionBias | None
    time: TimeBias | None

    def write(self, scores_KRC: Tensor, tile: Tile) -> bool:
        """Overwrite the scores with the bias, the same for all heads; False, and untouched, where there is none."""
        if self.position is None and self.time is None:
            return False
        scores_HGRC = scores_KRC.view(tile.group.num_heads, *tile.shape)
        if self.time is not None:
            self.time.write(scores_HGRC[0], tile)
            if self.position is not None:
                scores_HGRC[0] += self.position.of(tile)
        elif self.position is not None:
            scores_HGRC[0] = self.position.of(tile)
        scores_HGRC[1:] = scores_HGRC[0]
        return True


class BiasGradients:
    """Gradients of the two tables, summed over tiles in float64: a bucket collects up to a million terms a batch."""

    def __init__(self, bias: TileBias, wanted: tuple[bool, bool]) -> None:
        self._parts: list[tuple[PositionBias | TimeBias, Tensor] | None] = [
            (part, torch.zeros_like(part.weight, dtype=torch.float64)) if part is not None and want else None
            for part, want in zip((bias.position, bias.time), wanted, strict=True)
        ]

    def add(self, grad_scores_KRC: Tensor, tile: Tile) -> None:
        """Add what the scores of `tile` contribute."""
        if not any(self._parts):
            return
        grad_HGRC = grad_scores_KRC.view(tile.group.num_heads, *tile.shape)
        grad_GRC = grad_HGRC[0] if len(grad_HGRC) == 1 else grad_HGRC.sum(0)
        for part in self._parts:
            if part is not None:
                bias, grad_weight = part
                bias.add_gradient(grad_weight, grad_GRC, tile)

    def tables(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of position_weight and time_weight, in their own dtype; None where not wanted."""
        return tuple(part and part[1].to(part[0].weight.dtype) for part in self._parts)


def _diagonal_sums(x_RC: Tensor) -> Tensor:
    """Return (R+C-1,): sums over the diagonals of constant column minus row, the lower left corner first.

    Reversed rows, written R+C apart and read R+C-1 apart, shift by one place each: diagonals become columns.
    """
    num_rows, num_columns = x_RC.shape
    skewed = x_RC.new_zeros(num_rows, num_rows + num_columns)
    skewed[:, :num_columns] = x_RC.flip(0)
    width = num_rows + num_columns - 1
    return skewed.view(-1)[: num_rows * width].view(num_rows, width).sum(0)
