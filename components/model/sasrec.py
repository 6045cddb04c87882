"""SASRec, the softmax baseline: a causal Transformer over item embeddings, in and out as HSTU.

    x = x + dropout(attention(norm(x)) W_o + b_o);   x = x + dropout(feed_forward(norm(x)))

Attention as in arXiv 1808.09781. Normalisation before each part and once at the end, and a GELU feed-forward network
four times as wide, as in the re-implementations that reach the best published numbers for it.
Shapes: L events of the batch, D embedding width, H heads, K sequences times heads of a group, n rows of its longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from components.model.embedding import InputEmbedding, l2_normalize
from kernels.length_groups import LengthGroups

if TYPE_CHECKING:
    from components.dataset import Batch
    from components.settings import TrainSettings

# Scores (G*n*n) of a group at most; the fused softmax attention never holds them all.
_SCORES_PER_GROUP = 1_000_000


class SASRec(nn.Module):
    """Encodes histories; row i of the answer is to be compared with the vectors of the items that may come next."""

    def __init__(self, settings: TrainSettings, num_items: int) -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.embedding = InputEmbedding(num_items, settings)
        self.blocks = nn.ModuleList(SASRecBlock(settings) for _ in range(settings.num_blocks))
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        groups = LengthGroups(batch.offsets, num_heads=self.num_heads, max_scores=_SCORES_PER_GROUP)
        x_LD = self.embedding(batch.items, batch.offsets)
        for block in self.blocks:
            x_LD = block(x_LD, groups)
        return l2_normalize(self.norm(x_LD))

    def item_vectors(self) -> Tensor:
        """Return (X, D), rows of length 1."""
        return self.embedding.item_vectors()


class SASRecBlock(nn.Module):
    """Causal softmax attention, then a feed-forward network, each normalised before and added after."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        dim, num_heads = settings.dim, settings.num_heads
        width_qk, width_v = num_heads * settings.head_dim_qk, num_heads * settings.head_dim_v
        self.num_heads, self.widths = num_heads, [width_qk, width_qk, width_v]
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.output = nn.Linear(width_v, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_LD: Tensor, groups: LengthGroups) -> Tensor:
        """Return (L, D)."""
        parts = self.qkv(self.attention_norm(x_LD)).split(self.widths, dim=1)
        q, k, v = (torch.unflatten(part, 1, (self.num_heads, -1)) for part in parts)
        o_LHD = causal_softmax_attention(q, k, v, groups)
        x_LD = x_LD + self.dropout(self.output(o_LHD.flatten(1)))
        summed: Tensor = x_LD + self.dropout(self.feed_forward(self.forward_norm(x_LD)))
        return summed


def causal_softmax_attention(q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, groups: LengthGroups) -> Tensor:
    """Return (L, H, Dv): o_i = sum over j <= i of softmax_j(<q_i, k_j> / sqrt(Dqk)) v_j."""
    padded = groups.pad(q_LHD), groups.pad(k_LHD), groups.pad(v_LHD)
    outputs = [padded[2][:0]]
    for group in groups:
        q, k, v = (group.block(x_SD)[:, None] for x_SD in padded)  # (K, 1, n, D)
        o_K1nD = scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(o_K1nD.flatten(0, 2))
    return groups.unpad(torch.cat(outputs))
