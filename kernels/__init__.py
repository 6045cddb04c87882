"""Jagged attention and what surrounds it in a layer, on plain tensors. Imports torch only; Triton when it is used."""

from kernels.attention import hstu_attention
from kernels.bias import RelativeBias
from kernels.choice import choose_backend
from kernels.dropout import dropout
from kernels.gated_norm import gated_norm
from kernels.silu_split import silu_split

__all__ = ["RelativeBias", "choose_backend", "dropout", "gated_norm", "hstu_attention", "silu_split"]
