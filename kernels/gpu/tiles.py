"""What the attention kernels share: where tiles lie, which of them see each other, loading, products, the sigmoid.

A kernel holds one tile of rows of a sequence (axis 0) and streams the tiles that see it, or that it sees (axis 1).
Positions count from the sequence's first row. With targets, all of them stand at one place, right after the history:

    place(p) = min(p, n - t);   id(p) = max(place(p) - (c - 1 if c > 0 else 0), 0)

and row i sees column j when i = j or id(i) > id(j), within the window, or when i is context and j < n - t
(kernels/reference.py; n rows, c of them context, t targets).
"""

# Arguments of kernels are pointers, numbers, tiles and constants, which have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.choice import is_interpreted

# The interpreter multiplies bfloat16 by its bit patterns, rounds to it towards zero, and knows no inline assembly.
INTERPRETED = tl.constexpr(is_interpreted())


class Rows(NamedTuple):
    """A (L, H, D) tensor with the last dimension contiguous and fewer than 2^31 elements from a tile's end to end."""

    pointer: tl.tensor
    row_stride: tl.tensor
    head_stride: tl.tensor


class Batch(NamedTuple):
    """What a kernel knows of all sequences."""

    offsets: tl.tensor  # (B+1,) int64
    num_targets: tl.tensor  # (B,) int64 or None
    tiles: tl.tensor  # (T, 2) int32: sequence, or -1 past the last one; tile within the sequence
    num_context: tl.tensor
    window: tl.tensor  # at least the longest sequence where there is no limit


class Sequence(NamedTuple):
    """One sequence of the batch; numbers of rows are int32."""

    index: tl.tensor
    start: tl.tensor  # int64, its first row in the batch
    length: tl.tensor
    history_end: tl.tensor  # where its targets begin
    num_context: tl.tensor
    shift: tl.tensor  # id(p) = place(p) - shift past the context
    window: tl.tensor


class Visits(NamedTuple):
    """The tiles to stream: two ranges, and which of them are visible as a whole and lie within the sequence."""

    first: tl.tensor
    num_first: tl.tensor
    second: tl.tensor
    num_tiles: tl.tensor  # in both ranges
    whole_begin: tl.tensor
    whole_end: tl.tensor


@triton.jit
def load_sequence(batch, index):
    """Return the Sequence that has this number in the batch."""
    start = tl.load(batch.offsets + index)
    length = (tl.load(batch.offsets + index + 1) - start).to(tl.int32)
    history_end = length
    if batch.num_targets is not None:
        history_end = length - tl.load(batch.num_targets + index).to(tl.int32)
    shift = tl.maximum(batch.num_context - 1, 0)
    return Sequence(index, start, length, history_end, batch.num_context, shift, batch.window)


@triton.jit
def identity(position, sequence):
    """Return the id that decides what a row sees."""
    return tl.maximum(tl.minimum(position, sequence.history_end) - sequence.shift, 0)


@triton.jit
def first_with_identity(wanted, sequence):
    """Return the first position whose id is at least `wanted`, if any has."""
    return tl.where(wanted <= 0, 0, wanted + sequence.shift)


@triton.jit
def is_visible(i, j, sequence):
    """Return whether query row i sees key column j; of the shape that i and j broadcast to."""
    row_id, column_id = identity(i, sequence), identity(j, sequence)
    allowed = ((i == j) | (row_id > column_id)) & (row_id - column_id <= sequence.window)
    return allowed | ((i < sequence.num_context) & (j < sequence.history_end))


