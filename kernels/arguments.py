"""What a backend of the attention operator is called with, besides q, k and v; already checked.

A backend is a module with two functions (L rows of the batch, H heads, D and V head widths):

    forward(q_LHD, k_LHD, v_LHV, arguments) -> o_LHV
    backward(grad_LHV, q_LHD, k_LHD, v_LHV, arguments, wants) -> Gradients
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kernels.bias import RelativeBias


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of `hstu_attention` as it documents them; a bias that is not there has no tables."""

    offsets: Tensor  # (B+1,) int64
    bias: RelativeBias
    num_targets: Tensor | None  # (B,) int64
    max_len: int
    alpha: float
    num_context: int
    window: int

    @property
    def is_causal(self) -> bool:
        """Whether j <= i is the whole mask."""
        return self.num_targets is None and not self.num_context and not self.window


class Wants(NamedTuple):
    """Which tables need a gradient."""

    position: bool
    time: bool


class Gradients(NamedTuple):
    """Of q, k, v as contiguous tensors, and of the two tables; None where not wanted or not there."""

    q_LHD: Tensor
    k_LHD: Tensor
    v_LHV: Tensor
    position_weight: Tensor | None
    time_weight: Tensor | None
