"""The gradients of the bias tables, from what the programs of the GPU kernel `bias_backward` add up.

A program walks a share of one block diagonal and writes sums per element of its tile; here they are added over the
programs and along the diagonals, in float64 and in a fixed order.

Shapes: x block diagonals, K of them past (keys at the queries' tile or before it), C programs a diagonal, S rows and
columns of a tile, b buckets, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arguments import Arguments, Wants
from kernels.time_buckets import NUM_TIME_BUCKETS

# Programs in all: several for each of a GPU's 100 to 300 multiprocessors.
_NUM_PROGRAMS = 1024


@dataclass(frozen=True)
class Diagonals:
    """Block diagonals that can hold a visible pair, by the distance from query tile back to key tile.

    First 0, 1, ... (past keys), then -1, -2, ... (future ones).
    """

    num_past: int
    num_future: int  # later keys, which only context sees
    num_chunks: int

    @staticmethod
    def of(arguments: Arguments, block: int, num_tiles: int) -> Diagonals:
        """Return those of a batch with at most `num_tiles` tiles of queries, counting heads."""
        longest = -(-arguments.max_len // block)
        num_past = longest
        if arguments.window:  # ids fall as far behind as positions do, or less by the context
            num_past = min(longest, (arguments.window + arguments.num_context) // block + 2)
        num_future = longest - 1 if arguments.num_context else 0
        return Diagonals(num_past, num_future, max(1, min(num_tiles, _NUM_PROGRAMS // (num_past + num_future))))

    @property
    def num_all(self) -> int:
        """Past and future ones."""
        return self.num_past + self.num_future


@dataclass(frozen=True)
class BiasSums:
    """What the programs write, float32; None where not wanted. All unscaled: gradients times max_len."""

    diagonals: Diagonals
    position_xCSS: Tensor | None
    target_position_KCS: Tensor | None  # with keys counted back from the end of history; None without targets
    time_xCb: Tensor | None

    @staticmethod
    def empty(diagonals: Diagonals, block: int, table_size: int, wants: Wants, targets: bool, like: Tensor) -> BiasSums:
        """Return sums to be written, on the device of `like`; the time table is padded to `table_size`."""

        def new(wanted: bool, num_diagonals: int, *size: int) -> Tensor | None:
            shape = num_diagonals, diagonals.num_chunks, *size
            return like.new_empty(shape, dtype=torch.float32) if wanted else None

        return BiasSums(
            diagonals,
            new(wants.position, diagonals.num_all, block, block),
            new(wants.position and targets, diagonals.num_past, block),
            new(wants.time, diagonals.num_all, table_size),
        )

    def gradients(self, max_len: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Return those of position_weight (2N-1,) and time_weight (129,); None where not wanted."""
        position = None if self.position_xCSS is None else self._position(self.position_xCSS, max_len)
        time = None if self.time_xCb is None else self.time_xCb.flatten(0, 1).sum(0, dtype=torch.float64)
        return (
            None if position is None else (position / max_len).to(dtype),
            None if time is None else (time[:NUM_TIME_BUCKETS] / max_len).to(dtype),
        )

    def _position(self, position_xCSS: Tensor, max_len: int) -> Tensor:
        num_past, block = self.diagonals.num_past, position_xCSS.shape[-1]
        sums_xSS = position_xCSS.sum(1, dtype=torch.float64)
        far_to_near_xSS = torch.cat([sums_xSS[:num_past].flip(0), sums_xSS[num_past:]])
        table = _between(_along_diagonals(far_to_near_xSS), max_len - num_past * block, 2 * max_len - 1)
        if self.target_position_KCS is not None:
            targets = self.target_position_KCS.sum(1, dtype=torch.float64).flip(0).flatten()
            table += _between(targets, max_len - 1 - len(targets), 2 * max_len - 1)
        return table


def _along_diagonals(tiles_xSS: Tensor) -> Tensor:
    """Return (x+1)*S sums over places of equal column - row, where tile x + 1 lies S columns right of tile x.

    Reversed rows, written 2S apart and read 2S - 1 apart, shift by one place each: diagonals become columns.
    """
    num_tiles, block, _ = tiles_xSS.shape
    width = 2 * block - 1
    skewed = tiles_xSS.new_zeros(num_tiles, block, 2 * block)
    skewed[:, :, :block] = tiles_xSS.flip(1)
    diagonals_x2S = tiles_xSS.new_zeros(num_tiles, 2 * block)
    diagonals_x2S[:, :width] = skewed.flatten(1)[:, : block * width].unflatten(1, (block, width)).sum(1)
    lower, upper = diagonals_x2S.split(block, dim=1)
    sums = tiles_xSS.new_zeros(num_tiles + 1, block)
    sums[:-1] += lower
    sums[1:] += upper
    return sums.flatten()


def _between(values: Tensor, start: int, size: int) -> Tensor:
    """Return (size,) zeros with `values` from place `start`, maybe negative, on; what lies outside is left out."""
    table = values.new_zeros(size)
    first, end = max(start, 0), min(start + len(values), size)
    table[first:end] = values[first - start : end - start]
    return table
