"""temporary"""
from __future__ import annotations
from typing import TYPE_CHECKING
from collections.abc import Callable
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
Loss = Callable[[Tensor, Tensor, Tensor, "torch.Generator | None"], Tensor]
def make_loss(settings, num_items: int) -> Loss:
    def loss(y_LD, item_vectors_XD, targets_L, generator=None):
        logits = y_LD @ item_vectors_XD.T / settings.temperature
        return cross_entropy(logits, targets_L, ignore_index=-1)
    return loss
