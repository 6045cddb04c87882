"""All layers of HSTU over the new rows of one history, in one call of C++ (cpu/extend.cpp): what a service computes.

    layers = PackedLayers([LayerWeights(uvqk, output.weight, output.bias, position_weight, time_weight), ...], heads)
    x_1D, keys, values = layers.extend(x_MD, timestamps_K, asked_at_K, past_keys=(), past_values=())

For the published layer in float32 without gradients. One user of 200 events with 2 blocks of D = 50 is some 18 MFLOP,
a quarter of a millisecond; as 60 operations of torch it is six times that.
Shapes: n rows kept, M new rows, K = n + M, H heads, Dqk and Dv head widths, D embedding width, N max_len.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.cpu import library as cpu_library
from kernels.cpu.library import empty_float32, pointer
from kernels.hstu_cpu import thresholds

_PACKED = 16  # columns of a packed matrix are a multiple of it: PACKED in cpu/extend.cpp


class LayerWeights(NamedTuple):
    """What one layer computes with, float32 on the CPU."""

    uvqk: Tensor  # (D, 2 H Dv + 2 H Dqk)
    output: Tensor  # (D, H Dv)
    output_bias: Tensor  # (D,)
    position: Tensor | None  # (2N-1,)
    time: Tensor | None  # (129,)


@dataclass(frozen=True)
class LayerShape:
    """What all layers have in common."""

    num_heads: int
    dim_qk: int
    dim_v: int
    max_len: int
    eps: float


class PackedLayers:
    """The weights of all layers as C++ reads them: copies, so that they stay what they were."""

    def __init__(self, layers: Sequence[LayerWeights], shape: LayerShape) -> None:
        self._shape = shape
        width_v, width_qk = shape.num_heads * shape.dim_v, shape.num_heads * shape.dim_qk
        self._packed: list[list[Tensor | None]] = []
        for layer in layers:
            u, v, q, k = layer.uvqk.detach().split([width_v, width_v, width_qk, width_qk], dim=1)
            matrices = torch.cat([u, q], dim=1), torch.cat([v, k], dim=1), layer.output.detach().T
            vectors = (layer.output_bias, layer.position, layer.time)
            copies = [None if x is None else x.detach().clone() for x in vectors]
            self._packed.append([*map(_pack, matrices), *copies])

    def extend(
        self,
        x_MD: Tensor,
        timestamps_K: Tensor,
        asked_at_K: Tensor,
        past_keys: Sequence[Tensor],
        past_values: Sequence[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the last row after all layers (1, D), and of each layer keys (K, H, Dqk) and values (K, H, Dv).

        Args:
            x_MD: the embedded new rows, contiguous.
            timestamps_K: int64 seconds, contiguous as all others.
            asked_at_K: int64 seconds of each row's next event; only those of the new rows matter.
            past_keys: of each layer (n, H, Dqk); none for n = 0.
            past_values: of each layer (n, H, Dv).

        Raises:
            ValueError: K > N, or x is not float32.
        """
        if x_MD.dtype != torch.float32:
            raise ValueError(f"x is {x_MD.dtype}, expected torch.float32 as when the layers were packed")
        shape, length = self._shape, len(timestamps_K)
        keys = tuple(empty_float32(length, shape.num_heads, shape.dim_qk) for _ in self._packed)
        values = tuple(empty_float32(length, shape.num_heads, shape.dim_v) for _ in self._packed)
        nothing = [None] * len(self._packed)
        pasts = zip(past_keys or nothing, past_values or nothing, keys, values, strict=True)
        layers = (_Layer * len(self._packed))(
            *(_Layer(*map(pointer, (*packed, *rows))) for packed, rows in zip(self._packed, pasts, strict=True))
        )
        sizes = len(layers), length - len(x_MD), *x_MD.shape, shape.num_heads, shape.dim_qk, shape.dim_v, shape.max_len
        history = _History(layers, *map(pointer, (x_MD, timestamps_K, asked_at_K, thresholds())), *sizes, shape.eps)
        num_floats = _library().hstu_extend_workspace(history)
        if num_floats < 0:
            raise ValueError(f"a history of {length} rows, expected at most {shape.max_len}")
        workspace, output_1D = empty_float32(num_floats), empty_float32(1, x_MD.shape[1])
        _library().hstu_extend(history, pointer(workspace), pointer(output_1D))
        return output_1D, keys, values


def _pack(matrix: Tensor) -> Tensor:
    return pad(matrix, (0, -matrix.shape[1] % _PACKED)).contiguous()


class _Layer(ctypes.Structure):
    """Layer in cpu/extend.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("uq", "vk", "output", "output_bias", "position_weight", "time_weight"),
            *("past_keys", "past_values", "keys", "values"),
        )
    )


class _History(ctypes.Structure):
    """History in cpu/extend.cpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("x", "timestamps", "asked_at", "thresholds")),
        *((name, ctypes.c_int64) for name in ("num_layers", "num_past", "num_new", "dim")),
        *((name, ctypes.c_int64) for name in ("num_heads", "dim_qk", "dim_v", "max_len")),
        ("eps", ctypes.c_float),
    )


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.load()
    history = ctypes.POINTER(_History)
    library.hstu_extend_workspace.argtypes, library.hstu_extend_workspace.restype = (history,), ctypes.c_int64
    library.hstu_extend.argtypes, library.hstu_extend.restype = (history, ctypes.c_void_p, ctypes.c_void_p), None
    return library
