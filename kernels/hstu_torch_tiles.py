"""The torch path's unit of work: a tile of query rows against the key columns they may see, and the mask within it.

Shapes: G sequences of a group, H heads, K = H * G, n rows of its longest, R query rows and C key columns of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.length_groups import LengthGroup

# One core, batch 128, at most 200 events: forward and backward take 37 ms, 44 ms with 32 rows (more, smaller products).
# Larger tiles are no faster there, and compute more above the diagonal the longer the sequences are.
_ROWS_PER_TILE = 64


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows a:b against columns c:d of every sequence and head of a group."""

    group: LengthGroup
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, R, C)."""
        return len(self.group.rows), self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def num_pairs(self) -> int:
        """G * R * C."""
        return math.prod(self.shape)

    @property
    def num_scores(self) -> int:
        """K * R * C."""
        return self.group.num_heads * self.num_pairs

    def scores(self, workspace: Tensor) -> Tensor:
        """Return the start of a flat workspace as (K, R, C)."""
        return workspace[: self.num_scores].view(-1, *self.shape[1:])


@dataclass(frozen=True, eq=False)
class Visibility:
    """Who sees whom, as `attention_mask` has it; plain causal when there are no targets, no context and no window."""

    num_targets: Tensor | None  # (B,) int64
    num_context: int
    window: int

    @property
    def is_causal(self) -> bool:
        """Whether j <= i is the whole mask."""
        return self.num_targets is None and not self.num_context and not self.window

    def tiles(self, group: LengthGroup) -> list[Tile]:
        """Cut a group into tiles of at most 64 rows, without the columns that none of their rows can see."""
        return [Tile(group, rows, self._columns(rows, group.longest)) for rows in _even_cuts(group.longest)]

    def _columns(self, rows: slice, longest: int) -> slice:
        if rows.start < self.num_context:
            return slice(0, longest)
        only_window = self.window and not self.num_context and self.num_targets is None
        return slice(max(0, rows.start - self.window) if only_window else 0, rows.stop)

    def hide(self, scores_KRC: Tensor, tile: Tile) -> None:
        """Set what is not visible to 0, in place."""
        if self.is_causal:
            scores_KRC.tril_(tile.rows.start - tile.columns.start)
        else:
            scores_HGRC = scores_KRC.view(tile.group.num_heads, *tile.shape)
            scores_HGRC.mul_(self._allowed(tile).to(scores_KRC.dtype))

    def _allowed(self, tile: Tile) -> Tensor:
        """Return (G, R, C) bool; padding columns are hidden, padding rows are arbitrary."""
        place = torch.arange(tile.group.longest, device=tile.group.lengths.device)
        target_id = self.target_ids(tile.group)
        identity = (place - self.num_context + 1).clamp(min=0) if self.num_context else place
        identity = torch.minimum(identity, target_id)
        row_id, column_id = identity[:, tile.rows, None], identity[:, None, tile.columns]
        allowed = (row_id > column_id) | (place[tile.rows, None] == place[None, tile.columns])
        if self.window:
            allowed &= row_id - column_id <= self.window
        if self.num_context:
            allowed |= (row_id == 0) & (column_id < target_id[:, :, None])
        return allowed

    def target_ids(self, group: LengthGroup) -> Tensor:
        """Return (G, 1) int64: the id of every target row, and of padding."""
        ids = group.lengths - max(self.num_context - 1, 0)
        if self.num_targets is not None:
            ids = ids - self.num_targets[group.sequences]
        return ids[:, None]


def _even_cuts(num_rows: int) -> list[slice]:
    """Cut range(num_rows) into as few slices of at most 64 as possible, as even as possible."""
    num_tiles = -(-num_rows // _ROWS_PER_TILE)
    size = -(-num_rows // num_tiles)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
