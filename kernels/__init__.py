"""Jagged attention and what surrounds it in a layer, on plain tensors. Imports torch only; Triton when it is used."""

from kernels.attention import hstu_attention
from kernels.bias import RelativeBias
from kernels.choice import choose_backend

__all__ = ["RelativeBias", "choose_backend", "hstu_attention"]
