"""SASRec, the softmax baseline: a causal pre-norm Transformer over item embeddings, in and out as HSTU.

    x = x + dropout(attention(norm(x)));   x = x + dropout(feed_forward(norm(x)))

Attention as in arXiv 1808.09781; normalisation before each block and a GELU feed-forward four times as wide, as in the re-implementations
that reach its published numbers. Shapes: L events of the batch, D embedding width, H heads, Dqk and Dv head widths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from components.model.embedding import InputEmbedding, l2_normalize

if TYPE_CHECKING:
    from components.dataset import Batch
    from components.settings import TrainSettings


class SASRec(nn.Module):
    """Encodes histories; row i of the answer is to be compared with the vectors of the items that may come next."""

    def __init__(self, settings: TrainSettings, num_items: int) -> None:
        super().__init__()
        self.embedding = InputEmbedding(num_items, settings.dim, settings.max_len, settings.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(settings) for _ in range(settings.num_blocks))
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        x_LD = self.embedding(batch.items, batch.offsets)
        for block in self.blocks:
            x_LD = block(x_LD, batch.offsets)
        return l2_normalize(self.norm(x_LD))

    def item_vectors(self) -> Tensor:
        """Return (X, D), rows of length 1."""
        return self.embedding.item_vectors()


class SASRecBlock(nn.Module):
    """Causal softmax attention, then a feed-forward network, each normalised before and added after."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        dim, self.num_heads = settings.dim, settings.num_heads
        self.widths = [self.num_heads * width for width in (settings.head_dim_qk, settings.head_dim_qk, settings.head_dim_v)]
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.output = nn.Linear(self.widths[2], dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_LD: Tensor, offsets: Tensor) -> Tensor:
        """Return (L, D)."""
        q, k, v = (part.unflatten(1, (self.num_heads, -1)) for part in self.qkv(self.attention_norm(x_LD)).split(self.widths, dim=1))
        o_LHV = causal_softmax_attention(q, k, v, offsets)
        x_LD = x_LD + self.dropout(self.output(o_LHV.flatten(1)))
        return x_LD + self.dropout(self.feed_forward(self.forward_norm(x_LD)))


def causal_softmax_attention(q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, offsets: Tensor) -> Tensor:
    """Return (L, H, Dv)."""
    out = [v_LHD[:0]]
    bounds = offsets.tolist()
    for s, e in zip(bounds[:-1], bounds[1:]):
        if e > s:
            o = scaled_dot_product_attention(*(x[s:e].transpose(0, 1)[None] for x in (q_LHD, k_LHD, v_LHD)), is_causal=True)
            out.append(o[0].transpose(0, 1))
    return torch.cat(out)
