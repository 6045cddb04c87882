"""The gated norm of an HSTU layer, its element-wise work as one operator: y = dropout(layer_norm(o) * u).

    from kernels import gated_norm
    y = gated_norm(o, u, dropout=0.2, training=True)

A backend is a module with two functions (L rows, W width). o, u and grad may have any strides; what is returned is
contiguous and of their dtype; sums are taken in float32 at least. The mask is a function of the seed and the element,
the same in both, so that o and u are all that is kept for the backward pass. Nothing is dropped where dropout is 0.

    forward(o_LW, u_LW, eps, dropout, seed) -> y_LW
    backward(grad_LW, o_LW, u_LW, eps, dropout, seed) -> (grad_o_LW, grad_u_LW)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernels import gated_norm_torch
from kernels.choice import choose_backend, is_plain_call
from kernels.dropout_mask import draw_seed
from kernels.once_differentiable import refuse_second_derivative

# Imported when first used: Triton takes a second, and is not everywhere.
_MODULES = {
    "reference": "kernels.gated_norm_torch",
    "torch": "kernels.gated_norm_torch",
    "cpu": "kernels.gated_norm_cpu",
    "triton": "kernels.gated_norm_triton",
}


def gated_norm(
    o_LW: Tensor, u_LW: Tensor, *, dropout: float, training: bool, eps: float = 1e-6, backend: str = "auto"
) -> Tensor:
    """Return (L, W): dropout(layer_norm(o) * u), the norm over the last dimension without weights; once differentiable.

    Args:
        o_LW: what is normalised; strided views are fine, as for u.
        u_LW: the gate, of the same shape and floating dtype.
        dropout: the share of elements set to 0, from 0 to 1 (exclusive), to 1/65536; the others are scaled up.
        training: whether anything is dropped; the seed is then drawn from torch's default CPU generator.
        eps: added to the variance.
        backend: auto | reference | torch | cpu | triton; see `kernels.choice`. reference is torch.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or the backend cannot take them.
    """
    if o_LW.ndim != 2 or o_LW.shape != u_LW.shape:
        raise ValueError(f"o and u have shapes {tuple(o_LW.shape)}, {tuple(u_LW.shape)}, expected (L, W) twice")
    if not o_LW.is_floating_point() or o_LW.dtype != u_LW.dtype:
        raise ValueError(f"o is {o_LW.dtype} and u {u_LW.dtype}, expected one floating dtype")
    if o_LW.device != u_LW.device:
        raise ValueError(f"u is on {u_LW.device}, but o is on {o_LW.device}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected 0 <= dropout < 1")
    is_dropping = training and dropout > 0
    if not is_dropping and backend == "auto" and o_LW.device.type == "cpu" and is_plain_call(o_LW):
        # One pass each way is the gain of C++, and here is one way only: 20 us instead of 60 for 200 rows of 50.
        return gated_norm_torch.forward(o_LW, u_LW, eps, dropout=0.0, seed=0)
    dropout, seed = (dropout, draw_seed()) if is_dropping else (0.0, torch.zeros((), dtype=torch.int64, device="cpu"))
    y: Tensor = torch.ops.hstuflow.gated_norm(o_LW, u_LW, seed, eps, dropout, backend)
    return y


def _module(o: Tensor, backend: str) -> Any:  # noqa: ANN401 - a module of the kind described above
    # Here and not in `gated_norm`: a traced program goes to any device.
    name, _ = choose_backend(o.device, backend)
    return import_module(_MODULES[name])


def _forward(o: Tensor, u: Tensor, seed: Tensor, eps: float, dropout: float, backend: str) -> Tensor:
    y: Tensor = _module(o, backend).forward(o, u, eps, dropout, int(seed))
    return y


def _forward_shapes(o: Tensor, u: Tensor, seed: Tensor, eps: float, dropout: float, backend: str) -> Tensor:
    return o.new_empty(o.shape)


def _backward(
    grad: Tensor, o: Tensor, u: Tensor, seed: Tensor, eps: float, dropout: float, backend: str
) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _module(o, backend).backward(grad, o, u, eps, dropout, int(seed))
    return gradients


def _backward_shapes(
    grad: Tensor, o: Tensor, u: Tensor, seed: Tensor, eps: float, dropout: float, backend: str
) -> tuple[Tensor, Tensor]:
    return o.new_empty(o.shape), u.new_empty(u.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    *tensors, eps, dropout, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.rest = eps, dropout, backend


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    gradients = torch.ops.hstuflow.gated_norm_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return *gradients, None, None, None, None


_ARGUMENTS = "Tensor o, Tensor u, Tensor seed, float eps, float dropout, str backend"
_LIBRARY = torch.library.Library("hstuflow", "FRAGMENT")
_LIBRARY.define(f"gated_norm({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"gated_norm_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)")
for _name, _run, _shapes in (
    ("gated_norm", _forward, _forward_shapes),
    ("gated_norm_backward", _backward, _backward_shapes),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hstuflow::{_name}", _shapes, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::gated_norm", _differentiate, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::gated_norm_backward", refuse_second_derivative, lib=_LIBRARY)
