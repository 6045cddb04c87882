"""Jagged rows as a few dense blocks: sequences of similar length are padded together, so padding is hardly computed.

    groups = LengthGroups(offsets, num_heads=H, max_scores=...)
    x_SD = groups.pad(x_LHD)
    for group in groups:
        block_KnD = group.block(x_SD)      # dense; K = H * G, heads outermost; writing to it writes to x_SD
    y_LHD = groups.unpad(y_SD)

Shapes: L rows of the batch, B sequences, H heads, D width, S slots (rows and padding of all heads), G sequences of a
group, n rows of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# What starting one more group costs, in scores: about 100 us of dispatch, at 11 ns a score forward and backward.
_SCORES_PER_GROUP = 9_000


@dataclass(frozen=True, eq=False)
class LengthGroup:
    """Sequences of similar, positive length that share one dense block."""

    sequences: Tensor  # (G,) int64: which ones of the batch, longest first
    lengths: Tensor  # (G,) int64
    rows: Tensor  # (G, n) int64: the batch row in each slot; past its end, a sequence's last row
    slots: slice  # of S
    num_heads: int

    @property
    def longest(self) -> int:
        """n, the rows of the longest sequence."""
        return self.rows.shape[1]

    def block(self, x_SD: Tensor) -> Tensor:
        """Return this group's slots as a (H*G, n, D) view."""
        return x_SD[self.slots].view(self.num_heads * len(self.rows), self.longest, x_SD.shape[1])


class LengthGroups:
    """The layout of one batch; empty sequences have no slots."""

    def __init__(self, offsets: Tensor, *, num_heads: int, max_scores: int) -> None:
        """Group the sequences, longest first.

        A group ends when one more sequence would give it more than `max_scores` scores (G*n*n) a head, or padding that
        costs more than starting another group does.
        """
        lengths = offsets.diff()
        order = torch.argsort(lengths, descending=True, stable=True)[: int((lengths > 0).sum())]
        self.num_heads, self.offsets = num_heads, offsets
        self.groups: list[LengthGroup] = []
        padding, start = [], 0
        for first, last in _cuts(lengths[order].tolist(), max_scores):
            chosen = order[first:last]
            group, is_padding = self._group(chosen, lengths[chosen], start)
            self.groups.append(group)
            padding.append(is_padding)
            start = group.slots.stop
        self._index_slots(padding)

    def _group(self, sequences: Tensor, lengths: Tensor, start: int) -> tuple[LengthGroup, Tensor]:
        steps = torch.arange(int(lengths[0]), device=lengths.device)
        rows = self.offsets[sequences, None] + torch.minimum(steps, lengths[:, None] - 1)
        slots = slice(start, start + self.num_heads * rows.numel())
        return LengthGroup(sequences, lengths, rows, slots, self.num_heads), steps >= lengths[:, None]

    def _index_slots(self, padding: list[Tensor]) -> None:
        """Index both ways between the slots and the (L*H,) rows of a tensor whose heads were merged into its rows."""
        heads = torch.arange(self.num_heads, device=self.offsets.device)[:, None]
        nothing = self.offsets.new_zeros(0)
        rows = [group.rows.flatten() * self.num_heads + heads for group in self.groups]
        self._source = torch.cat([nothing, *(block.flatten() for block in rows)])
        is_padding = torch.cat([nothing.bool(), *(block.flatten().repeat(self.num_heads) for block in padding)])
        filled = (~is_padding).nonzero().squeeze(1)
        self._padding = is_padding.nonzero().squeeze(1)
        self._slot = torch.empty_like(filled).scatter_(0, self._source[filled], filled)

    def __iter__(self) -> Iterator[LengthGroup]:
        return iter(self.groups)

    def pad(self, x_LHD: Tensor) -> Tensor:
        """Return (S, D); padding repeats the last row of its sequence, so that it stays finite."""
        return x_LHD.reshape(-1, x_LHD.shape[2]).index_select(0, self._source)

    def pad_with_zeros(self, x_LHD: Tensor) -> Tensor:
        """Return (S, D); padding is 0."""
        return self.pad(x_LHD).index_fill_(0, self._padding, 0.0)

    def unpad(self, x_SD: Tensor) -> Tensor:
        """Return (L, H, D)."""
        return x_SD.index_select(0, self._slot).view(-1, self.num_heads, x_SD.shape[1])


def _cuts(lengths: list[int], max_scores: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of the groups of descending `lengths`."""
    start, padded_scores = 0, 0
    for index, length in enumerate(lengths):
        longest = lengths[start]
        padded_scores += longest**2 - length**2
        if index > start and (padded_scores > _SCORES_PER_GROUP or (index - start + 1) * longest**2 > max_scores):
            yield start, index
            start, padded_scores = index, 0
    if lengths:
        yield start, len(lengths)
