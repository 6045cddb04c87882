"""Softmax cross-entropy with each row's own sample of a table, fused on the CPU: no (M, C, D) gather in memory.

    loss_i = -p_i + ln(exp(p_i) + w sum_c [c is not i's target] exp(s_ic))
    p_i = <y_i, positive_i> / T,   s_ic = <y_i, x_items(i, c)> / T

Shapes: M rows, D width, X vectors of the table, C samples of a row.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.choice import choose_backend
from kernels.cpu import library as cpu_library
from kernels.cpu.library import pointer

_WIDTHS = 16  # rows are filled up to a multiple of it: whole vectors in every instruction set


class SampledGradients(NamedTuple):
    """Of the sum of the losses, less the factor 1 / T; rows may be strided."""

    y_MD: Tensor
    positives_MD: Tensor
    table_XD: Tensor


def can_fuse(y_MD: Tensor, backend: str) -> bool:
    """Whether `sampled_softmax` is what `backend` (see `kernels.choice`) means for such rows: float32 on a CPU."""
    return y_MD.dtype == torch.float32 and choose_backend(y_MD.device, backend)[0] == "cpu"


def sampled_softmax(
    y_MD: Tensor,
    positives_MD: Tensor,
    table_XD: Tensor,
    targets_M: Tensor,
    items_MC: Tensor,
    *,
    scale: float,
    weight: float,
    wants_gradients: bool,
) -> tuple[Tensor, SampledGradients | None]:
    """Return the losses (M,) and, where wanted, their gradients; bit by bit the same with any number of threads.

    Args:
        y_MD: float32 on the CPU, as all vectors.
        positives_MD: row i is the vector of row i's target.
        table_XD: what is sampled from.
        targets_M: int64; a sample that equals its row's target does not count.
        items_MC: int64, rows of the table, which may repeat.
        scale: 1 / T.
        weight: w, how many items a sample stands for.
        wants_gradients: False returns the losses only.

    Raises:
        ValueError: shapes or dtypes do not fit together.
        IndexError: an item is no row of the table.
    """
    (num_rows, num_samples), (table_rows, width) = items_MC.shape, table_XD.shape
    _check(y_MD, positives_MD, table_XD, targets_M, items_MC)
    y, positives, table = (_fill_up(x.detach()) for x in (y_MD, positives_MD, table_XD))
    targets, items = targets_M.contiguous(), items_MC.contiguous()
    losses = y.new_empty(num_rows)
    outputs: tuple[Tensor | None, ...] = (None,) * 4
    if wants_gradients:
        outputs = y.new_empty(num_rows, num_samples), *map(torch.empty_like, (y, y)), torch.zeros_like(table)
    within = cpu_library.load().hstuflow_sampled_softmax(
        *map(pointer, (y, positives, table, targets, items)),
        *map(ctypes.c_int64, (num_rows, num_samples, table_rows, table.shape[1])),
        *map(ctypes.c_float, (scale, weight)),
        *map(pointer, (losses, *outputs)),
        ctypes.c_int64(torch.get_num_threads()),
    )
    if not within:
        raise IndexError(f"an item is no row of a table of {table_rows}")
    _, *gradients = outputs
    return losses, SampledGradients(*(x[:, :width] for x in gradients if x is not None)) if wants_gradients else None


def _check(y_MD: Tensor, positives_MD: Tensor, table_XD: Tensor, targets_M: Tensor, items_MC: Tensor) -> None:
    expected = len(items_MC), table_XD.shape[1]
    if y_MD.shape != expected or positives_MD.shape != expected or targets_M.shape != expected[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (y_MD, positives_MD, table_XD, targets_M, items_MC))
        raise ValueError(f"y, positives, table, targets, items have shapes {shapes}, do not fit together")
    vectors, numbers = {x.dtype for x in (y_MD, positives_MD, table_XD)}, {targets_M.dtype, items_MC.dtype}
    if vectors != {torch.float32} or numbers != {torch.int64}:
        raise ValueError(f"vectors are {vectors}, targets and items {numbers}, expected float32 and int64")


def _fill_up(x: Tensor) -> Tensor:
    """Add columns of zeros up to whole vectors; contiguous."""
    spare = -x.shape[1] % _WIDTHS
    return pad(x, (0, spare)) if spare else x.contiguous()
