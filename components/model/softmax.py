"""Softmax cross-entropy and its gradients in one sweep over blocks of rows, without an (M, C) tensor in memory.

    loss_i = -p_i + ln(exp(p_i) + w sum_c [c is not i's target] exp(s_ic)),   p_i = <y_i, x_t(i)> / T,   s_ic = <y_i, x_c> / T

A block's scores become the derivatives of the loss by them, and those are multiplied back into dy and dx, while they are still in
the cache: three matrix products and one exponential a score. All that waits for the backward pass is the gradient.

Shapes: M rows, all with a target, D width, X catalogue size, C candidates of a row, R rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# One core: 4.9 ns a score, forward and backward, with 128 rows and 1.7k to 20k candidates; 5.3 ns with 32 rows, over 6 with 1024.
_ROWS_PER_BLOCK = 128
_FLOATS_PER_BLOCK = 2**24  # 64 MB: fewer rows for catalogues of more than 131k items


class Candidates(Protocol):
    """What the targets compete with; `rows` says which of the M rows a block holds."""

    weight: float  # w: how many items of the catalogue a candidate stands for

    def floats_per_row(self, items_XD: Tensor) -> int:
        """Return how much memory one row of a block takes."""

    def scores(self, y_RD: Tensor, items_XD: Tensor, rows: slice) -> Tensor:
        """Return <y_i, x_c> as a new (R, C)."""

    def hide_targets(self, scores_RC: Tensor, targets_R: Tensor, rows: slice) -> None:
        """Set a row's own target among its candidates to 0, in place."""

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, items_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:
        """Return sum_c g_ic x_c as (R, D), and add g_ic y_i to row c of `grad_XD`."""


class Catalogue:
    """Every item: the exact softmax."""

    weight = 1.0

    def floats_per_row(self, items_XD: Tensor) -> int:
        """See Candidates."""
        return len(items_XD)

    def scores(self, y_RD: Tensor, items_XD: Tensor, rows: slice) -> Tensor:  # noqa: ARG002
        """See Candidates."""
        return y_RD @ items_XD.T

    def hide_targets(self, scores_RC: Tensor, targets_R: Tensor, rows: slice) -> None:  # noqa: ARG002
        """See Candidates."""
        scores_RC.scatter_(1, targets_R[:, None], 0.0)

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, items_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:  # noqa: ARG002
        """See Candidates."""
        grad_XD.addmm_(g_RC.T, y_RD)
        return g_RC @ items_XD


@dataclass(frozen=True, eq=False)
class SharedNegatives:
    """The same items for every row, each standing for `weight` items of the catalogue."""

    items: Tensor  # (C,) int64
    weight: float

    def floats_per_row(self, items_XD: Tensor) -> int:  # noqa: ARG002
        """See Candidates."""
        return len(self.items)

    def scores(self, y_RD: Tensor, items_XD: Tensor, rows: slice) -> Tensor:  # noqa: ARG002
        """See Candidates."""
        return y_RD @ items_XD[self.items].T

    def hide_targets(self, scores_RC: Tensor, targets_R: Tensor, rows: slice) -> None:  # noqa: ARG002
        """See Candidates."""
        scores_RC.masked_fill_(targets_R[:, None] == self.items, 0.0)

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, items_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:  # noqa: ARG002
        """See Candidates."""
        grad_XD.index_add_(0, self.items, g_RC.T @ y_RD)
        return g_RC @ items_XD[self.items]


@dataclass(frozen=True, eq=False)
class RowNegatives:
    """Each row's own items."""

    items: Tensor  # (M, C) int64
    weight = 1.0

    def floats_per_row(self, items_XD: Tensor) -> int:
        """See Candidates."""
        return self.items.shape[1] * items_XD.shape[1]

    def scores(self, y_RD: Tensor, items_XD: Tensor, rows: slice) -> Tensor:
        """See Candidates."""
        return torch.bmm(items_XD[self.items[rows]], y_RD[:, :, None]).squeeze(2)

    def hide_targets(self, scores_RC: Tensor, targets_R: Tensor, rows: slice) -> None:
        """See Candidates."""
        scores_RC.masked_fill_(targets_R[:, None] == self.items[rows], 0.0)

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, items_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:
        """See Candidates."""
        negatives_RC = self.items[rows]
        grad_XD.index_add_(0, negatives_RC.flatten(), (g_RC[:, :, None] * y_RD[:, None, :]).flatten(0, 1))
        return torch.bmm(g_RC[:, None, :], items_XD[negatives_RC]).squeeze(1)


