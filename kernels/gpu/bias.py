"""The relative bias of a tile of scores, inside the attention kernels.

    rab_ij = position_weight[N - 1 + place(j) - place(i)] + time_weight[bucket(|next_timestamps_i - timestamps_j|)]

Buckets are logarithmic and timestamps nearly sorted, so most tiles far from the diagonal lie in one bucket, which the
extremes of their times tell: then the time bias is one number. Shapes: M rows of the tile held, N of the one streamed.
"""

# Arguments of kernels are pointers, numbers, tiles and constants, which have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Bias(NamedTuple):
    """Tables and times; None where there are none. Times are seconds since the sequence's first event."""

    position_weight: tl.tensor  # (2 * max_len - 1,)
    time_weight: tl.tensor  # (129,)
    thresholds: tl.tensor  # (129,): the smallest gap of each bucket; int32 or int64, like all times
    held_times: tl.tensor  # (L,)
    streamed_times: tl.tensor  # (L,)
    streamed_extremes: tl.tensor  # (blocks, 2): lowest and highest time of each tile that may be streamed
    max_len: tl.tensor


class Times(NamedTuple):
    """Of the rows of one tile."""

    times: tl.tensor
    lowest: tl.tensor
    highest: tl.tensor


@triton.jit
def bucket_of(gap, thresholds):
    """Return int32: the number of thresholds from the second on that are <= gap (not negative).

    The bits of a float32, read as an integer, are its base-2 logarithm to within 0.0861 (Mitchell): times 2^-23 and
    log(2) / 0.301 = 2.3028 they tell the bucket to within 0.2. Guessing 0.25 high leaves one threshold to compare with.
    """
    bits = tl.maximum(gap, 1).to(tl.float32).to(tl.int32, bitcast=True) - 0x3F800000
    guess = ((bits >> 9) * 1179 + (1 << 21)) >> 23  # 1179 / 2^9 = 2.3027, (1 << 21) / 2^23 = 0.25; below 2^31
    guess = tl.minimum(guess, 128)
    return guess - (gap < tl.load(thresholds + guess)).to(tl.int32)


@triton.jit
def load_times(times, sequence, first, BLOCK: tl.constexpr):
    """Return the Times (BLOCK,) from position `first` on; past the sequence's end they repeat its last one."""
    position = tl.minimum(tl.maximum(first + tl.arange(0, BLOCK), 0), sequence.length - 1)
    loaded = tl.load(times + sequence.start + position)
    return Times(loaded, tl.min(loaded, 0), tl.max(loaded, 0))


@triton.jit
def bucket_range(rows, columns, thresholds):
    """Return the lowest and the highest bucket of the gaps between two tiles' times."""
    least, most = rows.lowest - columns.highest, rows.highest - columns.lowest  # signed
    nearest = tl.maximum(tl.maximum(least, -most), 0)
    return bucket_of(nearest, thresholds), bucket_of(tl.maximum(most, -least), thresholds)


@triton.jit
def add_position_bias(scores, bias, i, j, sequence):
    """Return scores + the bias of query rows i and key columns j, which broadcast to the scores' shape."""
    # No row past the end is ever used, but its place must lie within the table.
    last = tl.minimum(sequence.history_end, sequence.length - 1)
    distance = tl.minimum(j, last) - tl.minimum(i, last)
    return scores + tl.load(bias.position_weight + (bias.max_len - 1) + distance).to(tl.float32)


@triton.jit
def hold_times(bias, sequence, first, BLOCK: tl.constexpr):
    """Return the Times of the tile held, or none without a time bias."""
    held = Times(0, 0, 0)  # Triton 3.6 cannot return None
    if bias.time_weight is not None:
        held = load_times(bias.held_times, sequence, first, BLOCK)
    return held


@triton.jit
def add_bias(scores, bias, i, j, held, sequence, first, BLOCK: tl.constexpr):
    """Return scores (M, N) + both biases: query rows i, key columns j, Times held, the tile streamed from `first`."""
    if bias.position_weight is not None:
        scores = add_position_bias(scores, bias, i, j, sequence)
    if bias.time_weight is not None:
        block = sequence.start // BLOCK + sequence.index + first // BLOCK  # as kernels.gpu.batch_tiles numbers them
        lowest = tl.load(bias.streamed_extremes + 2 * block)
        highest = tl.load(bias.streamed_extremes + 2 * block + 1)
        low, high = bucket_range(held, Times(None, lowest, highest), bias.thresholds)
        if low == high:
            scores += tl.load(bias.time_weight + low).to(tl.float32)
        else:
            position = tl.minimum(first + tl.arange(0, BLOCK), sequence.length - 1)
            streamed = tl.load(bias.streamed_times + sequence.start + position)
            buckets = bucket_of(tl.abs(held.times[:, None] - streamed[None, :]), bias.thresholds)
            scores += tl.load(bias.time_weight + buckets).to(tl.float32)
    return scores
