"""The way in and the way out that all sequence models share: item and position embeddings, unit vectors.

Shapes: L events of the batch, B sequences, D embedding width, N max_len, X catalogue size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernels import dropout

if TYPE_CHECKING:
    from components.settings import TrainSettings

LEAST_LENGTH = 1e-6


class InputEmbedding(nn.Module):
    """item_embedding * sqrt(D) + position_embedding[p], then dropout; p = 0 is a sequence's oldest event."""

    def __init__(self, num_items: int, settings: TrainSettings) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, settings.dim)
        self.position = nn.Parameter(torch.empty(settings.max_len, settings.dim))
        self.dropout, self.backend = settings.dropout, settings.backend
        nn.init.trunc_normal_(self.item.weight, std=0.02)
        nn.init.xavier_normal_(self.position)

    def forward(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Return (L, D) for items (L,) int64 and offsets (B+1,) int64."""
        x_LD = self.embed(items, positions(offsets, len(items)))
        return dropout(x_LD, self.dropout, training=self.training, backend=self.backend)

    def embed(self, items: Tensor, places: Tensor | slice) -> Tensor:
        """Return (L, D) for items and their places p, (L,) int64 or the slice of them, without dropout."""
        x_LD: Tensor = self.item(items) * self.scale + self.position[places]
        return x_LD

    @property
    def scale(self) -> float:
        """What an item's vector is multiplied by."""
        return math.sqrt(self.item.embedding_dim)

    def item_vectors(self) -> Tensor:
        """Return (X, D): the item embeddings as unit vectors."""
        return l2_normalize(self.item.weight)


def positions(offsets: Tensor, num_rows: int) -> Tensor:
    """Return (L,) int64: each row's place in its sequence, from 0."""
    starts = torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=num_rows)
    return torch.arange(num_rows, device=offsets.device) - starts


def l2_normalize(x: Tensor) -> Tensor:
    """Scale rows to length 1; rows shorter than 1e-6 are divided by 1e-6."""
    return nn.functional.normalize(x, dim=-1, eps=LEAST_LENGTH)
