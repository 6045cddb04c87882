"""hstu_attention: the reference against plain loops, and the backends against the reference."""

from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_attention import (
    BACKENDS,
    MASKS,
    MIXED,
    PRECISION,
    YEAR,
    assert_close,
    assert_equals_reference,
    attention_by_hand,
    lengths_for,
    make_problem,
    skip_unless_it_runs,
)

from kernels import RelativeBias, hstu_attention
from kernels.reference import attention_mask
from kernels.time_buckets import TIME_THRESHOLDS, time_buckets

BIASES = ["none", "position", "time", "position+time"]
WIDTHS = [(1, 50, 50), (2, 25, 16), (8, 16, 25)]  # H, Dqk, Dv
SEEDS = st.integers(0, 2**31)


@pytest.fixture(params=BACKENDS)
def backend(request):
    skip_unless_it_runs(request.param)
    return request.param


# ---- the definition


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("bias", BIASES)
def test_reference_is_the_formula_written_as_loops(mask, bias):
    problem = make_problem(
        [9, 0, 6, 1 if not mask["num_context"] else 4], widths=(2, 3, 2), bias=bias, max_len=9, **mask
    )
    torch.testing.assert_close(problem.run("reference"), attention_by_hand(problem), rtol=1e-12, atol=1e-14)


def test_reference_gradients_agree_with_finite_differences():
    problem = make_problem([4, 0, 3], widths=(2, 3, 2), max_len=5, alpha=0.7, targets=True, num_context=1)

    def run(z, position_weight, time_weight):
        return replace(problem, z=z, position_weight=position_weight, time_weight=time_weight).run("reference")

    leaves = [t.clone().requires_grad_() for t in (problem.z, problem.position_weight, problem.time_weight)]
    assert torch.autograd.gradcheck(run, leaves)


def test_mask_with_context_and_targets_as_drawn():
    drawn = """
        xxxx..
        xxxx..
        xxx...
        xxxx..
        xxxxx.
        xxxx.x
    """
    expected = torch.tensor([[cell == "x" for cell in row] for row in drawn.split()])
    assert torch.equal(attention_mask(6, 2, 2, 0), expected)


def test_a_window_of_w_leaves_w_rows_before_the_row_itself():
    mask = attention_mask(7, 0, 0, 3)
    assert mask.sum(1).tolist() == [1, 2, 3, 4, 4, 4, 4]


# ---- the backends against it


@pytest.mark.parametrize(
    ("widths", "bias", "mask"),
    [(widths, *case) for widths, case in zip(cycle(WIDTHS), product(BIASES, MASKS), strict=False)],
    ids=str,
)
def test_outputs_and_gradients_equal_the_reference(backend, widths, bias, mask):
    assert_equals_reference(make_problem(lengths_for(mask), widths=widths, bias=bias, alpha=0.7, **mask), backend)


@pytest.mark.parametrize("widths", [(1, 1, 1), (1, 16, 16), (1, 32, 48), (4, 64, 64), (1, 17, 100)], ids=str)
def test_heads_of_any_width_equal_the_reference(backend, widths):
    assert_equals_reference(make_problem(MIXED, widths=widths), backend)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [16], [64], [65], [128, 129], [1] * 70], ids=str)
def test_lengths_at_the_edges_of_tiles_equal_the_reference(backend, lengths):
    assert_equals_reference(make_problem(lengths), backend)


@pytest.mark.parametrize("num_context", [64, 70, 130])
@pytest.mark.parametrize("window", [0, 20])
def test_context_longer_than_a_tile_equals_the_reference(backend, num_context, window):
    lengths = [211, 0, num_context, num_context + 1, 150]
    assert_equals_reference(make_problem(lengths, targets=True, num_context=num_context, window=window), backend)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_arguments_equal_the_reference(data):
    num_context, window = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 90))
    lengths = data.draw(st.lists(st.integers(max(num_context, 1), 211) | st.just(0), max_size=5))
    widths = tuple(data.draw(st.integers(1, most)) for most in (3, 40, 40))
    bias, targets = data.draw(st.sampled_from(BIASES)), data.draw(st.booleans())
    problem = make_problem(
        lengths,
        widths=widths,
        bias=bias,
        targets=targets,
        num_context=num_context,
        window=window,
        seed=data.draw(SEEDS),
    )
    for backend in BACKENDS:
        skip_unless_it_runs(backend)
        assert_equals_reference(problem, backend)


