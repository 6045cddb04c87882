"""What a target competes with: `DRAWS[loss](sampler, targets_M, generator)` draws it.

    uniform    over the catalogue, with replacement: losses shared, gbce, and sampled for each position
    in_batch   the batch's own targets, each once, weighted by 1 / (its chance to be among them)

Summed with these weights, exp(scores) of shared and in_batch are unbiased for the sum over the catalogue. Counting an
item as often as the batch has it, for 1 / (M q) each, would be so too, with 2.6 times as many columns (656 different
items among 1,700 made targets). It scatters no less: the weights of a batch of 16 users of ML-1M, which should sum to
X, sum to .985 X with a standard deviation of .344 X as they are, to .973 X with .344 X that way.

Shapes: M positions that have a target, X catalogue size, R negatives, C competitors that all positions share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Drawn(NamedTuple):
    """Competitors: `items` (C,), or (M, R) for loss sampled; None is the whole catalogue in order."""

    items: Tensor | None
    weight: float | Tensor = 1.0  # how many items a competitor stands for; (C,) float64 where they differ


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws competitors for targets (M,) int64."""

    num_items: int
    num_negatives: int
    item_counts: Tensor | None = None  # (X,), how often each item is a target; None: all equally often

    def full(self, targets_M: Tensor, generator: Generator | None) -> Drawn:
        """Return the catalogue."""
        return Drawn(None)

    def shared(self, targets_M: Tensor, generator: Generator | None) -> Drawn:
        """Draw (R,)."""
        items_R = self._draw((self.num_negatives,), targets_M.device, generator)
        return Drawn(items_R, self.num_items / self.num_negatives)

    def sampled(self, targets_M: Tensor, generator: Generator | None) -> Drawn:
        """Draw (M, R)."""
        return Drawn(self._draw((len(targets_M), self.num_negatives), targets_M.device, generator))

    def in_batch(self, targets_M: Tensor, generator: Generator | None) -> Drawn:
        """Return the C different ones of the targets; an item of share q is there with chance 1 - (1 - q)^M."""
        items_C: Tensor = targets_M.unique()  # type: ignore[no-untyped-call]
        log_absent_C = len(targets_M) * torch.log1p(-self._shares_of(items_C))
        return Drawn(items_C, -1 / torch.expm1(log_absent_C))

    def _shares_of(self, items_C: Tensor) -> Tensor:
        if self.item_counts is None:
            return torch.full_like(items_C, 1 / self.num_items, dtype=torch.float64)
        counts_C = self.item_counts.to(items_C.device)[items_C].double()
        counts_C = counts_C.where(counts_C > 0, 1.0)  # it was a target just now
        return counts_C / self.item_counts.sum().item()

    def _draw(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        """Draw items uniformly on the generator's device: a CPU generator gives every device the same ones."""
        source = device if generator is None else generator.device
        return torch.randint(self.num_items, shape, generator=generator, device=source).to(device)


DRAWS: dict[str, Callable[[Sampler, Tensor, Generator | None], Drawn]] = {
    "full": Sampler.full,
    "shared": Sampler.shared,
    "in_batch": Sampler.in_batch,
    "sampled": Sampler.sampled,
    "gbce": Sampler.shared,
}
