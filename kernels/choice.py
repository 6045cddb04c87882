"""Which backend runs where, and why: one decision for attention and for the operators around it.

| backend   | what it is                                          | runs on                                            |
|-----------|-----------------------------------------------------|----------------------------------------------------|
| triton    | fused GPU kernels                                   | NVIDIA and AMD GPUs; any device when interpreted   |
| cpu       | fused C++, compiled at first use                    | CPU, where a C++ compiler is                       |
| torch     | batched matrix products over groups of like lengths | everywhere                                         |
| reference | the definition                                      | everywhere, one sequence at a time                 |
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kernels.cpu import library as cpu_library

Backend = Literal["reference", "torch", "cpu", "triton"]
BACKENDS = ("auto", "reference", "torch", "cpu", "triton")


def choose_backend(device: torch.device | str, backend: str = "auto") -> tuple[Backend, str]:
    """Return the backend that runs on `device` and, for the log, why.

    Raises:
        ValueError: the backend does not exist or does not run on this device.
    """
    kind = torch.device(device).type
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return _choose_for(kind)
    obstacle = _obstacle(cast("Backend", backend), kind)
    if obstacle:
        raise ValueError(f"backend {backend!r} does not run here: {obstacle}; auto takes {_choose_for(kind)[0]}")
    return cast("Backend", backend), "asked for"


def is_plain_call(x: Tensor) -> bool:
    """Whether a call with `x` is only to be computed: no gradient is wanted, and nobody records or imitates it.

    Whoever traces (torch.compile, export, make_fx, jit.trace, fake tensors) has to see the registered operators.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or _get_current_dispatch_mode() is not None
        or type(x) not in (Tensor, torch.nn.Parameter)
    )


def _choose_for(kind: str) -> tuple[Backend, str]:
    best: Backend = "cpu" if kind == "cpu" else "triton"
    obstacle = _obstacle(best, kind)
    if obstacle:
        return "torch", f"{obstacle}; plain torch instead, correct but slower"
    if best == "cpu":
        return best, f"the tensors are on the CPU: fused C++ for {cpu_library.capability()}"
    return best, f"the tensors are on {kind}: fused Triton kernels"


def _obstacle(backend: Backend, kind: str) -> str:
    """Return why `backend` does not run on devices of this kind; empty where it does."""
    if backend == "cpu":
        return cpu_library.obstacle() if kind == "cpu" else f"it takes CPU tensors, and these are on {kind}"
    if backend == "triton":
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if kind != "cuda" and not is_interpreted():
            return f"it needs an NVIDIA or AMD GPU, and the tensors are on {kind} (TRITON_INTERPRET=1 interprets it)"
    return ""


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, slowly and on any device, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
