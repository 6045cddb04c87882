"""HSTU attention on the CPU: batched matrix products over groups of sequences of similar length.

Each group is computed in tiles of query rows against the keys they can see. Only q, k, v and the bias inputs are kept
for the backward pass, which recomputes the scores s:

    a = silu(s) mask,  o = a v / N
    dv = a^T do / N,  ds = (do v^T / N) silu'(s) mask,  dq = alpha ds k,  dk = alpha ds^T q

Shapes: L rows of the batch, H heads, D or Dv head width, S slots of all groups (see length_groups), K sequences times
heads of a group, n rows of its longest, R query rows and C key columns of a tile, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.bias import RelativeBias
from kernels.hstu_cpu_bias import BiasGradients, PositionBias, TileBias, TimeBias, TimeIndex
from kernels.hstu_cpu_tiles import Tile, Visibility
from kernels.length_groups import LengthGroup, LengthGroups

# Scores (G*n*n) of a group at most. One core, ML-1M lengths (mean 100, at most 200), batch 128: forward and backward
# take 37 ms, 47 ms with a quarter of it (more groups to dispatch), and hardly less with twice as many.
_SCORES_PER_GROUP = 320_000


def cpu_attention(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHD: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    alpha: float,
    bias: RelativeBias | None,
    num_targets: Tensor | None,
    num_context: int,
    window: int,
) -> Tensor:
    """Return (L, H, Dv); the arguments are those of `hstu_attention`, already checked."""
    bias = bias or RelativeBias(None, None, None, None)
    visibility = Visibility(num_targets, num_context, window)
    call = _Call(_layout(offsets, q_LHD.shape[1], visibility, bias), max_len, alpha)
    output: Tensor = _CpuAttention.apply(q_LHD, k_LHD, v_LHD, bias.position_weight, bias.time_weight, call)  # type: ignore[no-untyped-call]
    return output


@dataclass(frozen=True, eq=False)
class _Layout:
    """What depends on the lengths and times of a batch only, and so is shared by the layers of a model."""

    offsets: Tensor
    visibility: Visibility
    groups: LengthGroups
    tiles: list[tuple[LengthGroup, list[Tile]]]
    time_index: TimeIndex | None

    def serves(self, offsets: Tensor, num_heads: int, visibility: Visibility, bias: RelativeBias) -> bool:
        """Whether it was made from these very tensors."""
        return (
            self.offsets is offsets
            and self.groups.num_heads == num_heads
            and self.visibility.is_same(visibility)
            and (bias.time_weight is None or (self.time_index is not None and self.time_index.is_of(bias)))
        )

    def bias(self, position_weight: Tensor | None, time_weight: Tensor | None) -> TileBias:
        """Return one layer's bias."""
        position = None if position_weight is None else PositionBias(position_weight, self.visibility.num_targets)
        time = None if time_weight is None or self.time_index is None else TimeBias(time_weight, self.time_index)
        return TileBias(position, time)

    def workspace(self, like: Tensor) -> Tensor:
        """Return a flat tensor that holds the scores of any tile."""
        return like.new_empty(max((tile.num_scores for _, tiles in self.tiles for tile in tiles), default=0))


