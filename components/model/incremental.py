"""HSTU one event at a time: rows that are final stay as keys and values, and only new rows are computed.

Row i of a history sees the time of event i + 1, so an event is final when the next one is known: its keys and values
in every layer then never change. The last event's row waits for the request time. One more event costs one row (the one
before it, now final) and the last instead of n:

    y_MD, past = extend(model, None, items, timestamps, [*timestamps[1:], request_time])             # once
    past = past.without_last()
    y_MD, past = extend(model, past, items[-2:], timestamps[-2:], [timestamps[-1], request_time])    # one event more

The row that is final now and the new last one go together: a call takes as long for one row as for two.

The attention of new rows over kept keys is plain torch: of one row over 200 keys little is left to fuse.
Shapes: n rows kept, M new rows, K = n + M, H heads, Dqk and Dv head widths, D embedding width, N max_len.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from components.model.embedding import l2_normalize
from kernels import RelativeBias
from kernels.time_buckets import time_buckets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from components.model.hstu import HSTU, HSTULayer


@dataclass(frozen=True, eq=False)
class Past:
    """The final rows of one history: (n,) int64 seconds, and for each layer keys (n, H, Dqk) and values (n, H, Dv)."""

    timestamps: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors, a row that `without_last` left out included."""
        return self.timestamps.nbytes + sum(t.untyped_storage().nbytes() for t in (*self.keys, *self.values))

    def without_last(self) -> Past:
        """Return all rows but the last, as views: its memory stays until these are extended."""
        return Past(self.timestamps[:-1], tuple(k[:-1] for k in self.keys), tuple(v[:-1] for v in self.values))


def extend(
    model: HSTU, past: Past | None, items_M: Tensor, timestamps_M: Tensor, next_timestamps_M: Tensor
) -> tuple[Tensor, Past]:
    """Return the new rows' vectors (M, D), length 1 each, and the past with those rows in it.

    Args:
        model: in evaluation mode; attention of either kind, any bias.
        past: what comes before the new rows in the same window, None for nothing.
        items_M: int64 catalogue rows; one at least.
        timestamps_M: int64 seconds.
        next_timestamps_M: when the event after each one comes; for the last, the time of the request.

    Raises:
        ValueError: the window would be longer than N.
    """
    start = len(past) if past else 0
    if start + len(items_M) > len(model.embedding.position):
        raise ValueError(f"{start} + {len(items_M)} rows, expected at most {len(model.embedding.position)}")
    asked_at_M = next_timestamps_M if model.knows_request_time else timestamps_M
    times_K = torch.cat([past.timestamps, timestamps_M]) if past else timestamps_M
    x_MD = model.embedding.embed(items_M, torch.arange(start, start + len(items_M)))
    buckets_MK = time_buckets(asked_at_M[:, None] - times_K[None, :]) if past else None
    keys, values = [], []
    for number, layer in enumerate(cast("Iterable[HSTULayer]", model.layers)):
        u_MC, q_MHD, k_MHD, v_MHV = layer.project(x_MD)
        if past is None or buckets_MK is None:  # a whole window: what forward computes, with its kernel
            offsets = torch.tensor([0, len(items_M)])
            o_MHV = layer.attend(q_MHD, k_MHD, v_MHV, offsets, RelativeBias(None, None, timestamps_M, asked_at_M))
            k_KHD, v_KHV = k_MHD.clone(), v_MHV.clone()  # and not the whole projection that they are views of
        else:
            k_KHD, v_KHV = torch.cat([past.keys[number], k_MHD]), torch.cat([past.values[number], v_MHV])
            o_MHV = _attend(layer, q_MHD, k_KHD, v_KHV, buckets_MK)
        x_MD = layer.finish(x_MD, u_MC, o_MHV)
        keys.append(k_KHD)
        values.append(v_KHV)
    return l2_normalize(x_MD), Past(times_K, tuple(keys), tuple(values))


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
