"""Large buffers are reused, which the kernel's count of page faults shows."""

import subprocess
import sys
from pathlib import Path

import pytest

from components.fitting import allocator

ROOT = Path(__file__).parent.parent
BYTES = 64 << 20  # above 32 MB glibc always maps a buffer by itself

PROGRAM = f"""
import ctypes, resource, sys
from components.fitting.allocator import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def use_and_free():
    buffer = library.malloc({BYTES})
    ctypes.memset(buffer, 1, {BYTES})
    library.free(buffer)

def count_faults(function):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_and_free()
mapped_anew = count_faults(use_and_free)
keep_freed_memory()
use_and_free()
print(mapped_anew, count_faults(use_and_free))
"""


@pytest.mark.skipif(not allocator.is_glibc(), reason="the C library is not glibc")
def test_a_large_buffer_is_mapped_once_only():
    """In a process of its own: the setting cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10 * after
    assert before >= 32  # pages of at most 2 MB


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.os, "confstr_names", {})
    loaded = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", loaded.append)
    allocator.keep_freed_memory()
    assert not loaded
