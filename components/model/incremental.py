"""HSTU one history at a time: rows that are final stay as keys and values, and only new rows are computed.

Row i of a history sees the time of event i + 1, so an event is final when the next one is known: its keys and values
in every layer then never change. The last event's row waits for the request time. One more event costs one row (the one
before it, now final) and the last instead of n:

    encoder = Encoder(model)
    y_1D, past = encoder.resume(None, rows, timestamps, request_time)                             # the whole history
    y_1D, past = encoder.resume(past.without_last(), [*rows, row], [*timestamps, when], later)    # one event more
    y_1D = encoder.encode(rows, timestamps, request_time)                                         # nothing is kept

The row that is final now and the new last one go together: a call takes as long for one row as for two.

Who asks for one history's next item wants the last row of the last layer alone: there the others give their keys and
values, and nothing else of them is computed. The published layer in float32 is one call of C++ where there is a
compiler (kernels/extend_cpu.py); any other, and any dtype, is what `forward` is made of.
Shapes: n rows kept, M new rows, K = n + M, H heads, Dqk and Dv head widths, D embedding width, N max_len.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from components.model.embedding import LEAST_LENGTH, l2_normalize
from components.model.hstu import NORM_EPS
from kernels import RelativeBias, choose_backend
from kernels.extend_cpu import EncoderShape, KeysAndValues, LayerWeights, PackedLayers
from kernels.time_buckets import time_buckets

if TYPE_CHECKING:
    from components.model.embedding import InputEmbedding
    from components.model.hstu import HSTU, HSTULayer


@dataclass(frozen=True, eq=False)
class Past:
    """The final rows of one history: (n,) int64 seconds, and what each layer keeps of them."""

    timestamps: Tensor
    layers: tuple[KeysAndValues, ...]

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors, a row that `without_last` left out included."""
        return self.timestamps.nbytes + sum(t.untyped_storage().nbytes() for layer in self.layers for t in layer)

    def without_last(self) -> Past:
        """Return all rows but the last, as views: its memory stays until these are extended."""
        return Past(self.timestamps[:-1], tuple(KeysAndValues(k[:-1], v[:-1]) for k, v in self.layers))


class Encoder:
    """Encodes histories with a model in evaluation mode, attention of either kind, any bias. No gradients.

    It may hold copies of the layers' weights: when a model has been trained on, make another one.
    """

    def __init__(self, model: HSTU) -> None:
        self._embedding = model.embedding
        self._layers = cast("list[HSTULayer]", list(model.layers))
        self._knows_request_time = model.knows_request_time
        self._packed = _pack(model.embedding, self._layers)

    def with_embedding(self, embedding: InputEmbedding) -> Encoder:
        """Return an encoder of more items that shares the layers with this one."""
        longer = copy.copy(self)
        longer._embedding = embedding
        return longer

    def encode(self, rows_K: np.ndarray, timestamps_K: np.ndarray, request_time: int) -> Tensor:
        """Return the vector (1, D), of length 1, of a history of 1 to N known items in time order."""
        return self._run(None, *_new_rows(0, rows_K, timestamps_K, request_time), is_kept=False)[0]

    def resume(
        self, past: Past | None, rows_K: np.ndarray, timestamps_K: np.ndarray, request_time: int
    ) -> tuple[Tensor, Past]:
        """Return the same and the whole history's past, where `past` are its first rows, or None."""
        return self.extend(past, *_new_rows(len(past) if past else 0, rows_K, timestamps_K, request_time))

    def extend(
        self, past: Past | None, items_M: Tensor, timestamps_M: Tensor, next_timestamps_M: Tensor
    ) -> tuple[Tensor, Past]:
        """Return the last row's vector (1, D), of length 1, and the past with the new rows in it.

        Args:
            past: what comes before the new rows in the same window, None for nothing.
            items_M: int64 catalogue rows; one at least.
            timestamps_M: int64 seconds.
            next_timestamps_M: when the event after each one comes; for the last, the time of the request.

        Raises:
            ValueError: the window would be longer than N, or these do not fit together.
        """
        return self._run(past, items_M, timestamps_M, next_timestamps_M, is_kept=True)

    def _run(
        self, past: Past | None, items_M: Tensor, timestamps_M: Tensor, next_timestamps_M: Tensor, *, is_kept: bool
    ) -> tuple[Tensor, Past]:
        start = len(past) if past else 0
        end, max_len = start + len(items_M), len(self._embedding.position)
        if end > max_len:
            raise ValueError(f"{start} + {len(items_M)} rows, expected at most {max_len}")
        asked_at_M = next_timestamps_M if self._knows_request_time else timestamps_M
        times_K = torch.cat([past.timestamps, timestamps_M]) if past else timestamps_M
        before = past.layers if past else ()
        if self._packed is not None:
            tables = self._embedding.item.weight, self._embedding.position
            y_1D, layers = self._packed.extend(*tables, items_M, times_K, asked_at_M, before, is_kept=is_kept)
            return y_1D, Past(times_K, layers)
        with torch.inference_mode():
            x_MD = self._embedding.embed(items_M, slice(start, end))
            x_1D, layers = _extend(self._layers, before, x_MD, times_K, asked_at_M)
            return l2_normalize(x_1D), Past(times_K, layers)


