"""Dropout on a CPU by a counter-based mask: `dropout_mask` says which elements are kept.

    y = dropout(x, 0.2, training=True)

torch draws one random number after the other: 6.0 ms for 12,843 x 50 elements on one core. Hashing the element's place
takes 1.3 in C++ and 3.2 in torch, and the backward pass replays the mask instead of keeping it. On a GPU torch's own
dropout is one kernel already.
Shapes: L rows, W width.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.choice import choose_backend
from kernels.cpu import library as cpu_library
from kernels.cpu.library import empty_float32, pointer
from kernels.cpu.rows import Rows
from kernels.dropout_mask import draw_seed, dropout_mask, threshold_of


def dropout(x_LW: Tensor, share: float, *, training: bool, backend: str = "auto") -> Tensor:
    """Return (L, W): in training, a random `share` (0 to 1, exclusive) of x set to 0 and the rest scaled up.

    The seed is drawn from torch's default CPU generator. `backend` as in `kernels.choice`: cpu is C++ for float32, and
    the others are torch with the same mask.

    Raises:
        ValueError: x is no matrix, the share is no share, or the backend does not run here.
    """
    if x_LW.ndim != 2:
        raise ValueError(f"x has shape {tuple(x_LW.shape)}, expected (L, W)")
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}, expected 0 <= share < 1")
    if not training or share == 0:
        return x_LW
    if x_LW.device.type != "cpu":
        return torch.nn.functional.dropout(x_LW, share)
    y: Tensor = torch.ops.hstuflow.dropout(x_LW, draw_seed(), share, backend)
    return y


def _dropout(x: Tensor, seed: Tensor, share: float, backend: str) -> Tensor:
    name, _ = choose_backend(x.device, backend)
    if name != "cpu" or x.dtype != torch.float32:
        return dropout_mask(x, share, int(seed)).mul_(x)
    y = empty_float32(*x.shape)
    _library().hstu_dropout(Rows(x), *x.shape, threshold_of(share), int(seed), torch.get_num_threads(), pointer(y))
    return y


def _shapes(x: Tensor, seed: Tensor, share: float, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    _, seed, *ctx.rest = inputs
    ctx.save_for_backward(seed)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    return torch.ops.hstuflow.dropout(grad, *ctx.saved_tensors, *ctx.rest), None, None, None


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.load()
    # x, rows, width, threshold, seed, threads, y
    library.hstu_dropout.argtypes = (Rows, *[ctypes.c_int64] * 5, ctypes.c_void_p)
    library.hstu_dropout.restype = None
    return library


_LIBRARY = torch.library.Library("hstuflow", "FRAGMENT")
_LIBRARY.define("dropout(Tensor x, Tensor seed, float share, str backend) -> Tensor")
_LIBRARY.impl("dropout", _dropout, "CPU")
torch.library.register_fake("hstuflow::dropout", _shapes, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::dropout", _differentiate, setup_context=_keep, lib=_LIBRARY)
