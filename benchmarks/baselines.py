"""What one would write without this project: padded attention, a model of it, losses, a training step; all by autograd.

Shapes: L rows, B sequences, N max_len, H heads, D embedding or head width, V value width, X catalogue, R negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, dropout, layer_norm, normalize, silu

from components.dataset import Batch
from components.model.embedding import positions
from kernels import RelativeBias


def pad(x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
    """Return (B, N, ...): the rows (L, ...) of each sequence, then zeros."""
    num_sequences = len(offsets) - 1
    zeros = x.new_zeros(num_sequences * max_len, *x.shape[1:])
    return zeros.index_copy(0, _slots(offsets, len(x), max_len), x).unflatten(0, (num_sequences, max_len))


def unpad(x: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """Return the rows (L, ...) that `pad` made (B, N, ...) from."""
    return x.flatten(0, 1).index_select(0, _slots(offsets, num_rows, x.shape[1]))


def _slots(offsets: Tensor, num_rows: int, max_len: int) -> Tensor:
    """Return (L,) int64: each row's place among B * N."""
    sequence = torch.arange(len(offsets) - 1, device=offsets.device)
    sequence_L = torch.repeat_interleave(sequence, offsets.diff(), output_size=num_rows)
    return sequence_L * max_len + positions(offsets, num_rows)


def dense_buckets(bias: RelativeBias, offsets: Tensor, max_len: int) -> Tensor:
    """Return (B, N, N) int64 buckets, by a float32 logarithm as published: one off at some gaps of days and more."""
    timestamps, next_timestamps = (pad(times, offsets, max_len) for times in bias.times())
    gaps_BNN = (next_timestamps[:, :, None] - timestamps[:, None, :]).abs().clamp(min=1)
    return (gaps_BNN.float().log() / 0.301).long().clamp(0, 128)


def dense_attention(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHV: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    bias: RelativeBias,
    buckets_BNN: Tensor | None = None,
) -> Tensor:
    """Return (L, H, V): HSTU attention as published, everything padded to N, scores of (B, H, N, N).

    `buckets_BNN`: what `dense_buckets` returned, where it is not to be computed here.
    """
    q, k, v = (pad(x, offsets, max_len).transpose(1, 2) for x in (q_LHD, k_LHD, v_LHV))
    scores_BHNN = q @ k.transpose(2, 3)
    if bias.position_weight is not None:
        place = torch.arange(max_len, device=q.device)
        scores_BHNN = scores_BHNN + bias.position_weight[max_len - 1 + place - place[:, None]]
    if bias.time_weight is not None:
        buckets_BNN = dense_buckets(bias, offsets, max_len) if buckets_BNN is None else buckets_BNN
        scores_BHNN = scores_BHNN + bias.time_weight[buckets_BNN][:, None]
    causal_NN = torch.ones(max_len, max_len, dtype=torch.bool, device=q.device).tril()
    weights_BHNN = silu(scores_BHNN) / max_len * causal_NN
    return unpad((weights_BHNN @ v).transpose(1, 2), offsets, len(v_LHV))


