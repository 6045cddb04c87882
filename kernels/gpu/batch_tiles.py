"""What the GPU kernels need to know of a batch: its tiles in the order of launch, its times rebased, their extremes.

Made on the device, once per batch. Nothing here waits for the device but the one question whether the times fit in
int32: lists have the size within which any batch of L rows and B sequences stays, L // block + B, and end with -1.

Shapes: L rows of the batch, B sequences, T entries of a list of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from kernels.time_buckets import TIME_THRESHOLDS

T = TypeVar("T")

# Differences of times that lie closer to their sequence's first one than this fit in int32: 34 years.
_NARROW = 2**30


@dataclass(frozen=True)
class TileOrder:
    """Tiles by their place in the sequence, last first, of all sequences together."""

    tiles: Tensor  # (T, 2) int32: sequence and tile, (-1, -1) past the last one
    at_least: Tensor  # (longest + 1,) int32: how many tiles stand at place x or later; they come first


@dataclass(frozen=True)
class Times:
    """Seconds since the first event of the row's sequence, and where each bucket begins; int32 where they fit."""

    timestamps: Tensor  # (L,)
    next_timestamps: Tensor  # (L,)
    thresholds: Tensor  # (129,)


@dataclass(frozen=True, eq=False)
class BatchTiles:
    """Tile lists and times of one batch; each is made when first asked for, and kept."""

    offsets: Tensor  # (B+1,) int64
    num_targets: Tensor | None  # (B,) int64
    event_times: tuple[Tensor, Tensor] | None  # timestamps and next_timestamps, (L,) int64
    num_rows: int
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def longest_first(self, block: int, *, last_tile_first: bool) -> Tensor:
        """Return (T, 2) int32 for the launch: sequences by falling length, each with its tiles in either order.

        The short ones fill the gaps at the end; a sequence's tiles find its keys and values in the cache.
        """
        return self._once(("longest_first", block, last_tile_first), lambda: self._sort(block, last_tile_first))

    def by_place(self, block: int, longest: int) -> TileOrder:
        """Return the tiles in an order where, for any x up to `longest`, those with x tiles before them come first."""
        return self._once(
            ("by_place", block, longest), lambda: _by_place(self._lengths(), block, self.num_rows, longest)
        )

    def targets(self, block: int) -> TileOrder:
        """Return the tiles of the targets, each counted from its sequence's first target."""

        def make() -> TileOrder:
            lengths = self._lengths()
            targets = torch.zeros_like(lengths) if self.num_targets is None else self.num_targets
            return _by_place(targets.minimum(lengths), block, self.num_rows, 0)  # an empty sequence may state some

        return self._once(("targets", block), make)

    def times(self) -> Times:
        """Return the rebased times.

        Raises:
            ValueError: the batch has none.
        """
        return self._once(("times",), self._rebase)

    def extremes(self, name: str, block: int) -> Tensor:
        """Return (L // block + B, 2): lowest and highest time (timestamps or next_timestamps) of each tile.

        Tile x of sequence b stands at offsets[b] // block + b + x, which no other tile has.
        """
        return self._once(("extremes", name, block), lambda: self._extremes(getattr(self.times(), name), block))

    def _once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def _lengths(self) -> Tensor:
        return self.offsets.diff()

    def _sort(self, block: int, last_tile_first: bool) -> Tensor:
        lengths, sequences = self._lengths().sort(descending=True, stable=True)
        tiles = _tiles(lengths, block, self.num_rows)
        rank, tile = tiles.long().unbind(1)
        if last_tile_first:
            tile = torch.where(rank < 0, -1, -(-lengths // block)[rank.clamp(min=0)] - 1 - tile)
        sequence = torch.where(rank < 0, -1, sequences[rank.clamp(min=0)])
        return torch.stack([sequence, tile], dim=1).int()

    def _rebase(self) -> Times:
        if self.event_times is None:
            raise ValueError("this batch has no times")
        starts = self.offsets[:-1].clamp(max=self.num_rows - 1)  # of an empty sequence at the end, too
        first = torch.repeat_interleave(self.event_times[0][starts], self._lengths(), output_size=self.num_rows)
        timestamps, next_timestamps = (times - first for times in self.event_times)
        thresholds = torch.tensor([0, *TIME_THRESHOLDS], device=first.device)
        lowest, highest = torch.aminmax(torch.cat([timestamps, next_timestamps]))
        if bool((lowest > -_NARROW) & (highest < _NARROW)):
            thresholds = thresholds.clamp(max=2**31 - 1)
            return Times(timestamps.int(), next_timestamps.int(), thresholds.int())
        return Times(timestamps, next_timestamps, thresholds)

    def _extremes(self, times: Tensor, block: int) -> Tensor:
        lengths = self._lengths()
        sequence = torch.repeat_interleave(
            torch.arange(len(lengths), device=times.device), lengths, output_size=self.num_rows
        )
        start = self.offsets[sequence]
        place = torch.arange(self.num_rows, device=times.device) - start
        number = start // block + sequence + place // block
        bounds = torch.iinfo(times.dtype)
        size = self.num_rows // block + len(lengths)
        low = times.new_full((size,), bounds.max).scatter_reduce_(0, number, times, "amin")
        high = times.new_full((size,), bounds.min).scatter_reduce_(0, number, times, "amax")
        return torch.stack([low, high], dim=1)


def _tiles(lengths: Tensor, block: int, num_rows: int) -> Tensor:
    """Return (T, 2) int32: for each tile of each sequence, in order, the two's numbers; then (-1, -1)."""
    counts = (lengths + block - 1) // block
    ends = counts.cumsum(0)
    entry = torch.arange(num_rows // block + len(lengths), device=lengths.device)
    sequence = torch.searchsorted(ends, entry, right=True)
    known = sequence.clamp(max=len(lengths) - 1)
    tiles = torch.stack([known, entry - (ends - counts)[known]], dim=1)
    return torch.where((sequence < len(lengths))[:, None], tiles, -1).int()


def _by_place(lengths: Tensor, block: int, num_rows: int, longest: int) -> TileOrder:
    tiles = _tiles(lengths, block, num_rows)
    order = tiles[:, 1].argsort(descending=True, stable=True)
    counts = (lengths + block - 1) // block
    places = torch.arange(longest + 1, device=lengths.device)
    at_least = (counts[:, None] - places).clamp(min=0).sum(0)
    return TileOrder(tiles[order], at_least.int())
