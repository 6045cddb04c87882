"""Tests of GPU kernels, run by Triton's interpreter: files tests/triton_*.py, each in a process of its own.

Triton decides at the import of a kernel whether it is interpreted or compiled, and the suite's own process compiles
(tests/test_triton_compiled.py). `make test` runs them through tests/test_triton_interpreted.py; by hand, or on a GPU:

    TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/triton_gated_norm.py -k dropout
    .venv/bin/python -m pytest tests/triton_gated_norm.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from kernels.choice import is_interpreted

TESTS = Path(__file__).parent
INTERPRETED_FILES = sorted(file.name for file in TESTS.glob("triton_*.py"))
DEVICE = "cpu" if is_interpreted() else "cuda"


def run_interpreted(file: str) -> int:
    """Run a file of interpreted tests, return how many; fail with its report unless all of them ran and passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", str(TESTS / file)],
        cwd=TESTS.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    last_line = done.stdout.strip().rsplit("\n", 1)[-1]
    # Neither skipped nor deselected nor expected to fail: an interpreter takes any kernel.
    passed = re.fullmatch(r"(\d+) passed in .*", last_line)
    assert done.returncode == 0 and passed, done.stdout  # noqa: PT018
    return int(passed[1])


def refuse_foreign_addresses(monkeypatch):
    """Make interpreted kernels fail where they load or store outside of the tensors they were launched with.

    A GPU faults only where the page is nobody's, and the interpreter hardly ever.
    """
    owned: list[tuple[int, int]] = []  # first address, and the one past the last
    prepare = GridExecutor._init_args_hst
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def prepared(self, arguments, options):
        owned[:] = _extents((arguments, *options.values()))
        return prepare(self, arguments, options)

    def check(pointers, mask):
        places = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.dtype.scalar.element_ty.primitive_bitwidth // 8
        inside = np.zeros(places.shape, dtype=bool)
        for first, end in owned:
            inside |= (first <= places) & (places + size <= end)
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} addresses lie in none of the kernel's tensors")

    def checked_load(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, values, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, values, mask, *rest)

    monkeypatch.setattr(GridExecutor, "_init_args_hst", prepared)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)


def _extents(argument):
    """Return (first address, the one past the last) of each tensor in nested tuples; they are on the CPU."""
    if isinstance(argument, tuple | list):
        return [extent for member in argument for extent in _extents(member)]
    if not isinstance(argument, torch.Tensor) or argument.numel() == 0:
        return []
    last = sum((size - 1) * stride for size, stride in zip(argument.shape, argument.stride(), strict=True))
    return [(argument.data_ptr(), argument.data_ptr() + (last + 1) * argument.itemsize)]
