"""Which elements dropout keeps: a hash of (seed, row, column), replayed in the backward pass instead of stored.

    mix(x):  x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16        in 32 bits, wrapping
    word(row, c) = mix(mix(mix(seed) + row) + 0x9e3779b9 c),  c = 0 .. ceil(W / 2) - 1

Column c of a row takes the low half of word c, column ceil(W / 2) + c the high half. An element is kept where its 16
bits are at least threshold = round(65536 dropout), and then scaled by 65536 / (65536 - threshold): a mean of exactly 1.

The backends share this mask element by element: it is also in `dropout_mask.h` (C++) and in `gated_norm_triton`. The
multipliers are lowbias32's, found by search for the least bias (github.com/skeeto/hash-prospector).
Shapes: L rows, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WEYL = -0x61C88647  # 0x9e3779b9 as int32: 2^32 / golden ratio, odd


def draw_seed() -> Tensor:
    """Return an int64 scalar from torch's default CPU generator: what torch.manual_seed starts, a resumed run takes up.

    A tensor, because torch.compile would stop at a number that it does not know.
    """
    return torch.randint(2**31, (), device="cpu")


def threshold_of(dropout: float) -> int:
    """Return how many of 65536 outcomes drop an element; at most all but one."""
    return min(round(65536 * dropout), 65535)


def dropout_mask(like_LW: Tensor, dropout: float, seed: int) -> Tensor:
    """Return 0 where dropped, else what kept elements are scaled by; shape, dtype and device of `like_LW`."""
    (num_rows, width), device = like_LW.shape, like_LW.device
    half = (width + 1) // 2
    seed_hash = _mix(torch.tensor(seed, dtype=torch.int32, device=device))
    row_hashes = _mix(torch.arange(num_rows, dtype=torch.int32, device=device) + seed_hash)
    words = _mix(row_hashes[:, None] + torch.arange(half, dtype=torch.int32, device=device) * _WEYL)
    threshold = threshold_of(dropout)
    mask_LW = torch.empty_like(like_LW, memory_format=torch.contiguous_format)
    mask_LW[:, :half] = (words & 0xFFFF) >= threshold
    mask_LW[:, half:] = (words[:, : width - half] >> 16).bitwise_and_(0xFFFF) >= threshold
    return mask_LW.mul_(65536 / (65536 - threshold))


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of int32 in place; its arithmetic wraps, and >> repeats the sign, hence the masks."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= -0x7B935975  # 0x846ca68b
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