def sorted_times(num_rows):
    """Bursts of seconds, days and years, ties within the bursts."""
    generator = torch.Generator().manual_seed(3)
    steps = torch.tensor([0, 0, 7, 7, 7, 60, 86_400, YEAR])[torch.randint(8, (num_rows + 1,), generator=generator)]
    return steps.cumsum(0)


@pytest.mark.parametrize(
    "times",
    [
        torch.zeros(216, dtype=torch.int64),
        torch.arange(216),
        torch.arange(216).flip(0) * 40 * YEAR,
        torch.arange(216) * 2**40 - 2**45,
        sorted_times(215),
        sorted_times(215).flip(0),
    ],
    ids=["equal", "seconds", "reversed", "beyond 32 bits", "bursts", "reversed bursts"],
)
def test_equal_sorted_reversed_and_far_apart_times_equal_the_reference(backend, times):
    problem = replace(make_problem([200, 5, 10]), timestamps=times[:-1], next_timestamps=times[1:])
    assert_equals_reference(problem, backend)


def test_a_row_between_times_half_a_century_apart_equals_the_reference(backend):
    """One missing date is enough: 0, 1995 and 2020. The first row sees its own time, which is far from the newest."""
    problem = replace(
        make_problem([3], bias="time", max_len=3),
        timestamps=torch.tensor([0, 790_000_000, 1_580_000_000]),
        next_timestamps=torch.tensor([790_000_000, 1_580_000_000, 1_580_000_060]),
    )
    assert_equals_reference(problem, backend)


def test_each_time_bucket_begins_at_its_threshold(backend):
    """Row 0 sees itself only: with one sequence per gap, each output shows its own entry of the table."""
    gaps = torch.tensor([gap for threshold in TIME_THRESHOLDS for gap in (threshold - 1, threshold)])
    zeros, ones = torch.zeros(len(gaps), 1, 1), torch.ones(len(gaps), 1, 1)
    bias = RelativeBias(None, torch.arange(129.0), torch.zeros_like(gaps), gaps)
    output = hstu_attention(
        zeros, zeros, ones, torch.arange(len(gaps) + 1), max_len=1, bias=bias, backend=backend
    ).flatten()
    torch.testing.assert_close(output, torch.nn.functional.silu(time_buckets(gaps).float()))


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_large_scores_equal_the_reference(backend, size):
    problem = make_problem([70, 5], widths=(2, 16, 16))
    assert_equals_reference(replace(problem, z=problem.z * size), backend)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_within_3_percent(backend, dtype):
    skip_unless_it_runs(backend)
    problem = make_problem([33, 70], widths=(2, 16, 16), targets=True)
    found = problem.to(dtype).output_and_gradients(backend)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_close({name: t.double() for name, t in found.items()}, problem.output_and_gradients("reference"), 0.03)


def test_float64_stays_exact(backend):
    problem = make_problem([33, 70], targets=True)
    assert_close(problem.output_and_gradients(backend), problem.output_and_gradients("reference"), 1e-12)


