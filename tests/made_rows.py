"""What the tests of the row-wise operators share: backends, seeded tensors, thread counts."""

import pytest
import torch

from kernels import choose_backend

_NAME, _REASON = choose_backend("cpu")
needs_cpp = pytest.mark.skipif(_NAME != "cpu", reason=_REASON)
BACKENDS = ["torch", pytest.param("cpu", marks=needs_cpp)]


def normal(*shape, seed=0):
    """Return float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_threads_change_nothing(run):
    """`run` returns tensors; several threads start from 2,048 rows on."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))
