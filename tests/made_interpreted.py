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

from kernels.choice import is_interpreted

TESTS = Path(__file__).parent
INTERPRETED_FILES = sorted(file.name for file in TESTS.glob("triton_*.py"))
DEVICE = "cpu" if is_interpreted() else "cuda"


def run_interpreted(file: str) -> None:
    """Run a file of interpreted tests; fail with its report unless all of them ran and passed."""
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
    assert done.returncode == 0 and re.fullmatch(r"\d+ passed in .*", last_line), done.stdout  # noqa: PT018