def test_strided_tensors_and_a_transposed_gradient_equal_the_reference(backend):
    """Heads before rows, every second value, one row for all, and values of the gradient far apart."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 40, 8), (40, 2, 16), (1, 2, 9), (9, 2, 40)]
    made = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    gradients = {}
    for name, dtype in (("reference", torch.float64), (backend, PRECISION[backend][0])):
        q, k, v, grad = (x.to(dtype) for x in made)
        leaves = [x.requires_grad_() for x in (q.transpose(0, 1), k[:, :, ::2], v.expand(40, 2, 9))]
        output = hstu_attention(*leaves, torch.tensor([0, 30, 40]), max_len=40, backend=name)
        output.backward(grad.transpose(0, 2))
        gradients[name] = {name: leaf.grad.double() for name, leaf in zip("qkv", leaves, strict=True)}
    assert_close(gradients[backend], gradients["reference"], PRECISION[backend][1])


def test_what_did_not_ask_for_a_gradient_gets_none(backend):
    problem = make_problem([20, 3])
    time_weight = problem.time_weight.clone().requires_grad_()
    replace(problem, time_weight=time_weight).run(backend).sum().backward()
    assert time_weight.grad.abs().sum() > 0
    assert problem.z.grad is None
    assert problem.position_weight.grad is None


@pytest.mark.parametrize("name", ["position_weight", "time_weight"])
def test_the_gradient_of_one_table_alone_is_the_same(backend, name):
    problem = make_problem([90, 14], widths=(2, 8, 8)).to(torch.float32)
    table = getattr(problem, name).clone().requires_grad_()
    output = replace(problem, **{name: table}).run(backend)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    output.backward(grad.to(output.dtype))
    assert torch.equal(table.grad, problem.output_and_gradients(backend)[f"grad of {name}"])


def test_layers_that_share_timestamps_each_get_their_own_bias(backend):
    dtype, tolerance = PRECISION[backend]
    problem = make_problem([90, 14])
    shared = RelativeBias(None, None, problem.timestamps, problem.next_timestamps)
    for factor in (1.0, -2.0):
        other = replace(
            problem, position_weight=problem.position_weight * factor, time_weight=problem.time_weight * factor
        )
        single = other.to(dtype)
        bias = shared.with_tables(single.position_weight, single.time_weight)
        found = hstu_attention(*single.qkv, other.offsets, max_len=211, bias=bias, backend=backend)
        assert_close({"output": found.double()}, {"output": other.run("reference")}, tolerance)


def test_nothing_of_a_batch_is_used_for_another_one(backend):
    for lengths in ([30, 10], [10, 30]):
        assert_equals_reference(make_problem(lengths, seed=1), backend)


def test_buckets_that_are_not_kept_give_the_same_result(monkeypatch):
    problem = make_problem([90, 14])
    kept = problem.output_and_gradients("torch")
    monkeypatch.setattr("kernels.hstu_torch_bias._MAX_KEPT", 0)
    assert_close(problem.output_and_gradients("torch"), kept, 0.0)


def test_max_len_alone_costs_no_memory():
    """The divisor of a model without bias may be far above what it ever sees."""
    skip_unless_it_runs("cpu")
    problem = make_problem([5] * 64, bias="none", max_len=10**12).to(torch.float32)
    assert_close(problem.output_and_gradients("cpu"), problem.output_and_gradients("torch"), 1e-5)


@pytest.mark.parametrize("changed", [[0, 40, 30], [0, -5, 30], [3, 10, 30], [0, 10, 29], [0, 30, 30]], ids=str)
def test_offsets_changed_behind_the_back_of_torch_read_no_memory_of_others(changed):
    """numpy's writes are not counted as changes, so the batch is not checked again; the last is just too long."""
    skip_unless_it_runs("cpu")
    offsets = np.array([0, 10, 30])
    problem = replace(make_problem([10, 20], max_len=25).to(torch.float32), offsets=torch.from_numpy(offsets))
    problem.run("cpu")
    offsets[:] = changed
    with pytest.raises(ValueError, match="do not fit q"):
        problem.run("cpu")


def test_times_further_apart_than_int64_tells_still_take_an_entry_of_the_table():
    skip_unless_it_runs("cpu")
    most = 2**63 - 1
    problem = make_problem([20, 20], bias="time").to(torch.float32)
    for time, next_time in ((-1, most), (-most - 1, 0), (-most - 1, most), (0, most)):
        times = torch.full((40,), time), torch.full((40,), next_time)
        times[0][::3] = 0
        found = replace(problem, timestamps=times[0], next_timestamps=times[1]).output_and_gradients("cpu")
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert found["output"].abs().max() <= 100