def _layout(offsets: Tensor, num_heads: int, visibility: Visibility, bias: RelativeBias) -> _Layout:
    """Return the layout that `bias` carries from the layer before, or make it."""
    kept = bias.cache.get("cpu")
    if isinstance(kept, _Layout) and kept.serves(offsets, num_heads, visibility, bias):
        return kept
    groups = LengthGroups(offsets, num_heads=num_heads, max_scores=_SCORES_PER_GROUP)
    tiles = [(group, visibility.tiles(group)) for group in groups]
    time_index = None if bias.time_weight is None else TimeIndex(bias, [tile for _, cut in tiles for tile in cut])
    layout = _Layout(offsets, visibility, groups, tiles, time_index)
    bias.cache["cpu"] = layout
    return layout


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of the operator, less the tensors that autograd follows."""

    layout: _Layout
    max_len: int
    alpha: float

    def score(self, q_KnD: Tensor, k_KnD: Tensor, tile: Tile, bias: TileBias, workspace: Tensor) -> Tensor:
        """Return s (K, R, C), in the workspace."""
        s_KRC = tile.scores(workspace)
        beta = 1 if bias.write(s_KRC, tile) else 0
        return s_KRC.baddbmm_(q_KnD[:, tile.rows], k_KnD[:, tile.columns].transpose(1, 2), beta=beta, alpha=self.alpha)


class _CpuAttention(torch.autograd.Function):
    """Autograd's view of the two passes."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        q_LHD: Tensor,
        k_LHD: Tensor,
        v_LHD: Tensor,
        position_weight: Tensor | None,
        time_weight: Tensor | None,
        call: _Call,
    ) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(q_LHD, k_LHD, v_LHD, position_weight, time_weight)
        return _forward(call, q_LHD, k_LHD, v_LHD, call.layout.bias(position_weight, time_weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q_LHD, k_LHD, v_LHD, position_weight, time_weight = ctx.saved_tensors
        bias = ctx.call.layout.bias(position_weight, time_weight)
        bias_gradients = BiasGradients(bias, wanted=ctx.needs_input_grad[3:5])
        gradients = _backward(ctx.call, q_LHD, k_LHD, v_LHD, grad_LHD, bias, bias_gradients)
        return *gradients, *bias_gradients.tables(), None


def _forward(call: _Call, q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, bias: TileBias) -> Tensor:
    """Return o (L, H, Dv)."""
    groups = call.layout.groups
    q_SD, k_SD, v_SD = groups.pad(q_LHD), groups.pad(k_LHD), groups.pad(v_LHD)
    o_SD = torch.empty_like(v_SD)
    workspace = call.layout.workspace(q_LHD)
    for group, tiles in call.layout.tiles:
        q, k, v, o = (group.block(x) for x in (q_SD, k_SD, v_SD, o_SD))
        for tile in tiles:
            a_KRC = torch.ops.aten.silu_(call.score(q, k, tile, bias, workspace))
            call.layout.visibility.hide(a_KRC, tile)
            o[:, tile.rows].baddbmm_(a_KRC, v[:, tile.columns], beta=0, alpha=1 / call.max_len)
    return groups.unpad(o_SD)


def _backward(
    call: _Call,
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHD: Tensor,
    grad_LHD: Tensor,
    bias: TileBias,
    bias_gradients: BiasGradients,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv; adds to `bias_gradients`."""
    groups, visibility = call.layout.groups, call.layout.visibility
    # Zeros in the padding of do make every gradient that padding could cause zero.
    inputs_SD = groups.pad(q_LHD), groups.pad(k_LHD), groups.pad(v_LHD), groups.pad_with_zeros(grad_LHD)
    gradients_SD = torch.empty_like(inputs_SD[0]), torch.zeros_like(inputs_SD[1]), torch.zeros_like(inputs_SD[2])
    workspace, second_workspace = call.layout.workspace(q_LHD), call.layout.workspace(q_LHD)
    for group, tiles in call.layout.tiles:
        q, k, v, do = (group.block(x) for x in inputs_SD)
        dq, dk, dv = (group.block(x) for x in gradients_SD)
        for tile in tiles:
            rows, columns = tile.rows, tile.columns
            s_KRC = call.score(q, k, tile, bias, workspace)
            ds_KRC = tile.scores(second_workspace)
            ds_KRC.baddbmm_(do[:, rows], v[:, columns].transpose(1, 2), beta=0, alpha=1 / call.max_len)
            torch.ops.aten.silu_backward.grad_input(ds_KRC, s_KRC, grad_input=ds_KRC)
            visibility.hide(ds_KRC, tile)
            a_KRC = torch.ops.aten.silu_(s_KRC)
            visibility.hide(a_KRC, tile)
            dv[:, columns].baddbmm_(a_KRC.transpose(1, 2), do[:, rows], alpha=1 / call.max_len)
            dq[:, rows].baddbmm_(ds_KRC, k[:, columns], beta=0, alpha=call.alpha)
            dk[:, columns].baddbmm_(ds_KRC.transpose(1, 2), q[:, rows], alpha=call.alpha)
            bias_gradients.add(ds_KRC, tile)
    dq_SD, dk_SD, dv_SD = gradients_SD
    return groups.unpad(dq_SD), groups.unpad(dk_SD), groups.unpad(dv_SD)
