"""HSTU attention, backward: the gradients of keys and values by tile of keys, those of queries by tile of queries.

    dv_j = sum_i a_ij do_i / N
    ds_ij = mask_ij <do_i, v_j> silu'(s_ij),   dk_j = alpha / N sum_i ds_ij q_i,   dq_i = alpha / N sum_j ds_ij k_j

Two kernels, each with the scores computed anew, instead of one that adds to dq from many programs: nothing is added
atomically, so results are the same on every run. Shapes: M queries, N keys of a tile.
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
    rows_seeing,
    sigmoid,
    store_tile,
    visited_tile,
)


@triton.jit
def keys_backward(
    q,
    k,
    v,
    grad,
    grad_k,
    grad_v,
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
    """Hold a tile of keys and values, stream the queries that see them; scores stand transposed, (N, M)."""
    entry, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    index, tile = tl.load(batch.tiles + 2 * entry), tl.load(batch.tiles + 2 * entry + 1)
    if index < 0:
        return
    sequence = load_sequence(batch, index)
    first = tile * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)[:, None]
    k_ND = load_tile(k, sequence, head, first, WIDTH_QK, BLOCK_N, BLOCK_QK)
    v_NV = load_tile(v, sequence, head, first, WIDTH_V, BLOCK_N, BLOCK_V)
    held = hold_times(bias, sequence, first, BLOCK_N)
    grad_k_ND = tl.zeros([BLOCK_N, BLOCK_QK], tl.float32)
    grad_v_NV = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    visits = rows_seeing(tile, sequence, BLOCK_M, BLOCK_N)
    for x in range(visits.num_tiles):
        streamed, is_whole = visited_tile(visits, x)
        first_row = streamed * BLOCK_M
        i = first_row + tl.arange(0, BLOCK_M)[None, :]
        q_MD = load_tile(q, sequence, head, first_row, WIDTH_QK, BLOCK_M, BLOCK_QK)
        grad_MV = load_tile(grad, sequence, head, first_row, WIDTH_V, BLOCK_M, BLOCK_V)
        s_NM = multiply(k_ND, tl.trans(q_MD), PRECISION) * alpha
        s_NM = add_bias(s_NM, bias, i, j, held, sequence, first_row, BLOCK_M)
        p_NM = sigmoid(s_NM, USE_TANH)
        if not is_whole:
            p_NM = tl.where(is_visible(i, j, sequence), p_NM, 0.0)  # and with it silu and its slope
        a_NM = s_NM * p_NM
        slope_NM = p_NM + a_NM * (1.0 - p_NM)
        grad_v_NV = multiply_add(a_NM, grad_MV, grad_v_NV, PRECISION)
        grad_s_NM = multiply(v_NV, tl.trans(grad_MV), PRECISION) * slope_NM
        grad_k_ND = multiply_add(grad_s_NM, q_MD, grad_k_ND, PRECISION)
    store_tile(grad_k_ND * (alpha * scale), grad_k, sequence, head, first, WIDTH_QK, BLOCK_N, BLOCK_QK)
    store_tile(grad_v_NV * scale, grad_v, sequence, head, first, WIDTH_V, BLOCK_N, BLOCK_V)


@triton.jit
def queries_backward(
    q,
    k,
    v,
    grad,
    grad_q,
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
    """Hold a tile of queries and of the output's gradient, stream the keys and values they see."""
    entry, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    index, tile = tl.load(batch.tiles + 2 * entry), tl.load(batch.tiles + 2 * entry + 1)
    if index < 0:
        return
    sequence = load_sequence(batch, index)
    first = tile * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)[:, None]
    q_MD = load_tile(q, sequence, head, first, WIDTH_QK, BLOCK_M, BLOCK_QK)
    grad_MV = load_tile(grad, sequence, head, first, WIDTH_V, BLOCK_M, BLOCK_V)
    held = hold_times(bias, sequence, first, BLOCK_M)
    grad_q_MD = tl.zeros([BLOCK_M, BLOCK_QK], tl.float32)
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
            p_MN = tl.where(is_visible(i, j, sequence), p_MN, 0.0)  # and with it the slope of silu
        slope_MN = p_MN + s_MN * p_MN * (1.0 - p_MN)
        grad_s_MN = multiply(grad_MV, tl.trans(v_NV), PRECISION) * slope_MN
        grad_q_MD = multiply_add(grad_s_MN, k_ND, grad_q_MD, PRECISION)
    store_tile(grad_q_MD * (alpha * scale), grad_q, sequence, head, first, WIDTH_QK, BLOCK_M, BLOCK_QK)
