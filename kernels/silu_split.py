"""The parts of an activated projection: u, v, q, k = split(silu(h)), in C++ for float32 on a CPU.

One pass each way: the parts are written where attention wants them, and their gradients are read from where they are
instead of being put together first. Over two layers this saves 4.0 ms of a training step of 138 ms (ML-1M's shape, one
core; quartiles 2.4 and 6.1), and 8.1 of 148 where malloc gives large blocks back. Elsewhere it is plain torch, which
gives views and which compilers fuse; without gradients, too: 29 us instead of 69 for 200 rows, 1.2 ms instead of 2.0
for 14,000.
Shapes: L rows, C columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.choice import choose_backend, is_plain_call
from kernels.cpu import library as cpu_library
from kernels.cpu.library import empty_float32, pointer
from kernels.cpu.rows import Rows
from kernels.once_differentiable import refuse_second_derivative


def silu_split(h_LC: Tensor, widths: Sequence[int], *, backend: str = "auto") -> Sequence[Tensor]:
    """Return silu(h) cut into (L, width) each; the widths add up to C. `backend` as in `kernels.choice`.

    Raises:
        ValueError: h is no matrix as wide as its parts together, or the backend does not run here.
    """
    if h_LC.ndim != 2 or h_LC.shape[1] != sum(widths):
        raise ValueError(f"h has shape {tuple(h_LC.shape)}, expected (L, {sum(widths)}) for parts of {list(widths)}")
    # A compiler fuses plain torch by itself, and cannot look into the choice of a backend.
    is_fused = not torch.compiler.is_compiling() and choose_backend(h_LC.device, backend)[0] == "cpu"
    if not is_fused or h_LC.dtype != torch.float32 or is_plain_call(h_LC):
        return torch.split(torch.nn.functional.silu(h_LC), list(widths), dim=1)
    parts: Sequence[Tensor] = torch.ops.hstuflow.silu_split(h_LC, list(widths))
    return parts


def _forward(h: Tensor, widths: list[int]) -> list[Tensor]:
    parts = [empty_float32(len(h), width) for width in widths]
    outputs = (ctypes.c_void_p * len(parts))(*(part.data_ptr() for part in parts))
    _library().hstu_silu_split_forward(Rows(h), len(h), *_list(widths), torch.get_num_threads(), outputs)
    return parts


def _forward_shapes(h: Tensor, widths: list[int]) -> list[Tensor]:
    return [h.new_empty(h.shape[0], width) for width in widths]


def _backward(grads: list[Tensor], h: Tensor) -> Tensor:
    grad_h = empty_float32(*h.shape)
    rows = [Rows(grad) for grad in grads]
    widths = _list([grad.shape[1] for grad in grads])
    _library().hstu_silu_split_backward(
        Rows(h), (Rows * len(rows))(*rows), len(h), *widths, torch.get_num_threads(), pointer(grad_h)
    )
    return grad_h


def _backward_shapes(grads: list[Tensor], h: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, None]:  # noqa: ANN401
    return torch.ops.hstuflow.silu_split_backward(grads, *ctx.saved_tensors), None


def _list(numbers: list[int]) -> tuple[ctypes.Array[ctypes.c_int64], int]:
    return (ctypes.c_int64 * len(numbers))(*numbers), len(numbers)


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.load()
    # rows, widths and their number, threads, outputs
    sizes = ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    library.hstu_silu_split_forward.argtypes = (Rows, *sizes)
    library.hstu_silu_split_backward.argtypes = (Rows, ctypes.POINTER(Rows), *sizes)
    library.hstu_silu_split_forward.restype = library.hstu_silu_split_backward.restype = None
    return library


_LIBRARY = torch.library.Library("hstuflow", "FRAGMENT")
_LIBRARY.define("silu_split(Tensor h, int[] widths) -> Tensor[]")
_LIBRARY.define("silu_split_backward(Tensor[] grads, Tensor h) -> Tensor")
for _name, _run, _shapes in (
    ("silu_split", _forward, _forward_shapes),
    ("silu_split_backward", _backward, _backward_shapes),
):
    _LIBRARY.impl(_name, _run, "CPU")
    torch.library.register_fake(f"hstuflow::{_name}", _shapes, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::silu_split", _differentiate, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::silu_split_backward", refuse_second_derivative, lib=_LIBRARY)