def softmax_loss(y_MD: Tensor, items_XD: Tensor, targets_M: Tensor, candidates: Candidates, temperature: float) -> Tensor:
    """Return the mean of loss_i, 0 where there are no rows; differentiable once in `y_MD` and `items_XD`."""
    loss: Tensor = _SoftmaxLoss.apply(y_MD, items_XD, targets_M, candidates, 1 / temperature)
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """Computes the gradients together with the loss, while a block's scores are at hand."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        y_MD: Tensor,
        items_XD: Tensor,
        targets_M: Tensor,
        candidates: Candidates,
        scale: float,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        grad_y_MD, grad_items_XD = torch.empty_like(y_MD), torch.zeros_like(items_XD)
        rows_per_block = max(1, min(_ROWS_PER_BLOCK, _FLOATS_PER_BLOCK // max(candidates.floats_per_row(items_XD), 1)))
        losses = [y_MD.new_zeros(())]
        for start in range(0, len(y_MD), rows_per_block):
            rows = slice(start, start + rows_per_block)
            block = _Block(y_MD[rows], items_XD, targets_M[rows], candidates, rows, scale)
            losses.append(block.loss_sum())
            if wanted:
                grad_y_MD[rows] = block.pull_back(grad_items_XD)
        ctx.save_for_backward(grad_y_MD, grad_items_XD)
        ctx.factor = scale / max(len(y_MD), 1)
        return torch.stack(losses).sum() / max(len(y_MD), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grad_y_MD, grad_items_XD = ctx.saved_tensors
        factor = grad * ctx.factor
        return grad_y_MD * factor, grad_items_XD * factor, None, None, None


class _Block:
    """R rows: their losses, then the gradients of their sum, less the factor 1 / T."""

    def __init__(
        self, y_RD: Tensor, items_XD: Tensor, targets_R: Tensor, candidates: Candidates, rows: slice, scale: float
    ) -> None:
        self.y_RD, self.items_XD, self.targets_R = y_RD, items_XD, targets_R
        self.candidates, self.rows = candidates, rows
        self.positives_RD = items_XD[targets_R]
        p_R1 = scale * (y_RD * self.positives_RD).sum(1, keepdim=True)
        scores_RC = candidates.scores(y_RD, items_XD, rows).mul_(scale)
        # Unit rows keep |s| <= 1 / T, so this costs 3% for nothing at T = 0.05; below T = 0.0125 float32 would overflow.
        highest_R1 = torch.maximum(scores_RC.amax(1, keepdim=True), p_R1)
        self.g_RC = scores_RC.sub_(highest_R1).exp_()
        candidates.hide_targets(self.g_RC, targets_R, rows)
        self.g_RC.mul_(candidates.weight)
        self.exp_p_R1 = (p_R1 - highest_R1).exp()
        self.total_R1 = self.exp_p_R1 + self.g_RC.sum(1, keepdim=True)
        self.losses_R1 = self.total_R1.log() + highest_R1 - p_R1

    def loss_sum(self) -> Tensor:
        """Return the sum of the rows' losses."""
        return self.losses_R1.sum()

    def pull_back(self, grad_items_XD: Tensor) -> Tensor:
        """Return the gradient of the rows, (R, D); add that of the items."""
        y_per_total_RD = self.y_RD / self.total_R1
        grad_y_RD = self.candidates.pull_back(self.g_RC, y_per_total_RD, self.items_XD, grad_items_XD, self.rows)
        grad_p_R1 = self.exp_p_R1 / self.total_R1 - 1
        grad_items_XD.index_add_(0, self.targets_R, grad_p_R1 * self.y_RD)
        return grad_y_RD.div_(self.total_R1).addcmul_(grad_p_R1, self.positives_RD)
