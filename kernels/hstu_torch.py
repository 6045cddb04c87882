"""HSTU attention in plain torch: batched matrix products over groups of sequences of similar length.

Each group is computed in tiles of query rows against the keys they can see. Only q, k, v and the bias inputs are kept
for the backward pass, which recomputes the scores s:

    a = silu(s) mask,  o = a v / N
    dv = a^T do / N,  ds = (do v^T / N) silu'(s) mask,  dq = alpha ds k,  dk = alpha ds^T q

Shapes: L rows of the batch, H heads, D or Dv head width, S slots of all groups (see length_groups), K sequences times
heads of a group, n rows of its longest, R query rows and C key columns of a tile, N max_len.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arguments import Arguments, Gradients, Wants
from kernels.batch_memo import BatchMemo
from kernels.bias import RelativeBias
from kernels.hstu_torch_bias import BiasGradients, PositionBias, TileBias, TimeBias, TimeIndex
from kernels.hstu_torch_tiles import Tile, Visibility
from kernels.length_groups import LengthGroup, LengthGroups

# Scores (G*n*n) of a group at most. One core, ML-1M lengths (mean 100, at most 200), batch 128: forward and backward
# take 37 ms, 47 ms with a quarter of it (more groups to dispatch), and hardly less with twice as many.
_SCORES_PER_GROUP = 320_000


def forward(q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, arguments: Arguments) -> Tensor:
    """Return (L, H, Dv); see `kernels.arguments`."""
    call = _Call(_layout(arguments, q_LHD.shape[1]), arguments.max_len, arguments.alpha)
    return _forward(call, q_LHD, k_LHD, v_LHD, call.layout.bias(arguments.bias))


def backward(
    grad_LHD: Tensor, q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, arguments: Arguments, wants: Wants
) -> Gradients:
    """Return the gradients; see `kernels.arguments`."""
    call = _Call(_layout(arguments, q_LHD.shape[1]), arguments.max_len, arguments.alpha)
    bias = call.layout.bias(arguments.bias)
    bias_gradients = BiasGradients(bias, wanted=wants)
    gradients = _backward(call, q_LHD, k_LHD, v_LHD, grad_LHD, bias, bias_gradients)
    return Gradients(*gradients, *bias_gradients.tables())


@dataclass(frozen=True, eq=False)
class _Layout:
    """What depends on the lengths and times of a batch only, and so is shared by the layers of a model."""

    visibility: Visibility
    groups: LengthGroups
    tiles: list[tuple[LengthGroup, list[Tile]]]
    time_index: TimeIndex | None

    def bias(self, bias: RelativeBias) -> TileBias:
        """Return one layer's bias."""
        weight = bias.position_weight
        position = None if weight is None else PositionBias(weight, self.visibility.num_targets)
        weight = bias.time_weight
        time = None if weight is None or self.time_index is None else TimeBias(weight, self.time_index)
        return TileBias(position, time)

    def workspace(self, like: Tensor) -> Tensor:
        """Return a flat tensor that holds the scores of any tile."""
        return like.new_empty(max((tile.num_scores for _, tiles in self.tiles for tile in tiles), default=0))


_LAYOUTS: BatchMemo[_Layout] = BatchMemo()


def _layout(arguments: Arguments, num_heads: int) -> _Layout:
    """Return the layout that the layer before used, or make it."""
    bias, offsets, num_targets = arguments.bias, arguments.offsets, arguments.num_targets
    has_time = bias.time_weight is not None

    def make() -> _Layout:
        visibility = Visibility(num_targets, arguments.num_context, arguments.window)
        groups = LengthGroups(offsets, num_heads=num_heads, max_scores=_SCORES_PER_GROUP)
        tiles = [(group, visibility.tiles(group)) for group in groups]
        all_tiles = [tile for _, cut in tiles for tile in cut]
        return _Layout(visibility, groups, tiles, TimeIndex(bias, all_tiles) if has_time else None)

    tensors = offsets, num_targets, *((bias.timestamps, bias.next_timestamps) if has_time else ())
    return _LAYOUTS.get(tensors, (num_heads, arguments.num_context, arguments.window), make)


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
