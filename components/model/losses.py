"""The training losses: each target against the whole catalogue, or against a sample of it.

    loss = make_loss(settings, num_items, item_counts=counts, head=model.head)
    loss(y_LD, model.item_vectors(), targets_L, generator)     # the mean over the positions that have a target

| settings.loss | what a target competes with                                           | estimates            |
|---------------|-----------------------------------------------------------------------|----------------------|
| full          | every item                                                            | exact                |
| shared        | num_negatives items a batch, each for num_items / num_negatives items | full                 |
| in_batch      | the batch's other targets, each for 1 / (its chance to be in a batch) | full                 |
| sampled       | num_negatives items a position (arXiv 2402.17152)                     | an easier problem    |
| gbce          | num_negatives items a batch, each a binary question (arXiv 2308.07192) | a binary full problem |

Negatives are uniform, with replacement; one that equals the position's own target does not count.

in_batch is logQ correction (Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019) with two choices. An item
competes once, however often the batch has it: its chance is 1 - (1 - q)^M, where q is its share of all targets. And the
target's own score is left as it is, for the target is not there by chance (arXiv 2507.09331). The chances are those of
M independent draws; a user's own other targets are in the batch more often than that, and so compete harder.

gbce = -(beta ln sigmoid(p) + sum over negatives of ln(1 - sigmoid(s))) / (R + 1), with beta = 1 - t (1 - a),
which is a (t (1 - 1/a) + 1/a), and a = R / (X - 1). p and s are raw dot products in the paper. Here they are cosines /
temperature - ln X: cosines scatter around 0, where every item would start as likely as not. Without the - ln X, which
changes no ranking, NDCG@10 after 10 epochs of ML-100K is .024 instead of .081 (leave-one-out, validation, R = 512).

Shapes: L events of the batch, D embedding width, X catalogue size, M positions that have a target, R negatives, C
competitors that all positions share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from components.errors import SettingsError
from components.model.blockwise import Tensors, sum_over_blocks
from components.model.heads import DotHead, MixtureHead
from components.model.negatives import DRAWS, Drawn, Sampler
from components.model.softmax import SampledPerRow, SampledTable, WholeTable, softmax_loss

if TYPE_CHECKING:
    from components.settings import TrainSettings

Loss = Callable[[Tensor, Tensor, Tensor, Generator | None], Tensor]
"""(unit rows y (L, D), unit item vectors (X, D), targets (L,) int64 with -1 for none, generator) -> scalar."""

_ROWS_PER_BLOCK = 128
_FLOATS_PER_BLOCK = 2**20  # of one of the handful of tensors that hold a block's scores; see heads.py


def make_loss(
    settings: TrainSettings,
    num_items: int,
    *,
    item_counts: Tensor | None = None,
    head: DotHead | MixtureHead | None = None,
) -> Loss:
    """Return the loss that `settings` names, with its temperature and number of negatives.

    Args:
        settings: loss, num_negatives, temperature, gbce_calibration and backend are read.
        num_items: X.
        item_counts: (X,), how often each item is a target in training; only in_batch asks. None: all equally often.
        head: the model's; None: the cosine.

    Raises:
        SettingsError: there is no such loss, or none for this head.
    """
    head = DotHead() if head is None else head
    _check(settings.loss, head)
    draw = partial(DRAWS[settings.loss], Sampler(num_items, settings.num_negatives, item_counts))
    is_dot_softmax = isinstance(head, DotHead) and settings.loss != "gbce"
    compare = (
        _compare_softmax if is_dot_softmax else partial(_compare_blockwise, head, _make_criterion(settings, num_items))
    )

    def loss(y_LD: Tensor, items_XD: Tensor, targets_L: Tensor, generator: Generator | None = None) -> Tensor:
        positions = (targets_L >= 0).nonzero().squeeze(1)
        if len(positions) < len(targets_L):
            y_LD, targets_L = y_LD.index_select(0, positions), targets_L.index_select(0, positions)
        return compare(settings, y_LD, items_XD, targets_L, draw(targets_L, generator))

    return loss


def _check(loss: str, head: DotHead | MixtureHead) -> None:
    if loss not in DRAWS:
        raise SettingsError("no such loss", where="train", observed=loss, expected=" | ".join(DRAWS))
    if loss == "sampled" and isinstance(head, MixtureHead):
        raise SettingsError(
            "loss does not go with head mixture, which scores the same competitors for every position",
            where="train",
            observed=loss,
            expected=" | ".join(name for name in DRAWS if name != "sampled"),
        )


def _compare_softmax(
    settings: TrainSettings, y_MD: Tensor, items_XD: Tensor, targets_M: Tensor, drawn: Drawn
) -> Tensor:
    """Cosines and softmax have a path of their own, without autograd: 1,700 x 512 scores take 8 ms instead of 21."""
    table, competitors = items_XD, _competitors(targets_M, drawn, y_MD.dtype)
    if isinstance(competitors, SampledTable):
        table = items_XD.index_select(0, competitors.items)
    positives = items_XD.index_select(0, targets_M)
    return softmax_loss(y_MD, positives, table, competitors, settings.temperature, settings.backend)


def _competitors(targets_M: Tensor, drawn: Drawn, dtype: torch.dtype) -> WholeTable | SampledPerRow:
    if drawn.items is None:
        return WholeTable(targets_M)
    if drawn.items.ndim == 2:
        return SampledPerRow(targets_M, drawn.items)
    weight = drawn.weight.to(dtype) if isinstance(drawn.weight, Tensor) else drawn.weight
    return SampledTable(targets_M, weight, items=drawn.items)


Criterion = Callable[[Tensor, Tensor, Tensor, "float | Tensor"], Tensor]
"""(p (R, 1), s (R, C), whether a competitor is the row's target (R, C), weight) -> the losses (R,)."""


def _compare_blockwise(
    head: DotHead | MixtureHead,
    criterion: Criterion,
    settings: TrainSettings,
    y_MD: Tensor,
    items_XD: Tensor,
    targets_M: Tensor,
    drawn: Drawn,
) -> Tensor:
    """Any head and any criterion, a block of rows at a time."""
    items_C = torch.arange(len(items_XD), device=targets_M.device) if drawn.items is None else drawn.items
    queries = head.split_queries(y_MD)
    positives = head.split_items(items_XD.index_select(0, targets_M))
    table = head.split_items(items_XD if drawn.items is None else items_XD.index_select(0, items_C))
    middle = 1 + len(queries)

    def sum_of_losses(rows: Tensors, table: Tensors) -> Tensor:
        queries, positives = tuple(rows[1:middle]), tuple(rows[middle:])
        p_R1 = head.score_pairs(queries, positives) / settings.temperature
        s_RC = head.score_all(queries, tuple(table)) / settings.temperature
        return criterion(p_R1, s_RC, rows[0][:, None] == items_C, drawn.weight).sum()

    floats_per_row = head.floats_per_score * len(items_C)
    size = max(1, min(_ROWS_PER_BLOCK, _FLOATS_PER_BLOCK // max(floats_per_row, 1)))
    rows = (targets_M, *queries, *positives)
    return sum_over_blocks(sum_of_losses, rows, table, head.pair_weights(), size=size) / max(len(targets_M), 1)


def _make_criterion(settings: TrainSettings, num_items: int) -> Criterion:
    if settings.loss != "gbce":
        return _softmax_criterion
    share = min(settings.num_negatives / max(num_items - 1, 1), 1.0)  # a
    return partial(_gbce_criterion, 1 - settings.gbce_calibration * (1 - share), -math.log(num_items))


def _softmax_criterion(p_R1: Tensor, s_RC: Tensor, is_target_RC: Tensor, weight: float | Tensor) -> Tensor:
    """ln(exp(p) + sum of weight * exp(s)) - p."""
    log_weight = torch.as_tensor(weight, dtype=s_RC.dtype, device=s_RC.device).log()
    s_RC = (s_RC + log_weight).masked_fill(is_target_RC, -torch.inf)
    return torch.cat([p_R1, s_RC], dim=1).logsumexp(1) - p_R1.squeeze(1)


def _gbce_criterion(
    beta: float, offset: float, p_R1: Tensor, s_RC: Tensor, is_target_RC: Tensor, weight: float | Tensor
) -> Tensor:
    """The target's probability to the power beta against the negatives'; the mean over 1 + C questions."""
    negative_R = logsigmoid(-s_RC - offset).masked_fill(is_target_RC, 0.0).sum(1)
    return -(beta * logsigmoid(p_R1 + offset).squeeze(1) + negative_R) / (1 + s_RC.shape[1])
