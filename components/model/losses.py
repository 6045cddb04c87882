"""The training losses: softmax over the whole catalogue, or over a sample of it.

    loss = make_loss(settings, num_items)
    loss(y_LD, model.item_vectors(), targets_L, generator)     # the mean over the positions that have a target

| settings.loss | what a target competes with                                          | estimates         |
|---------------|----------------------------------------------------------------------|-------------------|
| full          | every item                                                           | exact             |
| shared        | num_negatives items a batch, each for num_items / num_negatives items | full              |
| sampled       | num_negatives items a position (arXiv 2402.17152)                    | an easier problem |

Negatives are uniform, with replacement; one that equals the position's own target does not count.
Shapes: L events of the batch, D embedding width, X catalogue size, M positions that have a target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from components.errors import SettingsError
from components.model.softmax import Competitors, SampledPerRow, SampledTable, WholeTable, softmax_loss

if TYPE_CHECKING:
    from components.settings import TrainSettings

Loss = Callable[[Tensor, Tensor, Tensor, Generator | None], Tensor]
"""(unit rows y (L, D), unit item vectors (X, D), targets (L,) int64 with -1 for none, generator) -> scalar."""


def make_loss(settings: TrainSettings, num_items: int) -> Loss:
    """Return the loss that `settings` names, with its temperature and number of negatives.

    Raises:
        SettingsError: there is no such loss.
    """
    if settings.loss not in _COMPETITORS:
        raise SettingsError("no such loss", where="train", observed=settings.loss, expected=" | ".join(_COMPETITORS))
    choose, num_negatives = _COMPETITORS[settings.loss], settings.num_negatives
    temperature, backend = settings.temperature, settings.backend

    def loss(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: Generator | None = None) -> Tensor:
        positions = (targets_L >= 0).nonzero().squeeze(1)
        if len(positions) < len(targets_L):
            y_LD, targets_L = y_LD.index_select(0, positions), targets_L.index_select(0, positions)
        table, competitors = choose(items_XD, targets_L, num_items, num_negatives, generator)
        return softmax_loss(y_LD, items_XD.index_select(0, targets_L), table, competitors, temperature, backend)

    return loss


def _full(
    items_XD: Tensor, targets_M: Tensor, num_items: int, num_negatives: int, generator: Generator | None
) -> tuple[Tensor, Competitors]:
    return items_XD, WholeTable(targets_M)


def _shared(
    items_XD: Tensor, targets_M: Tensor, num_items: int, num_negatives: int, generator: Generator | None
) -> tuple[Tensor, Competitors]:
    sampled = _draw(num_items, (num_negatives,), targets_M.device, generator)
    return items_XD.index_select(0, sampled), SampledTable(targets_M, num_items / num_negatives, items=sampled)


def _sampled(
    items_XD: Tensor, targets_M: Tensor, num_items: int, num_negatives: int, generator: Generator | None
) -> tuple[Tensor, Competitors]:
    return items_XD, SampledPerRow(
        targets_M, _draw(num_items, (len(targets_M), num_negatives), targets_M.device, generator)
    )


_COMPETITORS = {"full": _full, "shared": _shared, "sampled": _sampled}


def _draw(num_items: int, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
    """Draw items uniformly on the generator's device: a CPU generator gives every device the same ones."""
    source = device if generator is None else generator.device
    return torch.randint(num_items, shape, generator=generator, device=source).to(device)
