"""AdamW (arXiv 1711.05101, algorithm 2) with its state in the open: two moments per weight, the step from outside.

    m <- b1 m + (1 - b1) g;    v <- b2 v + (1 - b2) g^2
    w <- w - rate * weight_decay * w - rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Ours, because building one of torch.optim's imports torch._dynamo: 2 s at every start, 10 s the first time on a busy
machine (an epoch on ML-100K takes 4 s). A test compares the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.98)  # hstu-spec section 5
EPS = 1e-8

Moments = dict[str, Tensor]  # "<weight>/first" and "<weight>/second"


class AdamW:
    """Updates a model's weights in place."""

    def __init__(self, model: nn.Module, *, weight_decay: float) -> None:
        self._weights = dict(model.named_parameters())
        self._weight_decay = weight_decay
        self.moments: Moments = {
            f"{name}/{which}": torch.zeros_like(weight, requires_grad=False)
            for name, weight in self._weights.items()
            for which in ("first", "second")
        }

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """Take step `number` (from 1) at learning rate `rate`; a weight without a gradient stays as it is."""
        beta1, beta2 = BETAS
        root = math.sqrt(1 - beta2**number)
        for name, weight in self._weights.items():
            gradient = weight.grad
            if gradient is None:
                continue
            first, second = self.moments[f"{name}/first"], self.moments[f"{name}/second"]
            weight.mul_(1 - rate * self._weight_decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight.addcdiv_(first, (second.sqrt() / root).add_(EPS), value=-rate / (1 - beta1**number))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights.values():
            weight.grad = None

    def restore(self, moments: Moments) -> None:
        """Go on from saved moments."""
        for name, moment in self.moments.items():
            moment.copy_(moments[name])
