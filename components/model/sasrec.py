"""SASRec, the softmax baseline: a causal Transformer over item embeddings, in and out as HSTU.

    x = x + dropout(attention(norm(x)) W_o + b_o);   x = x + dropout(feed_forward(norm(x)))

Attention as in arXiv 1808.09781. Normalisation before each part and once at the end, and a GELU feed-forward network
four times as wide, as in the re-implementations that reach the best published numbers for it. Both residuals can be
gated, and the network replaced or left out (components/model/blocks.py); `settings.attention` and the bias are HSTU's.
Shapes: L events of the batch, D embedding width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.model.blocks import Residual, causal_softmax_attention, group_by_length, make_feed_forward
from components.model.embedding import InputEmbedding, l2_normalize
from components.model.heads import Retriever, make_head

if TYPE_CHECKING:
    from components.dataset import Batch
    from components.settings import TrainSettings
    from kernels.length_groups import LengthGroups


class SASRec(Retriever):
    """Encodes histories; row i of the answer is to be compared with the vectors of the items that may come next."""

    def __init__(self, settings: TrainSettings, num_items: int) -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.embedding = InputEmbedding(num_items, settings)
        self.blocks = nn.ModuleList(SASRecBlock(settings) for _ in range(settings.num_blocks))
        self.norm = nn.LayerNorm(settings.dim)
        self.head = make_head(settings)

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        groups = group_by_length(batch.offsets, self.num_heads)
        x_LD = self.embedding(batch.items, batch.offsets)
        for block in self.blocks:
            x_LD = block(x_LD, groups)
        return l2_normalize(self.norm(x_LD))


class SASRecBlock(nn.Module):
    """Causal softmax attention, then a feed-forward network, each normalised before and added after."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        dim, num_heads = settings.dim, settings.num_heads
        width_qk, width_v = num_heads * settings.head_dim_qk, num_heads * settings.head_dim_v
        self.num_heads, self.widths = num_heads, [width_qk, width_qk, width_v]
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.output = nn.Linear(width_v, dim)
        self.attention_residual = Residual(settings)
        self.feed_forward = make_feed_forward(settings)
        if self.feed_forward is not None:
            self.forward_norm, self.forward_residual = nn.LayerNorm(dim), Residual(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_LD: Tensor, groups: LengthGroups) -> Tensor:
        """Return (L, D)."""
        parts = self.qkv(self.attention_norm(x_LD)).split(self.widths, dim=1)
        q, k, v = (torch.unflatten(part, 1, (self.num_heads, -1)) for part in parts)
        o_LHD = causal_softmax_attention(q, k, v, groups)
        x_LD = self.attention_residual(x_LD, self.dropout(self.output(o_LHD.flatten(1))))
        if self.feed_forward is not None:
            x_LD = self.forward_residual(x_LD, self.dropout(self.feed_forward(self.forward_norm(x_LD))))
        return x_LD
