"""The gated norm in Triton: each program reads its rows once and writes them once. The mask is that of dropout_mask.py.

A row's two halves are one dimension of a tile (2, R, C), so that each hashed word serves both of its elements: 4
instructions an element, where tl.rand, Philox with one of four words used, takes 62 (counted on sm_90). An H200 issues
about 36 until its memory has delivered the next element of a forward pass in bfloat16, and the whole pass takes 25.

Shapes: L rows, W width; R rows of a program, C words of a row's mask, both padded to powers of two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import gated_norm_torch
from kernels.dropout_mask import threshold_of

MAX_WIDTH = 8192
_TILE = 2048  # elements: 16 a thread with 4 warps, in bfloat16 two loads of 16 bytes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(o_LW: Tensor, u_LW: Tensor, eps: float, dropout: float, seed: int) -> Tensor:
    """Return (L, W). float64 and rows wider than MAX_WIDTH take the torch backend: the mask is the same."""
    if not _is_taken(o_LW):
        return gated_norm_torch.forward(o_LW, u_LW, eps, dropout, seed)
    o, u = _dense_rows(o_LW), _dense_rows(u_LW)
    y = torch.empty(o.shape, dtype=o.dtype, device=o.device)
    grid, constants = _tile(o, dropout)
    with torch.cuda.device_of(o):
        _forward_kernel[grid](o, u, y, o.stride(0), u.stride(0), len(o), eps, seed, **constants)
    return y


def backward(
    grad_LW: Tensor, o_LW: Tensor, u_LW: Tensor, eps: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of o and u, contiguous; by the torch backend where `forward` is."""
    if not _is_taken(o_LW):
        return gated_norm_torch.backward(grad_LW, o_LW, u_LW, eps, dropout, seed)
    inputs = grad, o, u = _dense_rows(grad_LW), _dense_rows(o_LW), _dense_rows(u_LW)
    grad_o, grad_u = (torch.empty(o.shape, dtype=o.dtype, device=o.device) for _ in range(2))
    grid, constants = _tile(o, dropout)
    strides = grad.stride(0), o.stride(0), u.stride(0)
    with torch.cuda.device_of(o):
        _backward_kernel[grid](*inputs, grad_o, grad_u, *strides, len(o), eps, seed, **constants)
    return grad_o, grad_u


def _is_taken(o_LW: Tensor) -> bool:
    return o_LW.dtype in _DTYPES and 0 < o_LW.shape[1] <= MAX_WIDTH


def _dense_rows(x_LW: Tensor) -> Tensor:
    """Return x, copied where a row's elements are not side by side, or rows too far apart for int32 in a tile."""
    return x_LW if x_LW.stride(1) == 1 and x_LW.stride(0) * _TILE < 2**31 else x_LW.contiguous()


