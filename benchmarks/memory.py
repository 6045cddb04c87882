"""How much memory a run takes on top of its inputs, and one allocator setting for all versions.

On a CPU each run has a process of its own, forked from a clean one: memory that an earlier version freed would hide
what the next one takes. `prepare` runs a small case first, so that code and tables loaded at first use do not count.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from components.fitting.allocator import is_glibc, keep_freed_memory

_CHILD = multiprocessing.get_context("forkserver")
# Torch is imported once; and what backward(gradient) imports, sympy among it, is nobody's memory: 3 s, over 30 MB.
_CHILD.set_forkserver_preload(["torch.fx.experimental.symbolic_shapes", "benchmarks.baselines"])


def settle_allocator(device: torch.device) -> str:
    """Set this process's allocator as training does, for all versions alike; return what it is, for the record."""
    if device.type == "cuda":
        return "torch's, cached"
    keep_freed_memory()
    return "glibc, freed memory kept" if is_glibc() else "the system's"


def peak_host_bytes(prepare: Callable[..., Callable[[], None]], *args: Any) -> int:  # noqa: ANN401
    """Return by how much resident memory grows at most in what `prepare(*args)` returned, run with one thread.

    Raises:
        OSError: the system is not Linux.
    """
    with ProcessPoolExecutor(1, mp_context=_CHILD) as pool:
        return pool.submit(_grow, prepare, *args).result()


def _grow(prepare: Callable[..., Callable[[], None]], *args: Any) -> int:  # noqa: ANN401
    torch.set_num_threads(1)
    run = prepare(*args)
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)  # what `prepare` freed
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def peak_device_bytes(run: Callable[[], None]) -> int:
    """Return the most GPU memory held at a time during `run`, less what was held before; run it once before that."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