def _new_rows(
    start: int, rows_K: np.ndarray, timestamps_K: np.ndarray, request_time: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, timestamps and next timestamps of the rows from `start` on."""
    next_timestamps_M = np.append(timestamps_K[start + 1 :], request_time)
    return _to_long(rows_K[start:]), _to_long(timestamps_K[start:]), _to_long(next_timestamps_M)


def _to_long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _pack(embedding: InputEmbedding, layers: list[HSTULayer]) -> PackedLayers | None:
    """Return the layers for C++, None where they are not what it computes, or there is none."""
    weights = [*embedding.parameters(), *(weight for layer in layers for weight in layer.parameters())]
    if any(weight.dtype != torch.float32 or weight.device.type != "cpu" for weight in weights):
        return None
    if choose_backend("cpu", embedding.backend)[0] != "cpu" or not all(layer.is_as_published for layer in layers):
        return None
    shape = EncoderShape(
        dim=embedding.item.embedding_dim,
        num_heads=layers[0].num_heads,
        dim_qk=layers[0].widths[2] // layers[0].num_heads,
        dim_v=layers[0].widths[0] // layers[0].num_heads,
        max_len=layers[0].max_len,
        scale=embedding.scale,
        eps=NORM_EPS,
        least_length=LEAST_LENGTH,
    )
    published = [
        LayerWeights(layer.uvqk, layer.output.weight, layer.output.bias, layer.position_weight, layer.time_weight)
        for layer in layers
    ]
    return PackedLayers(published, shape)


def _extend(
    layers: list[HSTULayer],
    past: tuple[KeysAndValues, ...],
    x_MD: Tensor,
    times_K: Tensor,
    asked_at_M: Tensor,
) -> tuple[Tensor, tuple[KeysAndValues, ...]]:
    """Return the last row after all layers (1, D), and what each layer keeps of all rows."""
    kept = []
    for number, layer in enumerate(layers):
        u_MC, q_MHD, k_MHD, v_MHV = layer.project(x_MD)
        if past:
            k_KHD, v_KHV = torch.cat([past[number].keys, k_MHD]), torch.cat([past[number].values, v_MHV])
        else:
            k_KHD, v_KHV = k_MHD.clone(), v_MHV.clone()  # and not the whole projection that they are views of
        if layer is layers[-1]:
            x_MD, u_MC, q_MHD, asked_at_M = x_MD[-1:], u_MC[-1:], q_MHD[-1:], asked_at_M[-1:]
        if not past and layer is not layers[-1]:  # what forward computes, with its kernel
            offsets = torch.tensor([0, len(x_MD)])
            o_MHV = layer.attend(q_MHD, k_MHD, v_MHV, offsets, RelativeBias(None, None, times_K, asked_at_M))
        else:
            o_MHV = _attend(layer, q_MHD, k_KHD, v_KHV, time_buckets(asked_at_M[:, None] - times_K[None, :]))
        x_MD = layer.finish(x_MD, u_MC, o_MHV)
        kept.append(KeysAndValues(k_KHD, v_KHV))
    return x_MD, tuple(kept)


def _attend(layer: HSTULayer, q_MHD: Tensor, k_KHD: Tensor, v_KHV: Tensor, buckets_MK: Tensor) -> Tensor:
    """Return (M, H, Dv): the new rows, the last M of K, over all keys up to their own."""
    scores_HMK = q_MHD.transpose(0, 1) @ k_KHD.permute(1, 2, 0)
    column_K = torch.arange(len(k_KHD))
    row_M = column_K[-len(q_MHD) :]
    is_later_MK = column_K[None, :] > row_M[:, None]
    if layer.is_softmax:
        scores_HMK = (scores_HMK / math.sqrt(q_MHD.shape[2])).masked_fill(is_later_MK, -torch.inf)
        weights_HMK = scores_HMK.softmax(-1)
    else:
        if layer.position_weight is not None:
            place_MK = layer.max_len - 1 + column_K[None, :] - row_M[:, None]
            scores_HMK = scores_HMK + layer.position_weight[..., place_MK]
        if layer.time_weight is not None:
            scores_HMK = scores_HMK + layer.time_weight[..., buckets_MK]
        weights_HMK = (silu(scores_HMK) / layer.max_len).masked_fill(is_later_MK, 0.0)
    return (weights_HMK @ v_KHV.transpose(0, 1)).transpose(0, 1)
