"""AdamW (arXiv 1711.05101, algorithm 2) with its state in the open: two moments per weight, the step from outside.

    m <- b1 m + (1 - b1) g;    v <- b2 v + (1 - b2) g^2
    w <- w - rate * weight_decay * w - rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

The step is PyTorch's fused kernel: 0.2 ms for 3,706 items of width 50, 8 ms for 50,000 of width 128, a third of what
the formulas take as torch operators. The class around it is ours, because building one of torch.optim's imports
torch._dynamo: 2 s at every start, 10 s the first time on a busy machine (an epoch on ML-100K takes 4 s). A test
compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.98)  # of HSTU's public recipes (meta-recsys/generative-recommenders)
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
        names = [name for name, weight in self._weights.items() if weight.grad is not None]
        if not names:
            return
        weights: list[Tensor] = [self._weights[name] for name in names]
        steps = torch.tensor(float(number), device=weights[0].device)
        # It ignores strides. That is safe: backward() lays a gradient out as its weight is.
        torch._fused_adamw_(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [self.moments[f"{name}/first"] for name in names],
            [self.moments[f"{name}/second"] for name in names],
            [],  # of AMSGrad
            [steps] * len(names),
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights.values():
            weight.grad = None

    def restore(self, moments: Moments) -> None:
        """Go on from saved moments."""
        for name, moment in self.moments.items():
            moment.copy_(moments[name])
