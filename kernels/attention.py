"""The public operator: jagged pointwise (softmax-free) attention of HSTU, with masks and relative bias.

    from kernels import RelativeBias, hstu_attention
    o = hstu_attention(q, k, v, offsets, max_len=200, bias=RelativeBias(position_weight, time_weight, t, t_next))

Checks the arguments and calls the registered operator (without gradients, the backend directly).
Shapes: L rows of the batch, B sequences, H heads, N max_len.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import attention_op
from kernels.arguments import Arguments
from kernels.batch_memo import BatchMemo
from kernels.bias import RelativeBias
from kernels.reference import reference_attention
from kernels.time_buckets import NUM_TIME_BUCKETS


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    alpha: float = 1.0,
    bias: RelativeBias | None = None,
    num_targets: Tensor | None = None,
    num_context: int = 0,
    window: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Return (L, H, Dv): o_i = sum over the visible j of silu(alpha <q_i, k_j> + rab_ij) / max_len * v_j.

    Args:
        q: (L, H, Dqk), rows of all sequences concatenated; strided views are fine, as for k and v.
        k: (L, H, Dqk).
        v: (L, H, Dv).
        offsets: (B+1,) int64; sequence b is rows offsets[b]:offsets[b+1], which may be none.
        max_len: N, the longest sequence the model takes; the divisor, so that a batch's other sequences do not matter.
        alpha: scale of the dot product.
        bias: relative attention bias, differentiable in its tables.
        num_targets: (B,) int64: rows at the end of each sequence that are candidates, unseen by one another.
        num_context: rows at the start of every non-empty sequence that see all context and history.
        window: how many ids back a row sees; 0 is no limit.
        backend: auto | reference | torch | cpu | triton; see `kernels.choice`.

    Raises:
        ValueError: shapes, dtypes, devices or offsets do not fit together, or the backend cannot take them.
    """
    _check_tensors(q, k, v, offsets)
    if max_len < 1:
        raise ValueError(f"max_len is {max_len}, expected 1 or more")
    if window < 0:
        raise ValueError(f"window is {window}, expected 0 (no limit) or more")
    if num_context < 0:
        raise ValueError(f"num_context is {num_context}, expected 0 or more")
    _check_targets(num_targets, offsets)
    bias = bias or RelativeBias(None, None, None, None)
    _check_bias(bias, q, max_len)
    if not torch.compiler.is_compiling():  # values are not known there
        checked = (len(q), max_len, num_context)
        _CHECKED.get((offsets, num_targets), checked, lambda: _check_rows(offsets, num_targets, *checked))
    arguments = Arguments(offsets, bias, num_targets, max_len, alpha, num_context, window)
    if backend == "reference":
        return reference_attention(q, k, v, arguments)
    return attention_op.attention(q, k, v, arguments, backend)


# Looking at values on a GPU waits for it: once a batch is enough.
_CHECKED: BatchMemo[None] = BatchMemo()


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 3 or 0 in tensor.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (L, H, D), H and D at least 1")
        if not tensor.is_floating_point() or tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected q, k and v of one floating dtype (q is {q.dtype})")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, but q is on {q.device}")
    if q.shape != k.shape or q.shape[:2] != v.shape[:2]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k, v have shapes {shapes}, expected (L, H, Dqk), (L, H, Dqk), (L, H, Dv)")
    if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets is {offsets.dtype} {tuple(offsets.shape)}, expected int64 (B+1,)")
    if offsets.device != q.device:
        raise ValueError(f"offsets is on {offsets.device}, but q is on {q.device}")


def _check_targets(num_targets: Tensor | None, offsets: Tensor) -> None:
    if num_targets is None:
        return
    num_sequences = len(offsets) - 1
    if num_targets.shape != (num_sequences,) or num_targets.dtype != torch.int64:
        raise ValueError(
            f"num_targets is {num_targets.dtype} {tuple(num_targets.shape)}, expected int64 ({num_sequences},)"
        )
    if num_targets.device != offsets.device:
        raise ValueError(f"num_targets is on {num_targets.device}, but offsets is on {offsets.device}")


def _check_rows(offsets: Tensor, num_targets: Tensor | None, num_rows: int, max_len: int, num_context: int) -> None:
    offsets = offsets.cpu()
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != num_rows or bool((lengths < 0).any()):
        raise ValueError(f"offsets must rise from 0 to L = {num_rows}, observed {offsets.tolist()[:8]}...")
    longest = int(lengths.max()) if len(lengths) else 0
    if longest > max_len:
        raise ValueError(f"a sequence has {longest} rows, more than max_len = {max_len}")
    needed = torch.full_like(lengths, num_context)
    if num_targets is not None:
        num_targets = num_targets.cpu()
        if bool((num_targets < 0).any()):
            raise ValueError("num_targets has a negative entry")
        needed = needed + num_targets
    if bool(((needed > lengths) & (lengths > 0)).any()):
        raise ValueError(f"a sequence is shorter than its {num_context} context rows and its targets together")


def _check_bias(bias: RelativeBias, q: Tensor, max_len: int) -> None:
    for name, table, size in (
        ("position_weight", bias.position_weight, 2 * max_len - 1),
        ("time_weight", bias.time_weight, NUM_TIME_BUCKETS),
    ):
        if table is None:
            continue
        if table.shape != (size,) or table.dtype != q.dtype or table.device != q.device:
            raise ValueError(
                f"{name} is {table.dtype} {tuple(table.shape)} on {table.device},"
                f" expected {q.dtype} ({size},) on {q.device}"
            )
    if bias.time_weight is None:
        return
    for name, times in zip(("timestamps", "next_timestamps"), bias.times(), strict=True):
        if times.shape != (len(q),) or times.dtype != torch.int64 or times.device != q.device:
            raise ValueError(
                f"{name} is {times.dtype} {tuple(times.shape)} on {times.device},"
                f" expected int64 ({len(q)},) on {q.device}"
            )
