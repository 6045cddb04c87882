"""The definition of HSTU attention: one sequence at a time, dense, in any dtype, differentiable by autograd.

    s_ij = alpha <q_i, k_j> + rab_ij;    o_i = sum_j mask_ij silu(s_ij) / N v_j

Every other backend is tested against this one. Source: arXiv 2402.17152, and for the masks its
implementation, meta-recsys/generative-recommenders. All targets have one position in the bias, so that a candidate's
score does not depend on the others.

Shapes: L rows of the batch, H heads, Dqk and Dv head widths, B sequences, n rows of one sequence, N max_len.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.arguments import Arguments
from kernels.bias import RelativeBias
from kernels.time_buckets import time_buckets


def reference_attention(q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, arguments: Arguments) -> Tensor:
    """Return (L, H, Dv), differentiable."""
    bounds, max_len = arguments.offsets.tolist(), arguments.max_len
    targets = [0] * (len(bounds) - 1) if arguments.num_targets is None else arguments.num_targets.tolist()
    outputs = [v_LHD[:0]]
    for start, end, t in zip(bounds[:-1], bounds[1:], targets, strict=True):
        rows = slice(start, end)
        scores_Hnn = arguments.alpha * torch.einsum("ihd,jhd->hij", q_LHD[rows], k_LHD[rows])
        scores_Hnn = scores_Hnn + relative_bias(arguments.bias, rows, t, max_len=max_len)
        mask_nn = attention_mask(end - start, t, arguments.num_context, arguments.window, device=q_LHD.device)
        weights_Hnn = torch.where(mask_nn, silu(scores_Hnn) / max_len, 0.0)
        outputs.append(torch.einsum("hij,jhd->ihd", weights_Hnn, v_LHD[rows]))
    return torch.cat(outputs)


def attention_mask(
    num_rows: int, num_targets: int, num_context: int, window: int, *, device: torch.device | None = None
) -> Tensor:
    """Return (n, n) bool: whether row i sees column j.

    Context comes first and sees all context and history; history sees context, the past and itself; a target, at the
    end, sees context, history and itself. With a window, rows see only ids at most `window` before their own.
    """
    position = torch.arange(num_rows, device=device)
    identity = (position - num_context + 1).clamp(min=0) if num_context else position
    target_id = num_rows - max(num_context - 1, 0) - num_targets
    identity = identity.clamp(max=target_id)
    row_id, column_id = identity[:, None], identity[None, :]
    allowed = (position[:, None] == position[None, :]) | (row_id > column_id)
    if window:
        allowed &= row_id - column_id <= window
    if num_context:
        allowed |= (row_id == 0) & (column_id < target_id)
    return allowed


def relative_bias(bias: RelativeBias, rows: slice, num_targets: int, *, max_len: int) -> Tensor | float:
    """Return the (n, n) bias of one sequence, the rows `rows` of the batch; 0 where both tables are None."""
    num_rows = rows.stop - rows.start
    total: Tensor | float = 0.0
    if bias.position_weight is not None:
        position = torch.arange(num_rows, device=bias.position_weight.device).clamp(max=num_rows - num_targets)
        total = bias.position_weight[max_len - 1 + position[None, :] - position[:, None]]
    if bias.time_weight is not None:
        timestamps, next_timestamps = bias.times()
        gaps = next_timestamps[rows, None] - timestamps[None, rows]
        total = total + bias.time_weight[time_buckets(gaps)]
    return total
