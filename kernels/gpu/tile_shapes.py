"""Tile shapes of the Triton attention kernels, as a table: tuning at run time would make first steps slow.

To change an entry: compile it (tests/test_triton_compiled.py: no register may spill), time the pass on that GPU against
the old entry in one process, interleaved, and only then write the new one down. Results stay right, though not the same
to the last bit, with any powers of two of at least 16; the tiles of "bias" must be square.

Each entry for half precision is the largest tile that did not spill with both biases, targets and Triton 3.7.1. float32
is for checking: at 64 and more, some of its kernels spill. None has been timed yet.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Pass = Literal["forward", "keys", "queries", "bias"]
MAX_WIDTH, MAX_ROWS = 256, 128  # of a tile


class TileShape(NamedTuple):
    """Queries and keys of a tile, and how the compiler is to spread and pipeline it."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


_T = TileShape
# For heads of at most 64, 128 and 256, padded to a power of two.
_HALF: dict[tuple[str, Pass], tuple[TileShape, TileShape, TileShape]] = {
    ("ampere", "forward"): (_T(64, 64, 4, 2), _T(128, 32, 8, 2), _T(64, 32, 8, 2)),
    ("ampere", "keys"): (_T(64, 32, 4, 2), _T(32, 64, 8, 2), _T(32, 32, 8, 2)),
    ("ampere", "queries"): (_T(64, 32, 4, 2), _T(64, 64, 8, 2), _T(32, 32, 8, 2)),
    ("ampere", "bias"): (_T(32, 32, 4, 2), _T(32, 32, 8, 2), _T(16, 16, 4, 1)),
    ("hopper", "forward"): (_T(64, 64, 4, 3), _T(128, 32, 8, 3), _T(64, 32, 8, 2)),
    ("hopper", "keys"): (_T(64, 64, 4, 2), _T(32, 64, 8, 2), _T(32, 32, 8, 2)),
    ("hopper", "queries"): (_T(64, 64, 4, 3), _T(64, 64, 8, 3), _T(32, 32, 8, 2)),
    ("hopper", "bias"): (_T(64, 64, 8, 2), _T(64, 64, 8, 2), _T(16, 16, 4, 1)),
    ("blackwell", "forward"): (_T(128, 64, 8, 3), _T(128, 32, 8, 3), _T(128, 32, 8, 2)),
    ("blackwell", "keys"): (_T(32, 64, 4, 2), _T(64, 64, 8, 2), _T(32, 64, 8, 2)),
    ("blackwell", "queries"): (_T(64, 64, 4, 3), _T(64, 64, 8, 3), _T(64, 32, 8, 2)),
    ("blackwell", "bias"): (_T(64, 64, 8, 2), _T(64, 64, 8, 2), _T(16, 16, 4, 1)),
    ("cdna", "forward"): (_T(128, 64, 8, 2), _T(64, 32, 4, 2), _T(64, 32, 4, 2)),
    ("cdna", "keys"): (_T(64, 64, 4, 2), _T(32, 64, 4, 2), _T(16, 32, 8, 2)),
    ("cdna", "queries"): (_T(64, 64, 4, 2), _T(64, 32, 4, 2), _T(32, 32, 4, 2)),
    ("cdna", "bias"): (_T(64, 64, 8, 2), _T(32, 32, 4, 2), _T(16, 16, 4, 1)),
}
# Without a bias registers suffice for more; 128 rows halve the keys and values that come from the cache.
_HALF_WITHOUT_BIAS: dict[tuple[str, Pass], tuple[TileShape, TileShape, TileShape]] = {
    ("hopper", "forward"): (_T(128, 64, 8, 3), _T(128, 64, 8, 2), _T(128, 32, 8, 2)),
    ("hopper", "keys"): (_T(64, 128, 8, 2), _T(64, 64, 8, 2), _T(32, 32, 8, 2)),
    ("hopper", "queries"): (_T(128, 64, 8, 2), _T(128, 64, 8, 2), _T(64, 32, 8, 2)),
    ("blackwell", "forward"): (_T(128, 64, 8, 3), _T(128, 64, 8, 2), _T(128, 32, 8, 2)),
    ("blackwell", "keys"): (_T(64, 128, 8, 2), _T(64, 64, 8, 2), _T(32, 64, 8, 2)),
    ("blackwell", "queries"): (_T(128, 64, 8, 2), _T(128, 64, 8, 2), _T(64, 32, 8, 2)),
}
# float32 takes three products for one on NVIDIA, and twice the registers everywhere: small tiles are all that fits.
_FLOAT32: dict[Pass, tuple[TileShape, TileShape, TileShape]] = {
    "forward": (_T(32, 32, 8, 2), _T(16, 32, 4, 2), _T(16, 16, 4, 1)),
    "keys": (_T(32, 16, 4, 1), _T(16, 16, 4, 2), _T(16, 16, 4, 1)),
    "queries": (_T(32, 16, 4, 2), _T(16, 16, 4, 2), _T(16, 16, 4, 1)),
    "bias": (_T(16, 16, 1, 1), _T(16, 16, 4, 1), _T(16, 16, 4, 1)),
}
# Python's time for a tile hardly depends on its size.
_INTERPRETED = _T(64, 64, 4, 1)


def architecture_family(backend: str, architecture: int | str) -> str:
    """Return which rows of the table hold for a GPU, as Triton names it: ("cuda", 90) or ("hip", "gfx942").

    NVIDIA's other GPUs take Ampere's, all of which fit in 99 KiB of shared memory.
    """
    if backend == "hip":
        return "cdna"
    return {90: "hopper", 100: "blackwell", 103: "blackwell"}.get(int(architecture), "ampere")


def tile_shape(family: str, kernel: Pass, width: int, itemsize: int, *, has_bias: bool, in_16_bytes: bool) -> TileShape:
    """Return the shape for heads whose padded width is at most MAX_WIDTH, of elements of 2 or 4 bytes.

    `in_16_bytes` says whether rows of half precision are whole 16 bytes. Others are loaded element by element, which
    takes registers: with the tiles for 64, heads of 50 spilled 300 to 400 bytes a thread on sm_90, with those for 128
    none; on sm_80 and sm_100 it takes those for 256.
    """
    if family == "interpreted":
        return _INTERPRETED
    column = 0 if width <= 64 else 1 if width <= 128 else 2
    if itemsize == 4:
        return _FLOAT32[kernel][column]
    if not in_16_bytes:
        column = min(column + 1, 2) if family in ("hopper", "cdna") else 2
    half = _HALF[family, kernel]
    return (half if has_bias else _HALF_WITHOUT_BIAS.get((family, kernel), half))[column]
