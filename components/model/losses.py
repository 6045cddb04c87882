"""The training losses: softmax over the whole catalogue, or over a sample of it.

    loss = make_loss(settings, num_items)
    loss(y_LD, model.item_vectors(), targets_L, generator)     # a scalar, the mean over the positions that have a target

| settings.loss | a target competes with                                              | estimates     |
|---------------|---------------------------------------------------------------------|---------------|
| full          | every item                                                          | itself        |
| shared        | num_negatives items a batch, each weighted num_items / num_negatives | full          |
| sampled       | num_negatives items a position, unweighted (arXiv 2402.17152)       | easier ranks  |

Negatives are uniform with replacement; one that equals the position's own target does not count.
Shapes: L events of the batch, D embedding width, X catalogue size, M positions with a target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.errors import SettingsError
from components.model.softmax import Candidates, Catalogue, RowNegatives, SharedNegatives, softmax_loss

if TYPE_CHECKING:
    from components.settings import TrainSettings

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator | None], Tensor]
"""(unit rows (L, D), unit item vectors (X, D), targets (L,) int64 with -1 for none, generator) -> scalar."""


def make_loss(settings: TrainSettings, num_items: int) -> Loss:
    """Return the loss that `settings` names, with its temperature and number of negatives.

    Raises:
        SettingsError: there is no such loss.
    """
    draw = _CANDIDATES.get(settings.loss)
    if draw is None:
        raise SettingsError("no such loss", where="train", observed=settings.loss, expected=", ".join(_CANDIDATES))

    def loss(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: torch.Generator | None = None) -> Tensor:
        positions = (targets_L >= 0).nonzero().squeeze(1)
        candidates = draw(len(positions), settings.num_negatives, num_items, y_LD.device, generator)
        return softmax_loss(
            y_LD.index_select(0, positions), items_XD, targets_L[positions], candidates, settings.temperature
        )

    return loss


def _catalogue(
    num_positions: int, num_negatives: int, num_items: int, device: torch.device, generator: torch.Generator | None
) -> Candidates:
    return Catalogue()


def _shared(
    num_positions: int, num_negatives: int, num_items: int, device: torch.device, generator: torch.Generator | None
) -> Candidates:
    return SharedNegatives(_draw((num_negatives,), num_items, device, generator), weight=num_items / num_negatives)


def _sampled(
    num_positions: int, num_negatives: int, num_items: int, device: torch.device, generator: torch.Generator | None
) -> Candidates:
    return RowNegatives(_draw((num_positions, num_negatives), num_items, device, generator))


_CANDIDATES = {"full": _catalogue, "shared": _shared, "sampled": _sampled}


def _draw(
    shape: tuple[int, ...], num_items: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw items uniformly, on the generator's device, so that a CPU generator gives every device the same negatives."""
    source = generator.device if generator is not None else device
    return torch.randint(num_items, shape, generator=generator, device=source).to(device)
