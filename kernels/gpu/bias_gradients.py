"""HSTU attention, backward: the gradients of the two bias tables, sums of ds over all pairs of the batch.

    d position_weight[N - 1 + place(j) - place(i)] += ds_ij,   d time_weight[bucket(|gap_ij|)] += ds_ij

All tiles of one block diagonal (same number of tiles between query and key) meet the position table at the same places.
So a program keeps to one diagonal and adds up ds over sequences and heads in registers; it writes once, and
kernels.gpu.bias_sums adds up what the programs wrote. Targets all stand at one place, the end of history: their
diagonals are blocks of keys counted back from there, and only the sum over the targets is kept.

The time table fits in a program's registers. A tile whose gaps lie in one bucket adds its sum, another one adds a
masked sum for each bucket between its extremes. Shapes: M queries, N = M keys of a tile.
"""

# Arguments of kernels are pointers, numbers, tiles and constants, which have no Python types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.gpu.bias import add_position_bias, bucket_of, bucket_range, load_times
from kernels.gpu.tiles import is_visible, load_sequence, load_tile, multiply, sigmoid

# The table of 129 buckets, padded to a power of two.
TABLE_SIZE = tl.constexpr(256)


class Walk(NamedTuple):
    """Which tiles a program meets; the batch's tiles are those with most tiles before them first."""

    at_least: tl.tensor  # (x,): how many tiles have at least x before them
    target_tiles: tl.tensor  # (T, 2) int32: sequence and tile of targets, or None
    num_target_tiles: tl.tensor  # (1,), or None
    num_past: tl.tensor  # diagonals on which keys come before queries, or at the same tile


class Partials(NamedTuple):
    """What the programs write; None where not wanted. C chunks, x diagonals, K past ones among them."""

    position: tl.tensor  # (x, C, M, N)
    target_position: tl.tensor  # (K, C, N), or None without targets
    time: tl.tensor  # (x, C, TABLE_SIZE)


# It changes from batch to batch, and is not to be compiled anew whenever it is 1 or a multiple of 16.
@triton.jit(do_not_specialize=["num_chunks"])
def bias_backward(
    q,
    k,
    v,
    grad,
    batch,
    bias,
    walk,
    partials,
    num_chunks,  # programs that share a diagonal
    num_heads,
    alpha,
    WIDTH_QK: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    USE_TANH: tl.constexpr,
):
    """Add up the unscaled ds of one chunk of a block diagonal, with mask and bias as in the forward pass."""
    BLOCK: tl.constexpr = BLOCK_N
    diagonal, chunk = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    # First the past diagonals, distance 0, 1, 2, ...; then those of context queries to later keys, -1, -2, ...
    is_past = diagonal < walk.num_past
    distance = tl.where(is_past, diagonal, walk.num_past - 1 - diagonal)
    context_tiles = tl.cdiv(batch.num_context, BLOCK)
    begin = tl.where(is_past, 0, tl.load(walk.at_least + context_tiles))
    end = tl.load(walk.at_least + tl.maximum(distance, 0))

    position = tl.zeros([BLOCK, BLOCK], tl.float32)
    time = tl.zeros([TABLE_SIZE], tl.float32)
    for x in range(begin * num_heads + chunk, end * num_heads, num_chunks):
        entry, head = x // num_heads, x % num_heads
        sequence = load_sequence(batch, tl.load(batch.tiles + 2 * entry))
        first = tl.load(batch.tiles + 2 * entry + 1) * BLOCK
        first_column = first - distance * BLOCK
        # Later keys may lie past the sequence's end: no rows are loaded then, and ds is 0.
        grad_s, time = _grad_scores(
            q, k, v, grad, bias, partials, sequence, head, first, first_column, alpha, time,
            WIDTH_QK, WIDTH_V, BLOCK_QK, BLOCK_V, BLOCK, PRECISION, USE_TANH, TARGETS=False,
        )  # fmt: skip
        position += grad_s
    program = tl.program_id(0)
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    if partials.position is not None:
        tl.store(partials.position + program * BLOCK * BLOCK + rows * BLOCK + columns, position)

    if walk.target_tiles is not None:
        target_position = tl.zeros([BLOCK], tl.float32)
        if is_past:
            for x in range(chunk, tl.load(walk.num_target_tiles) * num_heads, num_chunks):
                entry, head = x // num_heads, x % num_heads
                sequence = load_sequence(batch, tl.load(walk.target_tiles + 2 * entry))
                first_column = sequence.history_end - (distance + 1) * BLOCK
                if first_column + BLOCK > 0:
                    first = sequence.history_end + tl.load(walk.target_tiles + 2 * entry + 1) * BLOCK
                    grad_s, time = _grad_scores(
                        q, k, v, grad, bias, partials, sequence, head, first, first_column, alpha, time,
                        WIDTH_QK, WIDTH_V, BLOCK_QK, BLOCK_V, BLOCK, PRECISION, USE_TANH, TARGETS=True,
                    )  # fmt: skip
                    target_position += tl.sum(grad_s, 0)
            if partials.target_position is not None:
                tl.store(partials.target_position + program * BLOCK + tl.arange(0, BLOCK), target_position)
    if partials.time is not None:
        tl.store(partials.time + program * TABLE_SIZE + tl.arange(0, TABLE_SIZE), time)


