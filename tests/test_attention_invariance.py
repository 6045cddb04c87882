"""What must not matter to hstu_attention, whatever the backend: other sequences, later rows, memory, threads."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from made_attention import (
    BACKENDS,
    MASKS,
    MIXED,
    PRECISION,
    assert_close,
    assert_equals_reference,
    lengths_for,
    make_problem,
    skip_unless_it_runs,
)

from kernels import RelativeBias, hstu_attention


@pytest.fixture(params=BACKENDS)
def backend(request):
    skip_unless_it_runs(request.param)
    return request.param


@pytest.mark.parametrize("name", PRECISION)
def test_the_position_table_is_read_from_past_to_present(name):
    """A table that is 1 for j = i - 1 only lets each row see just the row before it."""
    skip_unless_it_runs(name)
    dtype, _ = PRECISION[name]
    table = torch.zeros(9, dtype=dtype)
    table[5 - 1 - 1] = 1.0
    qk = torch.zeros(4, 1, 1, dtype=dtype)
    v = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=dtype)[:, None, None]
    bias = RelativeBias(table, None, None, None)
    output = hstu_attention(qk, qk, v, torch.tensor([0, 4]), max_len=5, bias=bias, backend=name)
    silu_of_one = 1 / (1 + torch.e**-1.0)
    expected = torch.tensor([0.0, 1.0, 10.0, 100.0], dtype=dtype) * silu_of_one / 5
    torch.testing.assert_close(output.flatten(), expected)


@pytest.mark.parametrize("name", PRECISION)
def test_the_time_bias_takes_the_next_time_of_the_row_and_the_time_of_the_key(name):
    """A table that is 1 for gaps of a day only lets row 1 (next event on day 2) see row 0 (day 1)."""
    skip_unless_it_runs(name)
    dtype, _ = PRECISION[name]
    table = torch.zeros(129, dtype=dtype)
    table[37] = 1.0
    qk = torch.zeros(2, 1, 1, dtype=dtype)
    v = torch.tensor([1.0, 10.0], dtype=dtype)[:, None, None]
    bias = RelativeBias(None, table, torch.tensor([86_400, 0]), torch.tensor([0, 2 * 86_400]))
    output = hstu_attention(qk, qk, v, torch.tensor([0, 2]), max_len=2, bias=bias, backend=name).flatten()
    silu_of_one = 1 / (1 + torch.e**-1.0)
    assert output.tolist() == pytest.approx([silu_of_one / 2, silu_of_one / 2])


@pytest.mark.parametrize("name", PRECISION)
@pytest.mark.parametrize("num_context", [0, 2])
def test_swapping_two_candidates_swaps_their_outputs_and_nothing_else(name, num_context):
    skip_unless_it_runs(name)
    dtype, tolerance = PRECISION[name]
    problem = make_problem([12], targets=True, num_context=num_context).to(dtype)
    request_time = problem.next_timestamps[8].expand(4)
    problem = replace(
        problem,
        num_targets=torch.tensor([4]),
        timestamps=torch.cat([problem.timestamps[:8], request_time]),
        next_timestamps=torch.cat([problem.next_timestamps[:8], request_time]),
    )
    swapped = [*range(8), 8, 11, 10, 9]
    before = problem.run(name)
    after = replace(problem, z=problem.z[swapped]).run(name)
    torch.testing.assert_close(after, before[swapped], rtol=tolerance, atol=tolerance)
    assert not torch.allclose(before[9], before[11])


def test_a_sequence_is_the_same_alone_and_beside_others(backend):
    dtype, _ = PRECISION[backend]
    problem = make_problem([40, 200, 3, 40, 0, 64], targets=True, window=30).to(dtype)
    together = problem.run(backend)
    bounds = problem.offsets.tolist()
    for b, rows in enumerate(slice(*pair) for pair in pairwise(bounds)):
        alone = replace(
            problem,
            z=problem.z[rows],
            offsets=torch.tensor([0, rows.stop - rows.start]),
            timestamps=problem.timestamps[rows],
            next_timestamps=problem.next_timestamps[rows],
            num_targets=problem.num_targets[b : b + 1],
        ).run(backend)
        torch.testing.assert_close(alone, together[rows], rtol=1e-12, atol=1e-14)


def test_a_nan_stays_within_its_sequence(backend):
    dtype, _ = PRECISION[backend]
    problem = make_problem([40, 38, 41]).to(dtype)
    z = problem.z.clone().requires_grad_()
    poison = torch.zeros_like(z)
    poison[45] = torch.nan
    output = replace(problem, z=z + poison).run(backend)
    output[torch.cat([torch.arange(40), torch.arange(78, 119)])].sum().backward()
    assert output[:40].isfinite().all()
    assert output[78:].isfinite().all()
    assert output[45:78].isnan().any()
    assert z.grad[:40].isfinite().all()
    assert z.grad[78:].isfinite().all()


def test_later_rows_change_nothing_before_them(backend):
    dtype, _ = PRECISION[backend]
    problem = make_problem([70]).to(dtype)
    z = problem.z.clone()
    z[50:] += 1.0
    changed = replace(problem, z=z).run(backend)
    torch.testing.assert_close(changed[:50], problem.run(backend)[:50], rtol=1e-12, atol=1e-14)


@pytest.fixture
def poisoned_memory():
    """New tensors that nothing was written to are NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mask", [MASKS[0], MASKS[-1]], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_what_memory_held_before_does_not_show(backend, mask):
    assert_equals_reference(make_problem(lengths_for(mask), widths=(2, 25, 16), **mask), backend)


@pytest.fixture
def set_num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", ["none", "position+time"])
def test_the_number_of_threads_changes_no_bit(set_num_threads, bias):
    skip_unless_it_runs("cpu")
    problem = make_problem(MIXED * 9, widths=(2, 16, 16), bias=bias).to(torch.float32)
    found = []
    for num_threads in (1, 3):
        set_num_threads(num_threads)
        found.append(problem.output_and_gradients("cpu"))
    assert_close(found[1], found[0], 0.0)
