"""The C++ operators: compiled at first use, kept for the next process, loaded as a plain C library.

    library = cpu_library.load()              # a ctypes.CDLL; call obstacle() first
    library.hstu_attention_forward(pointer(q), ...)

The library knows nothing of PyTorch: functions take pointers, strides and sizes. So it needs no headers of torch or
Python and compiles in seconds, and one binary serves every version of both. It is kept under the user's cache folder
($XDG_CACHE_HOME or ~/.cache)/hstuflow, named by a hash of the sources, the compiler and the vector instructions.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))
_FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=fast"]
# The instruction sets that torch distinguishes. Not -march=native: a cache folder may be shared between machines.
_INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2", "-mfma"],
}


class _UnavailableError(Exception):
    """Why there is no library on this machine."""


def capability() -> str:
    """Return the vector instructions that torch found: AVX512, AVX2, DEFAULT, ..."""
    return torch.backends.cpu.get_cpu_capability()


def obstacle() -> str:
    """Return why the library is not to be had, with what to do about it; empty where it is."""
    return _attempt()[1]


def load() -> ctypes.CDLL:
    """Return the library, compiling it where needed.

    Raises:
        RuntimeError: it is not to be had here.
    """
    library, reason = _attempt()
    if library is None:
        raise RuntimeError(reason)
    return library


def empty_float32(*shape: int) -> Tensor:
    """Return float32 on the CPU for C++ to write to, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's first element, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@cache
def _attempt() -> tuple[ctypes.CDLL | None, str]:
    try:
        return ctypes.CDLL(str(_built())), ""
    except (_UnavailableError, OSError) as error:
        log.warning("no fused CPU kernels: %s", error)
        return None, str(error)


def _built() -> Path:
    """Return the compiled library, from the cache where it is there."""
    compiler = _compiler()
    flags = _FLAGS + next((flags for name, flags in _INSTRUCTIONS.items() if capability().startswith(name)), [])
    name = f"{_fingerprint(compiler, flags)}.so"
    try:
        path = _cache_folder() / name
        if not path.exists():
            started = time.monotonic()
            log.info("compiling the fused CPU kernels, once for this machine")
            _compile([*compiler, *flags], path)
            log.info("compiled in %.0f s, kept as %s", time.monotonic() - started, path)
    except OSError as error:
        message = f"the cache folder cannot be written: {error} (name another one in XDG_CACHE_HOME)"
        raise _UnavailableError(message) from error
    return path


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        try:
            return shlex.split(os.environ["CXX"])
        except ValueError as error:
            raise _UnavailableError(f"CXX is {os.environ['CXX']!r}, and that is no command: {error}") from error
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise _UnavailableError("no C++ compiler found (install g++, or name one in CXX)")


def _fingerprint(compiler: list[str], flags: list[str]) -> str:
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise _UnavailableError(f"the C++ compiler does not run: {error}") from error
    digest = hashlib.sha256("\0".join([platform.machine(), *compiler, *flags]).encode() + version)
    for file in [*_SOURCES, *_HEADERS]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hstuflow"
    except RuntimeError as error:  # a user without a home folder
        raise _UnavailableError(f"no place to keep the library: {error} (name one in XDG_CACHE_HOME)") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid not in (os.getuid(), 0) or facts.st_mode & stat.S_IWOTH:  # what lies there is executed
        raise _UnavailableError(f"other users can write to {folder} (name another folder in XDG_CACHE_HOME)")
    return folder


def _compile(command: list[str], path: Path) -> None:
    """Write to a name of its own, then rename: processes that compile at the same time do not disturb one another."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as folder:
        output = Path(folder) / path.name
        done = subprocess.run([*command, *map(str, _SOURCES), "-o", str(output)], capture_output=True)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-2000:]
            raise _UnavailableError(f"the C++ compiler failed ({shlex.join(command)}):\n{said}")
        output.replace(path)
