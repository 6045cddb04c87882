"""The gated norm in plain torch: the definition, and what runs where nothing faster does. Any floating dtype.

Half precision is computed in float32 and rounded once. Shapes: L rows, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dropout_mask import dropout_mask


def forward(o_LW: Tensor, u_LW: Tensor, eps: float, dropout: float, seed: int) -> Tensor:
    """Return (L, W)."""
    o, u = _widened(o_LW), _widened(u_LW)
    normed, _, _ = torch.native_layer_norm(o, o.shape[1:], None, None, eps)
    return (normed * u).mul_(_mask(o, dropout, seed)).to(o_LW.dtype)


def backward(
    grad_LW: Tensor, o_LW: Tensor, u_LW: Tensor, eps: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of o and u, contiguous."""
    o, u = _widened(o_LW), _widened(u_LW)
    normed, mean, rstd = torch.native_layer_norm(o, o.shape[1:], None, None, eps)
    grad = _widened(grad_LW) * _mask(o, dropout, seed)
    grad_o, _, _ = torch.ops.aten.native_layer_norm_backward(
        grad * u, o, o.shape[1:], mean, rstd, None, None, [True, False, False]
    )
    return grad_o.to(o_LW.dtype), grad.mul_(normed).to(u_LW.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mask(o_LW: Tensor, dropout: float, seed: int) -> Tensor | float:
    return dropout_mask(o_LW, dropout, seed) if dropout else 1.0
