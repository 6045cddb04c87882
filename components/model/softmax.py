"""Softmax cross-entropy and its gradients in one sweep over blocks of rows, without an (M, C) tensor in memory.

    loss_i = -p_i + ln(exp(p_i) + sum_c [c is not i's target] w_c exp(s_ic))
    p_i = <y_i, x_target(i)> / T,   s_ic = <y_i, x_c> / T

A block's scores become the derivatives of the loss by them, and those are multiplied back into dy and dx, while they
are still in the cache: three matrix products and one exponential a score. Only gradients wait for the backward pass.

Shapes: M rows, D width, X vectors of the table, C competitors of a row, R rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.sampled_softmax import can_fuse, sampled_softmax

# One core, 1.7k to 20k items: 4.9 ns a score, forward and backward; 5.4 ns with 32 rows, over 6 ns with 1024.
_ROWS_PER_BLOCK = 128
_FLOATS_PER_BLOCK = 2**24  # 64 MB: fewer rows for catalogues of more than 131k items


class Competitors(Protocol):
    """What the targets compete with; `rows` says which of the M rows a block holds."""

    @property
    def weight(self) -> float | Tensor:
        """w: how many items a competitor stands for; (C,) where they differ."""

    def floats_per_row(self, table_XD: Tensor) -> int:
        """Return how much memory one row of a block takes."""

    def scores(self, y_RD: Tensor, table_XD: Tensor, rows: slice) -> Tensor:
        """Return <y_i, x_c> as a new (R, C)."""

    def hide_targets(self, scores_RC: Tensor, rows: slice) -> None:
        """Set a row's own target among its competitors to 0, in place."""

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, table_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:
        """Return sum_c g_ic x_c as (R, D), and add g_ic y_i to row c of `grad_XD`."""


@dataclass(frozen=True, eq=False)
class WholeTable:
    """Every vector of the table, the target's among them: with the catalogue as table, the exact softmax."""

    targets: Tensor  # (M,) int64, rows of the table
    weight: float | Tensor = 1.0

    def floats_per_row(self, table_XD: Tensor) -> int:
        """See `Competitors`."""
        return len(table_XD)

    def scores(self, y_RD: Tensor, table_XD: Tensor, rows: slice) -> Tensor:
        """See `Competitors`."""
        return y_RD @ table_XD.T

    def hide_targets(self, scores_RC: Tensor, rows: slice) -> None:
        """See `Competitors`."""
        scores_RC.scatter_(1, self.targets[rows, None], 0.0)

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, table_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:
        """See `Competitors`."""
        grad_XD.addmm_(g_RC.T, y_RD)
        return g_RC @ table_XD


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledTable(WholeTable):
    """Every vector of a table sampled from the catalogue; a row's target may be in it several times, or not at all."""

    items: Tensor  # (X,) int64: what was sampled, numbered as the targets are

    def hide_targets(self, scores_RC: Tensor, rows: slice) -> None:
        """See `Competitors`."""
        scores_RC.masked_fill_(self.targets[rows, None] == self.items, 0.0)


@dataclass(frozen=True, eq=False)
class SampledPerRow:
    """Each row's own sample of the table; in float32 on a CPU the methods give way to one fused operator."""

    targets: Tensor  # (M,) int64
    items: Tensor  # (M, C) int64, rows of the table
    weight: float = 1.0

    def floats_per_row(self, table_XD: Tensor) -> int:
        """See `Competitors`."""
        return self.items.shape[1] * table_XD.shape[1]

    def scores(self, y_RD: Tensor, table_XD: Tensor, rows: slice) -> Tensor:
        """See `Competitors`."""
        return torch.bmm(self._vectors(table_XD, rows), y_RD[:, :, None]).squeeze(2)

    def hide_targets(self, scores_RC: Tensor, rows: slice) -> None:
        """See `Competitors`."""
        scores_RC.masked_fill_(self.targets[rows, None] == self.items[rows], 0.0)

    def pull_back(self, g_RC: Tensor, y_RD: Tensor, table_XD: Tensor, grad_XD: Tensor, rows: slice) -> Tensor:
        """See `Competitors`."""
        grad_XD.index_add_(0, self.items[rows].flatten(), (g_RC[:, :, None] * y_RD[:, None, :]).flatten(0, 1))
        return torch.bmm(g_RC[:, None, :], self._vectors(table_XD, rows)).squeeze(1)

    def _vectors(self, table_XD: Tensor, rows: slice) -> Tensor:
        items_RC = self.items[rows]
        return table_XD.index_select(0, items_RC.flatten()).view(*items_RC.shape, -1)