class DenseHSTU(nn.Module):
    """The model of arXiv 2402.17152 with `dense_attention`; `weights` is the state of a components.model.HSTU."""

    def __init__(self, settings: Any, weights: dict[str, Tensor]) -> None:  # noqa: ANN401 - TrainSettings or alike
        super().__init__()
        self.settings = settings
        self.weights = nn.ParameterDict({_key(name): nn.Parameter(weight.clone()) for name, weight in weights.items()})

    def item_vectors(self) -> Tensor:
        """Return (X, D), rows of length 1."""
        return normalize(self._weight("embedding.item.weight"), dim=-1, eps=1e-6)

    def forward(self, batch: Batch) -> Tensor:
        """Return (L, D), rows of length 1."""
        rate, width = self.settings.dropout, self.settings.dim
        place_L = positions(batch.offsets, len(batch.items))
        x = self._weight("embedding.item.weight")[batch.items] * width**0.5
        x = dropout(x + self._weight("embedding.position")[place_L], rate, self.training)
        for layer in range(self.settings.num_blocks):
            x = x + self._layer(f"layers.{layer}", x, batch)
        return normalize(x, dim=-1, eps=1e-6)

    def _layer(self, layer: str, x: Tensor, batch: Batch) -> Tensor:
        settings, heads = self.settings, self.settings.num_heads
        width_v, width_qk = heads * settings.head_dim_v, heads * settings.head_dim_qk
        z = silu(layer_norm(x, x.shape[1:], eps=1e-6) @ self._weight(f"{layer}.uvqk"))
        u, v, q, k = torch.split(z, [width_v, width_v, width_qk, width_qk], dim=1)
        bias = RelativeBias(
            self._weight(f"{layer}.position_weight"),
            self._weight(f"{layer}.time_weight"),
            batch.timestamps,
            batch.next_timestamps,
        )
        q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))
        o = dense_attention(q, k, v, batch.offsets, max_len=settings.max_len, bias=bias).flatten(1)
        gated = dropout(u * layer_norm(o, o.shape[1:], eps=1e-6), settings.dropout, self.training)
        return gated @ self._weight(f"{layer}.output.weight").T + self._weight(f"{layer}.output.bias")

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = self.weights[_key(name)]
        return weight


def _key(name: str) -> str:
    return name.replace(".", "/")


Loss = Callable[[Tensor, Tensor, Tensor, Generator], Tensor]


def dense_loss(settings: Any) -> Loss:  # noqa: ANN401
    """Return the loss that `settings` names, with all logits in memory, as cross-entropy."""

    def full(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: Generator) -> Tensor:
        return cross_entropy(y_LD @ items_XD.T / settings.temperature, targets_L)

    def shared(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: Generator) -> Tensor:
        negatives_R = _draw(len(items_XD), (settings.num_negatives,), targets_L, generator)
        weight = len(items_XD) / settings.num_negatives
        logits_LR = y_LD @ items_XD[negatives_R].T / settings.temperature + math.log(weight)
        return _against_negatives(y_LD, items_XD, targets_L, logits_LR, negatives_R)

    def sampled(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: Generator) -> Tensor:
        negatives_LR = _draw(len(items_XD), (len(targets_L), settings.num_negatives), targets_L, generator)
        logits_LR = (items_XD[negatives_LR] * y_LD[:, None]).sum(2) / settings.temperature
        return _against_negatives(y_LD, items_XD, targets_L, logits_LR, negatives_LR)

    def _against_negatives(
        y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, logits_LR: Tensor, negatives: Tensor
    ) -> Tensor:
        positive_L1 = (y_LD * items_XD[targets_L]).sum(1, keepdim=True) / settings.temperature
        logits_LR = logits_LR.masked_fill(negatives == targets_L[:, None], -torch.inf)
        return cross_entropy(torch.cat([positive_L1, logits_LR], dim=1), torch.zeros_like(targets_L))

    return {"full": full, "shared": shared, "sampled": sampled}[settings.loss]


def _draw(num_items: int, shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    return torch.randint(num_items, shape, generator=generator, device=like.device)


class DenseStep:
    """One step of a straightforward trainer, beginning with the weights of `model`."""

    def __init__(self, settings: Any, model: nn.Module) -> None:  # noqa: ANN401
        self.model = DenseHSTU(settings, model.state_dict())
        self.loss = dense_loss(settings)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.negatives = torch.Generator(next(model.parameters()).device).manual_seed(1)

    def forward(self, batch: Batch, targets_L: Tensor) -> Tensor:
        """Return the loss."""
        self.optimizer.zero_grad()
        return self.loss(self.model(batch), self.model.item_vectors(), targets_L, self.negatives)

    def update(self) -> None:
        """Change the weights by their gradients."""
        self.optimizer.step()