@triton.jit
def columns_seen(tile, sequence, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the Visits of key tiles for a tile of queries: what came before, and of targets the diagonal."""
    first = tile * BLOCK_M
    end = tl.minimum(first + BLOCK_M, sequence.length)
    is_context = first < sequence.num_context
    column_end = tl.where(first < sequence.history_end, end, sequence.history_end)
    column_end = tl.where(is_context, tl.maximum(end, sequence.history_end), column_end)
    first_id, last_id = identity(first, sequence), identity(end - 1, sequence)

    tiles_end = tl.cdiv(column_end, BLOCK_N)
    tiles_begin = first_with_identity(first_id - sequence.window, sequence) // BLOCK_N
    num_tiles = tiles_end - tiles_begin
    diagonal_begin = tl.maximum(first // BLOCK_N, tiles_end)
    num_diagonal = tl.maximum(tl.cdiv(end, BLOCK_N) - diagonal_begin, 0)
    whole_begin = tl.cdiv(first_with_identity(last_id - sequence.window, sequence), BLOCK_N)
    whole_end = tl.where(is_context, 0, tl.minimum(first, sequence.history_end)) // BLOCK_N
    return Visits(tiles_begin, num_tiles, diagonal_begin, num_tiles + num_diagonal, whole_begin, whole_end)


@triton.jit
def rows_seeing(tile, sequence, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the Visits of query tiles for a tile of keys: context, and what comes at or after them."""
    first = tile * BLOCK_N
    end = tl.minimum(first + BLOCK_N, sequence.length)
    has_history = first < sequence.history_end
    last_target_id = sequence.history_end - sequence.shift
    first_id, last_id = identity(first, sequence), identity(end - 1, sequence)

    reach = last_id + sequence.window  # the highest id that sees any of the keys
    row_end = tl.where(reach >= last_target_id, sequence.length, tl.maximum(reach + sequence.shift + 1, end))
    row_end = tl.where(has_history, tl.minimum(row_end, sequence.length), end)
    tiles_begin, tiles_end = first // BLOCK_M, tl.cdiv(row_end, BLOCK_M)
    past_all = tl.where(end <= sequence.history_end, tl.maximum(end, sequence.shift + 1), sequence.length)
    whole_begin = tl.cdiv(past_all, BLOCK_M)
    reach = first_id + sequence.window  # the highest id that sees all of them
    whole_end = tl.where(reach >= last_target_id, sequence.length, reach + sequence.shift + 1) // BLOCK_M
    num_context = tl.where(has_history, tl.minimum(tl.cdiv(sequence.num_context, BLOCK_M), tiles_begin), 0)
    num_tiles = num_context + tiles_end - tiles_begin
    return Visits(0, num_context, tiles_begin, num_tiles, whole_begin, whole_end)


@triton.jit
def visited_tile(visits, x):
    """Return the x-th tile to stream, and whether it is visible as a whole."""
    tile = tl.where(x < visits.num_first, visits.first + x, visits.second + x - visits.num_first)
    return tile, (tile >= visits.whole_begin) & (tile < visits.whole_end)


@triton.jit
def load_tile(rows, sequence, head, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Return (BLOCK, BLOCK_WIDTH) from position `first` on; zeros outside the sequence."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_WIDTH)[None, :]
    corner = rows.pointer + (sequence.start + first) * rows.row_stride + head.to(tl.int64) * rows.head_stride
    inside = (first + row >= 0) & (first + row < sequence.length)
    if WIDTH < BLOCK_WIDTH:
        inside = inside & (column < WIDTH)
    return tl.load(corner + row * rows.row_stride + column, mask=inside, other=0.0)


@triton.jit
def store_tile(tile, rows, sequence, head, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Write what `load_tile` would read, in the tensor's dtype."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_WIDTH)[None, :]
    corner = rows.pointer + (sequence.start + first) * rows.row_stride + head.to(tl.int64) * rows.head_stride
    inside = (first + row < sequence.length) & (column < WIDTH)
    tl.store(corner + row * rows.row_stride + column, rounded(tile, rows.pointer.dtype.element_ty), mask=inside)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Return float32 x in another floating dtype, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def multiply(left, right, PRECISION: tl.constexpr):
    """Return left @ right in float32."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def multiply_add(left, right, total, PRECISION: tl.constexpr):
    """Return total + left @ right in float32; left is rounded to the dtype of right."""
    left = rounded(left, right.dtype)
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def sigmoid(x, USE_TANH: tl.constexpr):
    """With USE_TANH, (1 + tanh(x / 2)) / 2, by an instruction of NVIDIA's, to 2^-12; instead of exp and a division."""
    if USE_TANH:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * tanh + 0.5
    return tl.sigmoid(x)