def _tile(o_LW: Tensor, dropout: float) -> tuple[tuple[int], dict[str, Any]]:
    """Return the number of programs and a kernel's constants: the model's own, so that few variants are compiled."""
    num_rows, width = o_LW.shape
    padded_half = triton.next_power_of_2(triton.cdiv(width, 2))
    rows = max(1, _TILE // (2 * padded_half))
    constants = {
        "WIDTH": width,
        "THRESHOLD": threshold_of(dropout),
        "R": rows,
        "C": padded_half,
        "num_warps": max(4, 2 * padded_half // 512),
    }
    return (triton.cdiv(num_rows, rows),), constants


# Else a batch of 1 row, or of a multiple of 16, would be compiled anew.
_NOT_SPECIALIZED = ["num_rows", "seed"]


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def _forward_kernel(
    o_ptr: tl.tensor,  # (L, W), as u and y
    u_ptr: tl.tensor,
    y_ptr: tl.tensor,
    o_stride: tl.tensor,
    u_stride: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    seed: tl.tensor,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
) -> None:
    start, row, column, is_inside = _places(num_rows, WIDTH, R, C)
    o = tl.load(o_ptr + start * o_stride + (row * o_stride + column), mask=is_inside, other=0).to(tl.float32)
    u = tl.load(u_ptr + start * u_stride + (row * u_stride + column), mask=is_inside, other=0).to(tl.float32)
    normed, _ = _normalized(o, is_inside, eps, WIDTH)
    y = _dropped(normed * u, start + row, seed, THRESHOLD, C)
    tl.store(y_ptr + start * WIDTH + (row * WIDTH + column), y, mask=is_inside)


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def _backward_kernel(
    grad_ptr: tl.tensor,  # (L, W), as all that follow
    o_ptr: tl.tensor,
    u_ptr: tl.tensor,
    grad_o_ptr: tl.tensor,
    grad_u_ptr: tl.tensor,
    grad_stride: tl.tensor,
    o_stride: tl.tensor,
    u_stride: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    seed: tl.tensor,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
) -> None:
    start, row, column, is_inside = _places(num_rows, WIDTH, R, C)
    o = tl.load(o_ptr + start * o_stride + (row * o_stride + column), mask=is_inside, other=0).to(tl.float32)
    u = tl.load(u_ptr + start * u_stride + (row * u_stride + column), mask=is_inside, other=0).to(tl.float32)
    grad = tl.load(grad_ptr + start * grad_stride + (row * grad_stride + column), mask=is_inside, other=0).to(
        tl.float32
    )
    normed, rstd = _normalized(o, is_inside, eps, WIDTH)
    grad = _dropped(grad, start + row, seed, THRESHOLD, C)
    tl.store(grad_u_ptr + start * WIDTH + (row * WIDTH + column), grad * normed, mask=is_inside)
    grad_normed = grad * u
    along = _row_sum(grad_normed * normed) / WIDTH
    grad_o = (grad_normed - _row_sum(grad_normed) / WIDTH - normed * along) * rstd
    tl.store(grad_o_ptr + start * WIDTH + (row * WIDTH + column), grad_o, mask=is_inside)


@triton.jit
def _places(
    num_rows: tl.tensor, WIDTH: tl.constexpr, R: tl.constexpr, C: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the first row, row (1, R, 1) counted from it, column (2, 1, C), and which of these places exist.

    There may be more than 2^31 elements, but not in one tile: only the first row's offset takes 64 bits.
    """
    HALF: tl.constexpr = (WIDTH + 1) // 2
    start = tl.program_id(0).to(tl.int64) * R
    row = tl.arange(0, R)[None, :, None]
    word = tl.arange(0, C)[None, None, :]
    column = tl.arange(0, 2)[:, None, None] * HALF + word
    return start, row, column, (start + row < num_rows) & (word < HALF) & (column < WIDTH)


@triton.jit
def _normalized(o: tl.tensor, is_inside: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return the normalised rows, 0 outside, and (1, R, 1) 1 / sqrt(variance + eps), the mean taken out first."""
    centered = tl.where(is_inside, o - _row_sum(o) / WIDTH, 0.0)
    rstd = tl.rsqrt(_row_sum(centered * centered) / WIDTH + eps)
    return centered * rstd, rstd


@triton.jit
def _row_sum(x: tl.tensor) -> tl.tensor:
    return tl.sum(tl.sum(x, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def _dropped(x: tl.tensor, row: tl.tensor, seed: tl.tensor, THRESHOLD: tl.constexpr, C: tl.constexpr) -> tl.tensor:
    """Return x (2, R, C) with the mask of dropout_mask.py applied."""
    if THRESHOLD == 0:
        return x
    row_hash = _mix(_mix(seed.to(tl.uint32)) + row.to(tl.uint32))
    word = _mix(row_hash + tl.arange(0, C)[None, None, :].to(tl.uint32) * 0x9E3779B9)
    bits = (word >> (tl.arange(0, 2)[:, None, None] * 16).to(tl.uint32)) & 0xFFFF
    return tl.where(bits >= THRESHOLD, x * (65536 / (65536 - THRESHOLD)), 0.0)


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    """Mix the bits of uint32, whose arithmetic wraps."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
