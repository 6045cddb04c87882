"""HSTU attention in C++ (cpu/attention.cpp), single precision: called with pointers, strides and sizes.

bfloat16 and float16 are converted to float32 and back; float64 takes the torch backend.

Shapes: L rows of the batch, H heads, D and V head widths, B sequences, N max_len.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from kernels import hstu_torch
from kernels.arguments import Arguments, Gradients, Wants
from kernels.cpu import library as cpu_library
from kernels.cpu.library import empty_float32, pointer
from kernels.time_buckets import TIME_THRESHOLDS


def forward(q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, arguments: Arguments) -> Tensor:
    """Return (L, H, V); see `kernels.arguments`."""
    if q_LHD.dtype == torch.float64:
        return hstu_torch.forward(q_LHD, k_LHD, v_LHV, arguments)
    call = _Call(q_LHD, k_LHD, v_LHV, arguments)
    output_LHV = empty_float32(*v_LHV.shape)
    workspace = _workspace(_library().hstu_attention_forward_workspace(call.problem))
    _library().hstu_attention_forward(call.problem, pointer(workspace), pointer(output_LHV))
    return output_LHV.to(v_LHV.dtype)


def backward(
    grad_LHV: Tensor, q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, arguments: Arguments, wants: Wants
) -> Gradients:
    """Return the gradients; see `kernels.arguments`."""
    if q_LHD.dtype == torch.float64:
        return hstu_torch.backward(grad_LHV, q_LHD, k_LHD, v_LHV, arguments, wants)
    call, grad_LHV = _Call(q_LHD, k_LHD, v_LHV, arguments), _single(grad_LHV)
    bias = arguments.bias
    wanted = [
        table if is_wanted else None
        for table, is_wanted in zip((bias.position_weight, bias.time_weight), wants, strict=True)
    ]
    gradients = [None if x is None else empty_float32(*x.shape) for x in (q_LHD, k_LHD, v_LHV, *wanted)]
    workspace = _workspace(_library().hstu_attention_backward_workspace(call.problem))
    outputs = _Outputs(*(pointer(x) for x in gradients))
    _library().hstu_attention_backward(call.problem, _HeadRows.of(grad_LHV), pointer(workspace), outputs)
    return Gradients(*(None if x is None else x.to(q_LHD.dtype) for x in gradients))  # type: ignore[arg-type]


class _HeadRows(ctypes.Structure):
    """HeadRows in attention_problem.h."""

    _fields_ = (("data", ctypes.c_void_p), ("row_stride", ctypes.c_int64), ("head_stride", ctypes.c_int64))

    @classmethod
    def of(cls, x_LHD: Tensor) -> _HeadRows:
        return cls(pointer(x_LHD), x_LHD.stride(0), x_LHD.stride(1))


class _Problem(ctypes.Structure):
    """Problem in attention_problem.h."""

    _fields_ = (
        *((name, _HeadRows) for name in ("q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ("offsets", "num_targets", "position_weight", "time_weight")),
        *((name, ctypes.c_void_p) for name in ("timestamps", "next_timestamps", "thresholds")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_sequences", "num_heads", "dim_qk", "dim_v")),
        *((name, ctypes.c_int64) for name in ("max_len", "num_context", "window", "num_threads")),
        ("alpha", ctypes.c_float),
    )


class _Outputs(ctypes.Structure):
    """Outputs in cpu/attention.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("q", "k", "v", "position_weight", "time_weight"))


class _Call:
    """The problem as C++ takes it, and the tensors that its pointers need alive."""

    def __init__(self, q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, arguments: Arguments) -> None:
        bias = arguments.bias
        rows = [_single(x) for x in (q_LHD, k_LHD, v_LHV)]
        tables = [None if x is None else x.float().contiguous() for x in (bias.position_weight, bias.time_weight)]
        times = bias.times() if bias.time_weight is not None else (None, None)
        integers = [None if x is None else x.contiguous() for x in (arguments.offsets, arguments.num_targets, *times)]
        self._alive = rows, tables, integers
        self.problem = _Problem(
            *map(_HeadRows.of, rows),
            *map(pointer, (*integers[:2], *tables, *integers[2:], thresholds())),
            *(len(q_LHD), len(arguments.offsets) - 1, *q_LHD.shape[1:], v_LHV.shape[2]),
            *(arguments.max_len, arguments.num_context, arguments.window, torch.get_num_threads()),
            arguments.alpha,
        )


def _single(x_LHD: Tensor) -> Tensor:
    """Return x as float32, the values of one head of one row side by side."""
    x = x_LHD.float()
    return x if x.stride(2) == 1 or x.shape[2] <= 1 else x.contiguous()


def _workspace(num_floats: int) -> Tensor:
    if num_floats < 0:  # what hstu_attention checks is not known to a compiler, and numpy can change it later
        raise ValueError("offsets and num_targets do not fit q and max_len, or a sequence is beyond 2^31 floats a head")
    return empty_float32(num_floats)


@cache
def thresholds() -> Tensor:
    """Return the thresholds of the time buckets as C++ takes them, (128,) int64."""
    return torch.tensor(TIME_THRESHOLDS, dtype=torch.int64, device="cpu")


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.load()
    problem = ctypes.POINTER(_Problem)
    for function in (library.hstu_attention_forward_workspace, library.hstu_attention_backward_workspace):
        function.argtypes, function.restype = (problem,), ctypes.c_int64
    library.hstu_attention_forward.argtypes = (problem, ctypes.c_void_p, ctypes.c_void_p)
    library.hstu_attention_backward.argtypes = (
        problem,
        ctypes.POINTER(_HeadRows),
        ctypes.c_void_p,
        ctypes.POINTER(_Outputs),
    )
    library.hstu_attention_forward.restype = library.hstu_attention_backward.restype = None
    return library
