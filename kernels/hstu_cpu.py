"""HSTU attention on the CPU: batched matrix products over groups of sequences of similar length.

Each group is computed in tiles of query rows against the keys they can see, in workspaces that stay in the second-level cache.
Only q, k, v and the bias inputs are kept for the backward pass, which recomputes the scores s:

    a = silu(s) mask / N,  o = a v
    dv = a^T do,  ds = (do v^T / N) silu'(s) mask,  dq = alpha ds k,  dk = alpha ds^T q

Shapes: L rows of the batch, H heads, S slots of all groups (see length_groups), G sequences of a group, K = H * G, n rows of its
longest, R query rows of a tile, C key columns of a tile, N max_len.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.bias import RelativeBias
from kernels.hstu_cpu_bias import BiasGradients, BiasTiles
from kernels.hstu_cpu_mask import Mask
from kernels.length_groups import LengthGroup, LengthGroups

# One core, ML-1M lengths (mean 107, at most 200), batch 128, D 50: forward and backward take 33 ms with these, 36 ms
# with half or twice as many rows, 40 ms with a quarter of the scores a group.
_ROWS_PER_TILE = 64
_SCORES_PER_BLOCK = 320_000


@dataclass(frozen=True)
class Tile:
    """Query rows against the key columns that they may see, for every sequence and head of a group."""

    group: LengthGroup
    rows: slice
    columns: slice

    @property
    def num_scores(self) -> int:
        """G * R * C."""
        return len(self.group.sequences) * (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def scores(self, workspace: Tensor) -> Tensor:
        """Return the start of a flat workspace as (K, R, C)."""
        num_heads, num_rows = self.group.num_heads, self.rows.stop - self.rows.start
        flat = workspace[: num_heads * self.num_scores]
        return flat.view(num_heads * len(self.group.sequences), num_rows, -1)


@dataclass(frozen=True)
class Problem:
    """One call of the operator, less the tensors that autograd follows."""

    groups: LengthGroups
    tiles: list[Tile]
    mask: Mask
    bias: BiasTiles
    max_len: int
    alpha: float
