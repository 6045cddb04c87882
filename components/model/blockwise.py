"""A sum over rows in bounded memory, with plain autograd inside: a block's gradients are taken while it is at hand.

    total = sum_over_blocks(function, rows, shared, weights, size=128)

As the sum of function(block of the rows, shared) over blocks of `size` rows, but only the gradients wait for the
backward pass. Checkpointing would run every block's forward pass twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Tensors = Sequence[Tensor]


def sum_over_blocks(
    function: Callable[[Tensors, Tensors], Tensor], rows: Tensors, shared: Tensors, weights: Tensors, *, size: int
) -> Tensor:
    """Return the scalar sum of function(block, shared); differentiable, once, in the float tensors of all three.

    Args:
        function: (rows of a block, `shared`) -> scalar.
        rows: tensors of equally many rows, at least one of them float.
        shared: tensors that every block sees whole.
        weights: what `function` uses beside its arguments: a module's parameters.
        size: rows of a block.
    """
    total: Tensor = _BlockwiseSum.apply(function, size, (len(rows), len(shared)), *rows, *shared, *weights)  # type: ignore[no-untyped-call]
    return total


class _BlockwiseSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, size: int, counts: tuple[int, int], *tensors: Tensor) -> Tensor:  # noqa: ANN401
        num_rows, stop = counts[0], sum(counts)
        wanted = ctx.needs_input_grad[3:]
        # A parameter is met by `function` itself; everything else it gets from here, cut off from its past.
        shared = [_cut_off(x, needed) for x, needed in zip(tensors[num_rows:stop], wanted[num_rows:stop], strict=True)]
        gradients = [torch.zeros_like(x) if needed else None for x, needed in zip(tensors, wanted, strict=True)]
        total = next(x for x in tensors if x.is_floating_point()).new_zeros(())
        for start in range(0, len(tensors[0]), size):
            block = slice(start, start + size)
            rows = [_cut_off(x[block], needed) for x, needed in zip(tensors[:num_rows], wanted, strict=False)]
            with torch.set_grad_enabled(any(wanted)):
                value = function(rows, shared)
            total += value.detach()
            sources = [*rows, *shared, *tensors[stop:]]
            _add_gradients(
                value, sources, [g[block] if k < num_rows and g is not None else g for k, g in enumerate(gradients)]
            )
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, None, *(None if gradient is None else grad * gradient for gradient in ctx.saved_tensors)


def _cut_off(x: Tensor, needed: bool) -> Tensor:
    return x.detach().requires_grad_(needed)


def _add_gradients(value: Tensor, sources: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add the gradients of `value` by those sources that have a place for one."""
    places = [(x, gradient) for x, gradient in zip(sources, gradients, strict=True) if gradient is not None]
    if not places:
        return
    found = torch.autograd.grad(value, [x for x, _ in places])
    for (_, gradient), part in zip(places, found, strict=True):
        gradient += part
