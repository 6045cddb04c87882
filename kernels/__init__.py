"""Jagged attention kernels on plain tensors. Imports torch only."""

from kernels.attention import choose_backend, hstu_attention
from kernels.bias import RelativeBias

__all__ = ["RelativeBias", "choose_backend", "hstu_attention"]
