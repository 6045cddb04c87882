"""HSTU attention on GPUs: fused Triton kernels, forward and backward, that never hold scores beyond a tile.

The backward pass is deterministic and takes no lock and no atomic addition: keys' and values' gradients come from one
kernel, queries' from another, the tables' from a third, and each recomputes the scores it needs.

Shapes: L rows of the batch, H heads, D and V head widths, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from kernels import hstu_torch
from kernels.arguments import Arguments, Gradients, Wants
from kernels.batch_memo import BatchMemo
from kernels.choice import is_interpreted
from kernels.gpu.attention_backward import keys_backward, queries_backward
from kernels.gpu.attention_forward import attention_forward
from kernels.gpu.batch_tiles import BatchTiles
from kernels.gpu.bias import Bias
from kernels.gpu.bias_gradients import TABLE_SIZE, Partials, Walk, bias_backward
from kernels.gpu.bias_sums import BiasSums, Diagonals
from kernels.gpu.tile_shapes import MAX_ROWS, MAX_WIDTH, Pass, TileShape, architecture_family, tile_shape
from kernels.gpu.tiles import Batch, Rows


def forward(q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, arguments: Arguments) -> Tensor:
    """Return (L, H, V); see `kernels.arguments`."""
    if not _is_taken(q_LHD, v_LHV):
        return hstu_torch.forward(q_LHD, k_LHD, v_LHV, arguments)
    output_LHV = v_LHV.new_empty(v_LHV.shape)
    if output_LHV.numel() == 0:
        return output_LHV
    call = _Call(q_LHD, k_LHD, v_LHV, arguments)
    with torch.cuda.device_of(q_LHD):
        _refuse_capture(q_LHD)
        shape = call.shape("forward")
        tiles = call.tiles.longest_first(shape.block_m, last_tile_first=True)
        attention_forward[len(tiles) * call.num_heads,](
            *call.rows(output_LHV),
            call.batch(tiles),
            call.bias(held="next_timestamps", streamed="timestamps", block=shape.block_n),
            **call.constants(shape),
        )
    return output_LHV


def backward(
    grad_LHV: Tensor, q_LHD: Tensor, k_LHD: Tensor, v_LHV: Tensor, arguments: Arguments, wants: Wants
) -> Gradients:
    """Return the gradients; see `kernels.arguments`."""
    if not _is_taken(q_LHD, v_LHV):
        return hstu_torch.backward(grad_LHV, q_LHD, k_LHD, v_LHV, arguments, wants)
    grad_q, grad_k, grad_v = q_LHD.new_empty(q_LHD.shape), k_LHD.new_empty(k_LHD.shape), v_LHV.new_empty(v_LHV.shape)
    if grad_v.numel() == 0:
        bias = arguments.bias
        tables = (
            torch.zeros_like(table) if table is not None and wanted else None
            for table, wanted in zip((bias.position_weight, bias.time_weight), wants, strict=True)
        )
        return Gradients(grad_q, grad_k, grad_v, *tables)
    call = _Call(q_LHD, k_LHD, v_LHV, arguments)
    with torch.cuda.device_of(q_LHD):
        _refuse_capture(q_LHD)
        _differentiate_keys(call, grad_LHV, grad_k, grad_v)
        _differentiate_queries(call, grad_LHV, grad_q)
        position, time = _differentiate_bias(call, grad_LHV, wants)
    return Gradients(grad_q, grad_k, grad_v, position, time)


def _differentiate_keys(call: _Call, grad_LHV: Tensor, grad_k_LHD: Tensor, grad_v_LHV: Tensor) -> None:
    """Write the gradients of k and v."""
    shape = call.shape("keys")
    tiles = call.tiles.longest_first(shape.block_n, last_tile_first=False)
    keys_backward[len(tiles) * call.num_heads,](
        *call.rows(grad_LHV, grad_k_LHD, grad_v_LHV),
        call.batch(tiles),
        call.bias(held="timestamps", streamed="next_timestamps", block=shape.block_m),
        **call.constants(shape),
    )


def _differentiate_queries(call: _Call, grad_LHV: Tensor, grad_q_LHD: Tensor) -> None:
    """Write the gradient of q."""
    shape = call.shape("queries")
    tiles = call.tiles.longest_first(shape.block_m, last_tile_first=True)
    queries_backward[len(tiles) * call.num_heads,](
        *call.rows(grad_LHV, grad_q_LHD),
        call.batch(tiles),
        call.bias(held="next_timestamps", streamed="timestamps", block=shape.block_n),
        **call.constants(shape),
    )


def _differentiate_bias(call: _Call, grad_LHV: Tensor, wants: Wants) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of position_weight and time_weight; None where not wanted or not there."""
    arguments, bias = call.arguments, call.arguments.bias
    wants = Wants(wants.position and bias.position_weight is not None, wants.time and bias.time_weight is not None)
    if not any(wants):
        return None, None
    shape = call.shape("bias")
    block = shape.block_m
    order = call.tiles.by_place(block, -(-arguments.max_len // block))
    targets = None if arguments.num_targets is None else call.tiles.targets(block)
    diagonals = Diagonals.of(arguments, block, len(order.tiles) * call.num_heads)
    sums = BiasSums.empty(diagonals, block, TABLE_SIZE.value, wants, targets is not None, grad_LHV)
    constants = call.constants(shape)
    del constants["scale"], constants["BLOCK_M"]  # the tile is square
    bias_backward[diagonals.num_all * diagonals.num_chunks,](
        *call.rows(grad_LHV),
        call.batch(order.tiles),
        call.bias(held="next_timestamps", streamed="timestamps", block=None),
        Walk(order.at_least, targets and targets.tiles, targets and targets.at_least, diagonals.num_past),
        Partials(sums.position_xCSS, sums.target_position_KCS, sums.time_xCb),
        num_chunks=diagonals.num_chunks,
        **constants,
    )
    return sums.gradients(arguments.max_len, call.q_LHD.dtype)


def _refuse_capture(q_LHD: Tensor) -> None:
    if q_LHD.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "hstu_attention cannot be captured in a CUDA graph: it would replay this batch's lists of tiles"
        )


_TILES: BatchMemo[BatchTiles] = BatchMemo()


@dataclass(frozen=True, eq=False)
class _Call:
    """What the kernels of one call are launched with."""

    q_LHD: Tensor
    k_LHD: Tensor
    v_LHV: Tensor
    arguments: Arguments

    @property
    def num_heads(self) -> int:
        """H."""
        return self.q_LHD.shape[1]

    @cached_property
    def tiles(self) -> BatchTiles:
        """What depends on the batch alone: shared by the layers of a model, forward and backward."""
        bias, offsets, num_targets = self.arguments.bias, self.arguments.offsets, self.arguments.num_targets
        times = None if bias.time_weight is None else bias.times()
        return _TILES.get(
            (offsets, num_targets, *(times or ())), (), lambda: BatchTiles(offsets, num_targets, times, len(self.q_LHD))
        )

    def shape(self, kernel: Pass) -> TileShape:
        """Return the kernel's tiles on this GPU."""
        bias = self.arguments.bias
        has_bias = bias.position_weight is not None or bias.time_weight is not None
        width = max(_padded(self.q_LHD), _padded(self.v_LHV))
        in_16_bytes = self.q_LHD.shape[2] % 8 == 0 and self.v_LHV.shape[2] % 8 == 0
        return tile_shape(_family(), kernel, width, self.q_LHD.itemsize, has_bias=has_bias, in_16_bytes=in_16_bytes)

    def rows(self, *others: Tensor) -> list[Rows]:
        """Return q, k, v and others."""
        dense = (_dense_rows(x) for x in (self.q_LHD, self.k_LHD, self.v_LHV, *others))
        return [Rows(x, x.stride(0), x.stride(1)) for x in dense]

    def batch(self, tiles: Tensor) -> Batch:
        """Return the batch with the list of tiles to launch."""
        arguments = self.arguments
        # No ids lie further apart than max_len, and the kernels add the window to an id in int32.
        window = min(arguments.window or arguments.max_len, arguments.max_len)
        return Batch(arguments.offsets, arguments.num_targets, tiles, arguments.num_context, window)

    def bias(self, *, held: str, streamed: str, block: int | None) -> Bias:
        """Return the tables with the times of the tile held and of those streamed.

        With their extremes if these are `block` rows each; None where the kernel finds the extremes itself.
        """
        position_weight, time_weight = self.arguments.bias.position_weight, self.arguments.bias.time_weight
        if time_weight is None:
            return Bias(position_weight, None, None, None, None, None, self.arguments.max_len)
        times = self.tiles.times()
        return Bias(
            position_weight,
            time_weight,
            times.thresholds,
            getattr(times, held),
            getattr(times, streamed),
            None if block is None else self.tiles.extremes(streamed, block),
            self.arguments.max_len,
        )

    def precision(self) -> str:
        """Return how float32 is multiplied; no matter for the other dtypes.

        NVIDIA's matrix units take TF32 at most. Three of those products make one that is exact to about 2^-22, while
        float32 arithmetic without them spills kilobytes of registers for tiles of any useful size.
        """
        if not _is_nvidia():
            return "ieee"  # of AMD's, only gfx942 takes anything else
        # Not allow_tf32, which raises where fp32_precision was set.
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"

    def constants(self, shape: TileShape) -> dict[str, Any]:
        """Return the numbers that all kernels take, and how they are to be compiled."""
        return {
            "num_heads": self.num_heads,
            "alpha": self.arguments.alpha,
            "scale": 1 / self.arguments.max_len,
            "WIDTH_QK": self.q_LHD.shape[2],
            "WIDTH_V": self.v_LHV.shape[2],
            "BLOCK_QK": _padded(self.q_LHD),
            "BLOCK_V": _padded(self.v_LHV),
            "BLOCK_M": shape.block_m,
            "BLOCK_N": shape.block_n,
            "PRECISION": self.precision(),
            "USE_TANH": _is_nvidia() and self.q_LHD.itemsize == 2,
            "num_warps": shape.num_warps,
            "num_stages": shape.num_stages,
        }


def _is_taken(q_LHD: Tensor, v_LHV: Tensor) -> bool:
    """Whether the kernels take these; the torch backend takes float64 and heads too wide for a tile's registers."""
    return q_LHD.dtype != torch.float64 and max(q_LHD.shape[2], v_LHV.shape[2]) <= MAX_WIDTH


def _dense_rows(x_LHD: Tensor) -> Tensor:
    """Return x, copied where a row's elements are not side by side, or rows too far apart for int32 in a tile."""
    return x_LHD if x_LHD.stride(2) == 1 and x_LHD.stride(0) * MAX_ROWS < 2**31 else x_LHD.contiguous()


def _padded(x_LHD: Tensor) -> int:
    """Return the head width that matrix instructions take."""
    return max(16, 1 << (x_LHD.shape[2] - 1).bit_length())


def _family() -> str:
    if is_interpreted():
        return "interpreted"
    target = triton.runtime.driver.active.get_current_target()
    return architecture_family(target.backend, target.arch)


def _is_nvidia() -> bool:
    return _family() not in ("cdna", "interpreted")
