"""HSTU attention, forward: a program computes the output of one tile of queries of one head.

    o_i = sum_j mask_ij silu(alpha <q_i, k_j> + rab_ij) v_j / N

No softmax, so no running maximum or sum: products of tiles simply add up. Rows past a sequence's end are loaded as
zeros, so only the edge of what is visible needs a mask. Shapes: M queries, N keys of a tile.
"""

# Arguments of kernels are pointers, numbers, tiles and constants, which have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.bias import add_bias, hold_times
from kernels.gpu.tiles import (
    columns_seen,
    is_visible,
    load_sequence,
    load_tile,
    multiply,
    multiply_add,
    sigmoid,
    store_tile,
    visited_tile,
)


@triton.jit
def attention_forward(
    q,
    k,
    v,
    output,
    batch,
    bias,
    num_heads,
    alpha,
    scale,  # 1 / max_len
    WIDTH_QK: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    USE_TANH: tl.constexpr,
):
    """Hold a tile of queries, stream the keys and values they see."""
    entry, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    index, tile = tl.load(batch.tiles + 2 * entry), tl.load(batch.tiles + 2 * entry + 1)
    if index < 0:
        return
    sequence = load_sequence(batch, index)
    first = tile * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)[:, None]
    q_MD = load_tile(q, sequence, head, first, WIDTH_QK, BLOCK_M, BLOCK_QK)
    held = hold_times(bias, sequence, first, BLOCK_M)
    total_MV = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    visits = columns_seen(tile, sequence, BLOCK_M, BLOCK_N)
    for x in range(visits.num_tiles):
        streamed, is_whole = visited_tile(visits, x)
        first_column = streamed * BLOCK_N
        j = first_column + tl.arange(0, BLOCK_N)[None, :]
        k_ND = load_tile(k, sequence, head, first_column, WIDTH_QK, BLOCK_N, BLOCK_QK)
        v_NV = load_tile(v, sequence, head, first_column, WIDTH_V, BLOCK_N, BLOCK_V)
        s_MN = multiply(q_MD, tl.trans(k_ND), PRECISION) * alpha
        s_MN = add_bias(s_MN, bias, i, j, held, sequence, first_column, BLOCK_N)
        p_MN = sigmoid(s_MN, USE_TANH)
        if not is_whole:
            p_MN = tl.where(is_visible(i, j, sequence), p_MN, 0.0)
        total_MV = multiply_add(s_MN * p_MN, v_NV, total_MV, PRECISION)
    store_tile(total_MV * scale, output, sequence, head, first, WIDTH_V, BLOCK_M, BLOCK_V)
