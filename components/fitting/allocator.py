"""On a CPU, memory that a step frees stays with the process for the next step.

glibc maps every large buffer anew, and the kernel clears each page of it at its first touch; but a step allocates the
same buffers as the step before. Epochs of training (batch 16 on ML-100K, 128 on ML-1M; one core): a fifth and less of
the page faults, a quarter of the system time, 2 to 10% less CPU time; the peak of resident memory rises from 0.5 GB to
0.7 GB on ML-100K and hardly on ML-1M, and stays there from the second epoch on.
"""

from __future__ import annotations

import ctypes
import os

from components.console import log

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MOST_IDLE_BYTES = 256 << 20  # at the heap's end; without any limit training is no faster


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse large buffers instead of mapping each by itself; elsewhere nothing happens.

    It holds for the whole process and for good.
    """
    if not is_glibc():
        log.debug("this C library decides itself what it does with freed memory")
        return
    library = ctypes.CDLL(None)
    accepted = library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, _MOST_IDLE_BYTES)
    log.debug("freed memory is kept for the next step" if accepted else "mallopt refused to keep freed memory")


def is_glibc() -> bool:
    """Whether malloc is glibc's."""
    name = "CS_GNU_LIBC_VERSION"
    return name in getattr(os, "confstr_names", {}) and bool(os.confstr(name))
