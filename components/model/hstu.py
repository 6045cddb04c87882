"""HSTU for retrieval: a jagged stack of pointwise-attention layers over item embeddings (hstu-spec section 3).

    z = silu(layer_norm(x) W_uvqk);   u, v, q, k = split(z)
    y = x + dropout(u * layer_norm(attention(q, k, v))) W_o + b_o

Shapes: L events of the batch, D embedding width, H heads, Dqk and Dv head widths, N max_len, X catalogue size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from components.model.embedding import InputEmbedding, l2_normalize
from kernels import RelativeBias, gated_norm, hstu_attention, silu_split
from kernels.time_buckets import NUM_TIME_BUCKETS

if TYPE_CHECKING:
    from components.dataset import Batch
    from components.settings import TrainSettings

_EPS = 1e-6


class HSTU(nn.Module):
    """Encodes histories; row i of the answer is to be compared with the vectors of the items that may come next."""

    def __init__(self, settings: TrainSettings, num_items: int) -> None:
        super().__init__()
        self.embedding = InputEmbedding(num_items, settings)
        self.layers = nn.ModuleList(HSTULayer(settings) for _ in range(settings.num_blocks))

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        x_LD = self.embedding(batch.items, batch.offsets)
        times = RelativeBias(None, None, batch.timestamps, batch.next_timestamps)
        for layer in self.layers:
            x_LD = layer(x_LD, batch.offsets, times)
        return l2_normalize(x_LD)

    def item_vectors(self) -> Tensor:
        """Return (X, D), rows of length 1."""
        return self.embedding.item_vectors()


class HSTULayer(nn.Module):
    """One layer: fused projection, pointwise attention with relative bias, gated output."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.max_len, self.dropout, self.backend = settings.max_len, settings.dropout, settings.backend
        self.num_heads = settings.num_heads
        width_v, width_qk = self.num_heads * settings.head_dim_v, self.num_heads * settings.head_dim_qk
        self.widths = [width_v, width_v, width_qk, width_qk]  # u, v, q, k
        self.uvqk = nn.Parameter(torch.empty(settings.dim, sum(self.widths)))
        self.output = nn.Linear(width_v, settings.dim)
        has_position, has_time = "position" in settings.bias, "time" in settings.bias
        self.position_weight = nn.Parameter(torch.empty(2 * self.max_len - 1)) if has_position else None
        self.time_weight = nn.Parameter(torch.empty(NUM_TIME_BUCKETS)) if has_time else None
        self._initialize()

    def _initialize(self) -> None:
        for weight in (self.uvqk, self.position_weight, self.time_weight):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x_LD: Tensor, offsets: Tensor, times: RelativeBias) -> Tensor:
        """Return (L, D)."""
        projected = layer_norm(x_LD, x_LD.shape[1:], eps=_EPS) @ self.uvqk
        u, v, q, k = silu_split(projected, self.widths, backend=self.backend)
        q_LHD, k_LHD, v_LHV = (torch.unflatten(part, 1, (self.num_heads, -1)) for part in (q, k, v))
        o_LHV = hstu_attention(
            q_LHD,
            k_LHD,
            v_LHV,
            offsets,
            max_len=self.max_len,
            bias=times.with_tables(self.position_weight, self.time_weight),
            backend=self.backend,
        )
        gated = gated_norm(
            o_LHV.flatten(1), u, dropout=self.dropout, training=self.training, eps=_EPS, backend=self.backend
        )
        output: Tensor = self.output(gated)
        return x_LD + output
