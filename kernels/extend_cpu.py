"""HSTU over the new rows of one history, in one call of C++ (cpu/extend.cpp): what a service computes.

    packed = PackedLayers([LayerWeights(uvqk, output.weight, output.bias, position_weight, time_weight), ...], shape)
    y_1D, past = packed.extend(table_XD, position_ND, items_M, timestamps_K, asked_at_M)

For the published layer in float32 without gradients. One user of 200 events with 2 blocks of D = 50 is some 12 MFLOP,
a fifth of a millisecond; as 60 operations of torch it is six times that.
Shapes: n rows kept, M new rows, K = n + M, H heads, Dqk and Dv head widths, D embedding width, N max_len, X items.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.cpu import library as cpu_library
from kernels.cpu.library import empty_float32
from kernels.hstu_cpu import thresholds

_PACKED = 16  # columns of a packed matrix are a multiple of it: PACKED in cpu/extend.cpp


class LayerWeights(NamedTuple):
    """What one layer computes with, float32 on the CPU."""

    uvqk: Tensor  # (D, 2 H Dv + 2 H Dqk)
    output: Tensor  # (D, H Dv)
    output_bias: Tensor  # (D,)
    position: Tensor | None  # (2N-1,)
    time: Tensor | None  # (129,)


class KeysAndValues(NamedTuple):
    """Of the n rows of a history, in one layer."""

    keys: Tensor  # (n, H, Dqk)
    values: Tensor  # (n, H, Dv)


class EncoderShape(NamedTuple):
    """What all layers have in common."""

    dim: int
    num_heads: int
    dim_qk: int
    dim_v: int
    max_len: int
    scale: float  # of item vectors, before the position's is added
    eps: float  # of the layer norms
    least_length: float  # what shorter answers are divided by, so that they do not become long


class PackedLayers:
    """The weights of all layers as C++ reads them: copies, so that they stay what they were."""

    def __init__(self, layers: Sequence[LayerWeights], shape: EncoderShape) -> None:
        self._shape = shape
        width_v, width_qk = shape.num_heads * shape.dim_v, shape.num_heads * shape.dim_qk
        self._workspaces: list[Tensor] = []  # as many as there were calls at once; append and pop are atomic
        self._alive: list[Tensor | None] = []
        self._addresses = []
        for layer in layers:
            u, v, q, k = layer.uvqk.detach().split([width_v, width_v, width_qk, width_qk], dim=1)
            matrices = torch.cat([u, q], dim=1), torch.cat([v, k], dim=1), layer.output.detach().T
            vectors = (layer.output_bias, layer.position, layer.time)
            copies = [*map(_pack, matrices), *(None if x is None else x.detach().clone() for x in vectors)]
            self._alive += copies
            self._addresses.append([None if x is None else x.data_ptr() for x in copies])

    def extend(
        self,
        table_XD: Tensor,
        position_ND: Tensor,
        items_M: Tensor,
        timestamps_K: Tensor,
        asked_at_M: Tensor,
        past: Sequence[KeysAndValues] = (),
        *,
        is_kept: bool = True,
    ) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
        """Return the last row's vector (1, D), and of each layer what `past` has of it, for all rows.

        Args:
            table_XD: the items' vectors; float32, contiguous and on the CPU, as all that is no integer.
            position_ND: a place each, from 0.
            items_M: the new rows' items, one at least; int64, contiguous and on the CPU, as all times.
            timestamps_K: seconds.
            asked_at_M: seconds; of the last row the request's, of the others the next event's.
            past: of each layer; nothing for n = 0.
            is_kept: whether keys and values are wanted, which take a sixth of the time; else the answer's may be empty.

        Raises:
            ValueError: these do not fit together, K > N, or the table lacks an item.
        """
        shape, length = self._shape, len(timestamps_K)
        self._check((table_XD, position_ND), (items_M, timestamps_K, asked_at_M), past)
        widths = (shape.num_heads, shape.dim_qk), (shape.num_heads, shape.dim_v)
        layers, kept = (_Layer * len(self._addresses))(), []
        for number, addresses in enumerate(self._addresses):
            pointers: list[int | None] = [None] * 4
            if past or is_kept:
                kept.append(KeysAndValues(*(empty_float32(length, *width) for width in widths)))
                before = past[number] if past else (None, None)
                pointers = [None if x is None else x.data_ptr() for x in (*before, *kept[-1])]
            layers[number] = _Layer(*addresses, *pointers)
        history = _History(
            layers,
            *(x.data_ptr() for x in (table_XD, position_ND, items_M, timestamps_K, asked_at_M, thresholds())),
            *(len(layers), len(table_XD), length - len(items_M), len(items_M), *shape),
        )
        num_floats = _library().hstu_extend_workspace(history)
        if num_floats < 0:
            expected = f"at most {shape.max_len} rows of items from 0 to {len(table_XD) - 1}"
            raise ValueError(f"{length} rows, the new ones {items_M.tolist()[:8]}..., expected {expected}")
        workspace, output_1D = self._take_workspace(num_floats), empty_float32(1, shape.dim)
        _library().hstu_extend(history, workspace.data_ptr(), output_1D.data_ptr())
        self._workspaces.append(workspace)
        return output_1D, tuple(kept)

    def _take_workspace(self, num_floats: int) -> Tensor:
        """Return memory that no other call has now: used again, because keys and values stay.

        Where each call asks malloc for it, what is kept comes to lie in the gap that the last one left, and the next
        one does not fit there any more: of 20,000 users of two events each took 64 kB, and takes 8.
        """
        try:
            workspace = self._workspaces.pop()
        except IndexError:  # none yet, or as many calls at once as never before
            return empty_float32(num_floats)
        return workspace if len(workspace) >= num_floats else empty_float32(num_floats)

    def _check(self, tables: Sequence[Tensor], integers: Sequence[Tensor], past: Sequence[KeysAndValues]) -> None:
        """Raise ValueError for what C++, which gets addresses, would misread."""
        items_M, timestamps_K, asked_at_M = integers
        num_past = len(timestamps_K) - len(items_M)
        if not 1 <= len(items_M) <= len(timestamps_K) or len(asked_at_M) != len(items_M):
            lengths = ", ".join(str(len(x)) for x in integers)
            raise ValueError(f"items, timestamps and times of asking are {lengths}, expected M >= 1, K >= M and M")
        if len(past) != (len(self._addresses) if num_past else 0):
            raise ValueError(f"{num_past} rows are known and {len(past)} layers of them given")
        kept = [x for layer in past for x in layer]
        if any(len(x) != num_past for x in kept):
            raise ValueError(f"{num_past} rows are known and {[len(x) for x in kept]} given")
        for dtype, tensors in ((torch.int64, integers), (torch.float32, (*tables, *kept))):
            for x in tensors:
                if x.dtype != dtype or x.device.type != "cpu" or not x.is_contiguous():
                    found = f"{x.dtype} on {x.device}, of strides {x.stride()}"
                    raise ValueError(f"a tensor is {found}, expected {dtype} on the CPU, contiguous")


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
        *((name, ctypes.c_void_p) for name in ("item_table", "position_table", "items")),
        *((name, ctypes.c_void_p) for name in ("timestamps", "asked_at", "thresholds")),
        *((name, ctypes.c_int64) for name in ("num_layers", "num_items", "num_past", "num_new")),
        *((name, ctypes.c_int64) for name in ("dim", "num_heads", "dim_qk", "dim_v", "max_len")),
        *((name, ctypes.c_float) for name in ("scale", "eps", "least_length")),
    )


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.load()
    history = ctypes.POINTER(_History)
    library.hstu_extend_workspace.argtypes, library.hstu_extend_workspace.restype = (history,), ctypes.c_int64
    library.hstu_extend.argtypes, library.hstu_extend.restype = (history, ctypes.c_void_p, ctypes.c_void_p), None
    return library
