"""Matrices as the C++ operators take them: `Rows` of rows.h. Shapes: L rows, W width."""

from __future__ import annotations

import ctypes

from torch import Tensor


class Rows(ctypes.Structure):
    """A float32 matrix whose rows may lie anywhere, each in one piece; one that is not laid out like that is copied."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))

    def __init__(self, x_LW: Tensor) -> None:
        self._alive = x_LW if x_LW.stride(1) == 1 or x_LW.shape[1] <= 1 else x_LW.contiguous()
        super().__init__(self._alive.data_ptr(), self._alive.stride(0))
