"""A second derivative is refused; torch would warn and leave its share out."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor


def refuse_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:  # noqa: ANN401 - as torch.library calls it
    """What an operator that computes gradients is differentiated by."""
    raise NotImplementedError("the operators of hstuflow can be differentiated once only")
