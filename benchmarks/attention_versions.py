"""The versions that bench_attention times: NAME[-kept]:BIAS, made into a function that runs forward, then backward.

Shapes: B sequences, N max_len, L rows, H heads, D head width (Dqk = Dv).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import measuring
from benchmarks.baselines import dense_attention, dense_buckets, pad
from components.dataset import Batch
from kernels import RelativeBias, choose_backend, hstu_attention
from kernels.time_buckets import NUM_TIME_BUCKETS

_NAMES = ("cpu", "torch", "reference", "triton", "dense", "sdpa", "flex")
_SOFTMAX = ("sdpa", "flex")
_BIASES = ("none", "position", "time", "position+time")


@dataclass(frozen=True)
class Version:
    """NAME[-kept]:BIAS, parsed."""

    name: str
    is_kept: bool
    bias: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """Take the text apart; the bias is position+time where none is named.

        Raises:
            ValueError: there is no such version.
        """
        label, _, bias = text.partition(":")
        version = cls(label.removesuffix("-kept"), label.endswith("-kept"), bias or "position+time")
        if version.name not in _NAMES or version.bias not in _BIASES:
            raise ValueError(f"version is {text!r}, expected one of {', '.join(_NAMES)}, -kept or not, and a bias")
        if version.name in _SOFTMAX and version.bias != "none":
            raise ValueError(f"{text!r}: softmax baselines are timed with bias none")
        return version

    def __str__(self) -> str:
        return f"{self.name}{'-kept' if self.is_kept else ''}:{self.bias}"


class Problem:
    """Inputs of the operator for one batch. q, k, v are slices of one fused projection, as in the model, and leaves."""

    def __init__(self, batch: Batch, max_len: int, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.batch, self.max_len = batch, max_len
        num_rows, device = len(batch.items), batch.items.device
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        z = normal(num_rows, 3 * heads * head_dim)
        self.qkv = [part.unflatten(1, (heads, -1)).requires_grad_() for part in z.chunk(3, dim=1)]
        self.position_weight = (0.02 * normal(2 * max_len - 1)).requires_grad_()
        self.time_weight = (0.02 * normal(NUM_TIME_BUCKETS)).requires_grad_()
        self.grad = normal(num_rows, heads, head_dim)

    def fresh_batch(self) -> Batch:
        """Return the batch in tensors that nobody has seen before."""
        batch = self.batch
        return Batch(*(x.clone() for x in (batch.items, batch.timestamps, batch.next_timestamps, batch.offsets)))

    def bias_of(self, batch: Batch, bias: str) -> RelativeBias:
        """Return the bias with the tables that `bias` names."""
        return RelativeBias(
            self.position_weight if "position" in bias else None,
            self.time_weight if "time" in bias else None,
            batch.timestamps,
            batch.next_timestamps,
        )

    def padded(self) -> tuple[list[Tensor], Tensor]:
        """Return q, k, v as leaves (B, H, N, D), and the gradient of o likewise."""
        qkvg = [pad(x.detach(), self.batch.offsets, self.max_len) for x in (*self.qkv, self.grad)]
        *qkv, grad = (x.transpose(1, 2).contiguous() for x in qkvg)
        return [x.requires_grad_() for x in qkv], grad


def make_version(version: Version, problem: Problem) -> measuring.Version:
    """Return forward, then backward.

    Raises:
        ValueError: the backend does not run here.
    """
    if version.name in _SOFTMAX:
        qkv, grad = problem.padded()
        attend = partial(_causal_softmax(version.name, problem), *qkv)
        return partial(_forward_and_backward, lambda: attend, qkv, grad)
    if version.name == "dense":
        attend_batch = _dense(version, problem)
    else:
        choose_backend(problem.grad.device, version.name)
        attend_batch = partial(hstu_attention, backend=version.name)

    def prepare() -> Callable[[], Tensor]:
        batch = problem.batch if version.is_kept else problem.fresh_batch()
        bias = problem.bias_of(batch, version.bias)
        attend = partial(attend_batch, *problem.qkv, batch.offsets, max_len=problem.max_len, bias=bias)
        if version.is_kept:  # the backward pass keeps lists of its own
            attend().backward(problem.grad)
        return attend

    leaves = [*problem.qkv, problem.position_weight, problem.time_weight]
    return partial(_forward_and_backward, prepare, leaves, problem.grad)


def _dense(version: Version, problem: Problem) -> Callable[..., Tensor]:
    if not version.is_kept or "time" not in version.bias:
        return dense_attention
    bias = problem.bias_of(problem.batch, version.bias)
    return partial(dense_attention, buckets_BNN=dense_buckets(bias, problem.batch.offsets, problem.max_len))


def _causal_softmax(name: str, problem: Problem) -> Callable[..., Tensor]:
    if name == "sdpa":
        return partial(scaled_dot_product_attention, is_causal=True)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # imports the compiler: 2 s

    torch._dynamo.reset()  # else it gives up compiling after eight shapes
    rows = problem.max_len
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, rows, rows, device=str(problem.grad.device))
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)


def _forward_and_backward(
    prepare: Callable[[], Callable[[], Tensor]], leaves: Sequence[Tensor], grad: Tensor, mark: measuring.Mark
) -> None:
    attend = prepare()
    _forget_gradients(leaves)
    mark()
    o = attend()
    mark()
    o.backward(grad)
    mark()
    _forget_gradients(leaves)


def _forget_gradients(leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None
