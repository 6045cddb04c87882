"""HSTU for retrieval: a jagged stack of pointwise-attention layers over item embeddings (arXiv 2402.17152).

    z = silu(layer_norm(x) W_uvqk);   u, v, q, k = split(z)
    y = x + dropout(u * layer_norm(attention(q, k, v))) W_o + b_o

Beyond that, each off by default: bias tables for each head, softmax in place of the pointwise attention, a feed-forward
network after it, gated residuals (components/model/blocks.py), and a model that is never told the request time.
Shapes: L events of the batch, D embedding width, H heads, Dqk and Dv head widths, N max_len, X catalogue size.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from components.errors import SettingsError
from components.model.blocks import Residual, causal_softmax_attention, group_by_length, make_feed_forward
from components.model.embedding import InputEmbedding, l2_normalize
from components.model.heads import Retriever, make_head
from kernels import RelativeBias, dropout, gated_norm, hstu_attention, silu_split
from kernels.batch_memo import BatchMemo
from kernels.time_buckets import NUM_TIME_BUCKETS

if TYPE_CHECKING:
    from components.dataset import Batch
    from components.settings import TrainSettings
    from kernels.length_groups import LengthGroups

NORM_EPS = 1e-6


class HSTU(Retriever):
    """Encodes histories; row i of the answer is to be compared with the vectors of the items that may come next."""

    def __init__(self, settings: TrainSettings, num_items: int) -> None:
        super().__init__()
        self.embedding = InputEmbedding(num_items, settings)
        self.layers = nn.ModuleList(HSTULayer(settings) for _ in range(settings.num_blocks))
        self.head = make_head(settings)
        self.knows_request_time = settings.request_time_dropout < 1

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        x_LD = self.embedding(batch.items, batch.offsets)
        # Here, where every batch passes: what training never showed, no evaluation and no request may show either.
        asked_at = batch.next_timestamps if self.knows_request_time else batch.timestamps
        times = RelativeBias(None, None, batch.timestamps, asked_at)
        for layer in self.layers:
            x_LD = layer(x_LD, batch.offsets, times)
        return l2_normalize(x_LD)


class HSTULayer(nn.Module):
    """One layer: fused projection, attention, gated output; then a feed-forward network where there is one.

    Raises:
        SettingsError: softmax attention was asked for together with a relative bias, which it does not have.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.max_len, self.dropout, self.backend = settings.max_len, settings.dropout, settings.backend
        self.num_heads, self.is_softmax = settings.num_heads, settings.attention == "softmax"
        width_v, width_qk = self.num_heads * settings.head_dim_v, self.num_heads * settings.head_dim_qk
        self.widths = [width_v, width_v, width_qk, width_qk]  # u, v, q, k
        self.uvqk = nn.Parameter(torch.empty(settings.dim, sum(self.widths)))
        self.output = nn.Linear(width_v, settings.dim)
        self._make_tables(settings)
        self._initialize()
        self.residual = Residual(settings)
        self.feed_forward = make_feed_forward(settings)
        if self.feed_forward is not None:
            self.forward_norm, self.forward_residual = nn.LayerNorm(settings.dim), Residual(settings)

    def _make_tables(self, settings: TrainSettings) -> None:
        """Position table (2N-1,) and time table (129,), or one of each for every head: (H, 2N-1) and (H, 129)."""
        if self.is_softmax and settings.bias != "none":
            raise SettingsError(
                "softmax attention has none", where="train.hstu.bias", observed=settings.bias, expected="none"
            )
        self.has_tables_per_head = settings.bias_per_head and settings.bias != "none"
        shape = [self.num_heads] if self.has_tables_per_head else []
        has_position, has_time = "position" in settings.bias, "time" in settings.bias
        self.position_weight = nn.Parameter(torch.empty(*shape, 2 * self.max_len - 1)) if has_position else None
        self.time_weight = nn.Parameter(torch.empty(*shape, NUM_TIME_BUCKETS)) if has_time else None

    def _initialize(self) -> None:
        for weight in (self.uvqk, self.position_weight, self.time_weight):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)

    @property
    def is_as_published(self) -> bool:
        """Whether this is the layer of the paper: none of the levers that change what it computes."""
        is_plain = self.feed_forward is None and self.residual.gate is None
        return is_plain and not self.is_softmax and not self.has_tables_per_head

    def forward(self, x_LD: Tensor, offsets: Tensor, times: RelativeBias) -> Tensor:
        """Return (L, D)."""
        u_LC, q_LHD, k_LHD, v_LHV = self.project(x_LD)
        return self.finish(x_LD, u_LC, self.attend(q_LHD, k_LHD, v_LHV, offsets, times))

    def project(self, x_LD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u (L, H Dv), q and k (L, H, Dqk), v (L, H, Dv): what each row is, whatever rows are beside it."""
        projected = layer_norm(x_LD, x_LD.shape[1:], eps=NORM_EPS) @ self.uvqk
        u_LC, v, q, k = silu_split(projected, self.widths, backend=self.backend)
        q_LHD, k_LHD, v_LHV = (torch.unflatten(part, 1, (self.num_heads, -1)) for part in (q, k, v))
        return u_LC, q_LHD, k_LHD, v_LHV

    def finish(self, x_LD: Tensor, u_LC: Tensor, o_LHV: Tensor) -> Tensor:
        """Return (L, D): what attention gave each row, gated and added; then the feed-forward network, if any."""
        gated = gated_norm(
            o_LHV.flatten(1), u_LC, dropout=self.dropout, training=self.training, eps=NORM_EPS, backend=self.backend
        )
        x_LD = self.residual(x_LD, self.output(gated))
        if self.feed_forward is not None:
            f_LD = self.feed_forward(self.forward_norm(x_LD))
            f_LD = dropout(f_LD, self.dropout, training=self.training, backend=self.backend)
            x_LD = self.forward_residual(x_LD, f_LD)
        return x_LD

    def attend(self, q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, offsets: Tensor, times: RelativeBias) -> Tensor:
        """Return (L, H, Dv)."""
        if self.is_softmax:
            return causal_softmax_attention(q_LHD, k_LHD, v_LHV, _group_once(offsets, self.num_heads))
        attend = partial(hstu_attention, offsets=offsets, max_len=self.max_len, backend=self.backend)
        if not self.has_tables_per_head:
            return attend(q_LHD, k_LHD, v_LHV, bias=times.with_tables(self.position_weight, self.time_weight))
        heads = []  # the kernels share tables between the heads of a call: one call for each
        for h in range(self.num_heads):
            bias = times.with_tables(_table_of_head(self.position_weight, h), _table_of_head(self.time_weight, h))
            heads.append(attend(q_LHD[:, h : h + 1], k_LHD[:, h : h + 1], v_LHV[:, h : h + 1], bias=bias))
        return torch.cat(heads, dim=1)


def _table_of_head(table_HT: Tensor | None, h: int) -> Tensor | None:
    return None if table_HT is None else table_HT[h]


def _group_once(offsets: Tensor, num_heads: int) -> LengthGroups:
    return _GROUPS.get((offsets,), (num_heads,), lambda: group_by_length(offsets, num_heads))


_GROUPS: BatchMemo[LengthGroups] = BatchMemo()
