"""The operator as PyTorch knows it: `torch.ops.hstuflow.attention` and its backward, with shapes and autograd.

Registered with torch.library, so that torch.compile and torch.export see one opaque operator, and opcheck can check it.
The backend is an argument, and `auto` is resolved when the operator runs: a traced program goes to any device.

Shapes: L rows of the batch, B sequences, H heads, D and V head widths, N max_len.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernels.arguments import Arguments, Gradients, Wants
from kernels.bias import RelativeBias
from kernels.choice import choose_backend, is_plain_call
from kernels.once_differentiable import refuse_second_derivative

# Imported when first used: Triton takes a second, and is not everywhere.
_MODULES = {"torch": "kernels.hstu_torch", "cpu": "kernels.hstu_cpu", "triton": "kernels.hstu_triton"}

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? position_weight, Tensor? time_weight, Tensor? timestamps,"
    " Tensor? next_timestamps, Tensor? num_targets, int max_len, float alpha, int num_context, int window, str backend"
)
_LIBRARY = torch.library.Library("hstuflow", "FRAGMENT")
# A CUDA graph would replay the first batch's lists of tiles.
_TAGS = (torch.Tag.cudagraph_unsafe,)
_LIBRARY.define(f"attention({_ARGUMENTS}) -> Tensor", tags=_TAGS)
_LIBRARY.define(
    f"attention_backward(Tensor grad, {_ARGUMENTS}, bool wants_position, bool wants_time)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def attention(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, backend: str) -> Tensor:
    """Return (L, H, V), differentiable once; `backend` as in `kernels.choice`, without reference."""
    if is_plain_call(q):
        # The way through the operator's registration takes 100 us, of the 215 of one user with 200 rows.
        direct: Tensor = _module(q, backend).forward(q, k, v, arguments)
        return direct
    output: Tensor = torch.ops.hstuflow.attention(q, k, v, *_flatten(arguments), backend)
    return output


def _flatten(arguments: Arguments) -> tuple[Any, ...]:
    bias = arguments.bias
    tensors = bias.position_weight, bias.time_weight, bias.timestamps, bias.next_timestamps, arguments.num_targets
    return arguments.offsets, *tensors, arguments.max_len, arguments.alpha, arguments.num_context, arguments.window


def _arguments(flat: tuple[Any, ...]) -> Arguments:
    """Undo `_flatten`."""
    offsets, position_weight, time_weight, timestamps, next_timestamps, num_targets, *numbers = flat
    bias = RelativeBias(position_weight, time_weight, timestamps, next_timestamps)
    return Arguments(offsets, bias, num_targets, *numbers)


def _module(q: Tensor, backend: str) -> Any:  # noqa: ANN401 - a module of the kind that `kernels.arguments` describes
    name, _ = choose_backend(q.device, backend)
    return import_module(_MODULES[name])


def _forward(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Tensor:  # noqa: ANN401 - as in the schema
    *rest, backend = flat
    output: Tensor = _module(q, backend).forward(q, k, v, _arguments(tuple(rest)))
    return output


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Tensor:  # noqa: ANN401
    return v.new_empty(v.shape)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    *rest, backend, wants_position, wants_time = flat
    arguments = _arguments(tuple(rest))
    gradients: Gradients = _module(q, backend).backward(grad, q, k, v, arguments, Wants(wants_position, wants_time))
    tables = (q.new_empty(0) if table is None else table for table in gradients[3:])
    return *gradients[:3], *tables


def _backward_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    _, position_weight, time_weight, *_, wants_position, wants_time = flat
    tables = (
        q.new_empty(table.shape if table is not None and wanted else 0)
        for table, wanted in ((position_weight, wants_position), (time_weight, wants_time))
    )
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *tables


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    *tensors, max_len, alpha, num_context, window, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.numbers = max_len, alpha, num_context, window, backend


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    wants = ctx.needs_input_grad[4], ctx.needs_input_grad[5]
    *gradients, position, time = torch.ops.hstuflow.attention_backward(grad, *ctx.saved_tensors, *ctx.numbers, *wants)
    tables = (table if wanted else None for table, wanted in zip((position, time), wants, strict=True))
    return *gradients, None, *tables, *[None] * 8


for _name, _run, _shapes in (
    ("attention", _forward, _forward_shapes),
    ("attention_backward", _backward, _backward_shapes),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hstuflow::{_name}", _shapes, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::attention", _differentiate, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("hstuflow::attention_backward", refuse_second_derivative, lib=_LIBRARY)