@triton.jit
def _grad_scores(
    q,
    k,
    v,
    grad,
    bias,
    partials,
    sequence,
    head,
    first,
    first_column,
    alpha,
    time,
    WIDTH_QK: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    USE_TANH: tl.constexpr,
    TARGETS: tl.constexpr,
):
    """Return the unscaled ds (M, N) of a tile, and the time table + its share.

    Of the pairs of a target and a history key, only those where TARGETS; then the tile may begin before the sequence.
    """
    i = first + tl.arange(0, BLOCK)[:, None]
    j = first_column + tl.arange(0, BLOCK)[None, :]
    q_MD = load_tile(q, sequence, head, first, WIDTH_QK, BLOCK, BLOCK_QK)
    grad_MV = load_tile(grad, sequence, head, first, WIDTH_V, BLOCK, BLOCK_V)
    k_ND = load_tile(k, sequence, head, first_column, WIDTH_QK, BLOCK, BLOCK_QK)
    v_NV = load_tile(v, sequence, head, first_column, WIDTH_V, BLOCK, BLOCK_V)
    s = multiply(q_MD, tl.trans(k_ND), PRECISION) * alpha
    if bias.position_weight is not None:
        s = add_position_bias(s, bias, i, tl.maximum(j, 0), sequence)  # the table ends at the first key's place
    if bias.time_weight is not None:
        rows = load_times(bias.held_times, sequence, first, BLOCK)
        columns = load_times(bias.streamed_times, sequence, first_column, BLOCK)
        low, high = bucket_range(rows, columns, bias.thresholds)
        if low == high:
            s += tl.load(bias.time_weight + low).to(tl.float32)
        else:
            buckets = bucket_of(tl.abs(rows.times[:, None] - columns.times[None, :]), bias.thresholds)
            s += tl.load(bias.time_weight + buckets).to(tl.float32)
    p = sigmoid(s, USE_TANH)
    grad_s = multiply(grad_MV, tl.trans(v_NV), PRECISION) * (p + s * p * (1.0 - p))
    counted = is_visible(i, j, sequence)
    counted = counted & ((j >= 0) if TARGETS else ((i < sequence.history_end) | (i == j)))
    grad_s = tl.where(counted, grad_s, 0.0)
    if partials.time is not None:
        bucket = tl.arange(0, TABLE_SIZE)
        if low == high:
            time += tl.where(bucket == low, tl.sum(grad_s), 0.0)
        else:
            buckets = bucket_of(tl.abs(rows.times[:, None] - columns.times[None, :]), bias.thresholds)
            for x in range(low, high + 1):
                time += tl.where(bucket == x, tl.sum(tl.where(buckets == x, grad_s, 0.0)), 0.0)
    return grad_s, time