def softmax_loss(
    y_MD: Tensor,
    positives_MD: Tensor,
    table_XD: Tensor,
    competitors: Competitors,
    temperature: float,
    backend: str = "auto",
) -> Tensor:
    """Return the mean of loss_i, 0 where there are no rows; differentiable, once, in the three tensors.

    Row i of `positives_MD` is the vector of row i's target. `backend` as in `kernels.choice`: cpu fuses SampledPerRow.
    """
    loss: Tensor = _SoftmaxLoss.apply(y_MD, positives_MD, table_XD, competitors, 1 / temperature, backend)  # type: ignore[no-untyped-call]
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """Computes the gradients together with the loss, while a block's scores are at hand."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        y_MD: Tensor,
        positives_MD: Tensor,
        table_XD: Tensor,
        competitors: Competitors,
        scale: float,
        backend: str,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        if isinstance(competitors, SampledPerRow) and can_fuse(y_MD, backend):
            total, gradients = _sweep_fused(y_MD, positives_MD, table_XD, competitors, scale, wanted=wanted)
        else:
            total, gradients = _sweep_blocks(y_MD, positives_MD, table_XD, competitors, scale, wanted=wanted)
        ctx.save_for_backward(*gradients)
        ctx.factor = scale / max(len(y_MD), 1)
        return total / max(len(y_MD), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        factor = grad * ctx.factor
        return *(gradient * factor for gradient in ctx.saved_tensors), None, None, None


def _sweep_fused(
    y_MD: Tensor, positives_MD: Tensor, table_XD: Tensor, competitors: SampledPerRow, scale: float, *, wanted: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `_sweep_blocks`, in one call of C++: 24 ms for 12,843 rows of 128 samples and width 50, against 170 ms."""
    losses_M, gradients = sampled_softmax(
        y_MD,
        positives_MD,
        table_XD,
        competitors.targets,
        competitors.items,
        scale=scale,
        weight=competitors.weight,
        wants_gradients=wanted,
    )
    return losses_M.sum(), gradients or ()


def _sweep_blocks(
    y_MD: Tensor, positives_MD: Tensor, table_XD: Tensor, competitors: Competitors, scale: float, *, wanted: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum of the losses and, where wanted, its gradients by the three tensors, less the factor 1 / T."""
    total = y_MD.new_zeros(())
    gradients = torch.empty_like(y_MD), torch.empty_like(y_MD), torch.zeros_like(table_XD)
    for start in range(0, len(y_MD), size := _rows_per_block(competitors, table_XD)):
        rows = slice(start, start + size)
        block = _Block(y_MD[rows], positives_MD[rows], table_XD, competitors, rows, scale)
        total += block.loss_R1.sum()
        if wanted:
            gradients[0][rows], gradients[1][rows] = block.pull_back(gradients[2])
    return total, gradients


class _Block:
    """R rows: their losses, then the gradients of their sum, less the factor 1 / T."""

    def __init__(
        self,
        y_RD: Tensor,
        positives_RD: Tensor,
        table_XD: Tensor,
        competitors: Competitors,
        rows: slice,
        scale: float,
    ) -> None:
        self.y_RD, self.positives_RD, self.table_XD = y_RD, positives_RD, table_XD
        self.competitors, self.rows = competitors, rows
        p_R1 = scale * (y_RD * positives_RD).sum(1, keepdim=True)
        scores_RC = competitors.scores(y_RD, table_XD, rows).mul_(scale)
        # Unit vectors keep |s| <= 1 / T = 20 and need no maximum; it costs 3%, and float32 overflows at 1 / T = 88.
        highest_R1 = torch.maximum(scores_RC.amax(1, keepdim=True), p_R1)
        self.g_RC = scores_RC.sub_(highest_R1).exp_()
        competitors.hide_targets(self.g_RC, rows)
        if isinstance(competitors.weight, Tensor) or competitors.weight != 1:
            self.g_RC.mul_(competitors.weight)
        self.exp_p_R1 = (p_R1 - highest_R1).exp()
        self.total_R1 = self.exp_p_R1 + self.g_RC.sum(1, keepdim=True)
        self.loss_R1 = self.total_R1.log() + highest_R1 - p_R1

    def pull_back(self, grad_table_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the rows and their positives, both (R, D); add that of the table."""
        y_per_total_RD = self.y_RD / self.total_R1
        grad_y_RD = self.competitors.pull_back(self.g_RC, y_per_total_RD, self.table_XD, grad_table_XD, self.rows)
        grad_p_R1 = self.exp_p_R1 / self.total_R1 - 1
        return grad_y_RD.div_(self.total_R1).addcmul_(grad_p_R1, self.positives_RD), grad_p_R1 * self.y_RD


def _rows_per_block(competitors: Competitors, table_XD: Tensor) -> int:
    return max(1, min(_ROWS_PER_BLOCK, _FLOATS_PER_BLOCK // max(competitors.floats_per_row(table_XD), 1)))
