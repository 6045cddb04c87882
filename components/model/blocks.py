"""What the blocks of HSTU and SASRec have in common: the residual, the feed-forward network, softmax attention.

    residual        x + f                         or, gated, x + f * sigmoid(x W + b)
    feed-forward    gelu(x W_1 + b_1) W_2 + b_2   or, of as many weights, (silu(x W_g) * (x W_v)) W_o

The gated residual is that of LiGR (arXiv 2502.03417) and SwiGLU that of arXiv 2002.05202; SASRec with both is eSASRec
(arXiv 2508.06450), but for the feed-forward network's width: 4 D there, whose SwiGLU then has 12 D^2 weights.
Shapes: L events of the batch, D embedding width, H heads, F width inside the feed-forward network, K sequences times
heads of a group, n rows of its longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from components.errors import SettingsError
from kernels.length_groups import LengthGroups

if TYPE_CHECKING:
    from components.settings import TrainSettings

# Scores (G*n*n) of a group at most; the fused softmax attention never holds them all.
_SCORES_PER_GROUP = 1_000_000


class Residual(nn.Module):
    """Adds what a sublayer made of x to x, all of it or as much as a gate that sees x lets through.

    As RecTools' LiGR layers have it, the gate sees x before the sublayer's normalisation, and has a bias. It starts
    near one half, as any nn.Linear under a sigmoid.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.gate = nn.Linear(settings.dim, settings.dim) if settings.gated_residual else None

    def forward(self, x_LD: Tensor, f_LD: Tensor) -> Tensor:
        """Return (L, D)."""
        return x_LD + f_LD if self.gate is None else x_LD + f_LD * torch.sigmoid(self.gate(x_LD))


class SwiGLU(nn.Module):
    """(silu(x W_g) * (x W_v)) W_o with F = 8/3 D, rounded: the 8 D^2 weights of a network four times as wide as D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = round(8 * dim / 3)
        self.gate_and_value = nn.Linear(dim, 2 * width, bias=False)
        self.output = nn.Linear(width, dim, bias=False)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return (L, D)."""
        gate_LF, value_LF = self.gate_and_value(x_LD).chunk(2, dim=1)
        y_LD: Tensor = self.output(silu(gate_LF) * value_LF)
        return y_LD


def make_feed_forward(settings: TrainSettings) -> nn.Sequential | SwiGLU | None:
    """Return the network that `settings.feed_forward` names, from (L, D) to (L, D); None for a block without one.

    Raises:
        SettingsError: there is no such network.
    """
    dim = settings.dim
    match settings.feed_forward:
        case "none":
            return None
        case "gelu":
            return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        case "swiglu":
            return SwiGLU(dim)
    raise SettingsError("no such feed_forward", where="train", observed=settings.feed_forward)


def group_by_length(offsets: Tensor, num_heads: int) -> LengthGroups:
    """Return the layout of a batch that `causal_softmax_attention` takes; once a batch is enough."""
    return LengthGroups(offsets, num_heads=num_heads, max_scores=_SCORES_PER_GROUP)


def causal_softmax_attention(q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, groups: LengthGroups) -> Tensor:
    """Return (L, H, Dv): o_i = sum over j <= i of softmax_j(<q_i, k_j> / sqrt(Dqk)) v_j."""
    padded = groups.pad(q_LHD), groups.pad(k_LHD), groups.pad(v_LHD)
    outputs = [padded[2][:0]]
    for group in groups:
        q, k, v = (group.block(x_SD)[:, None] for x_SD in padded)  # (K, 1, n, D)
        o_K1nD = scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(o_K1nD.flatten(0, 2))
    return groups.unpad(torch.cat(outputs))
