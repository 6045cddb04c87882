"""hstu_attention: the reference against plain loops, the cpu path against the reference, and what must not matter."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from made_attention import attention_by_hand, make_problem

from kernels import RelativeBias, choose_backend, hstu_attention
from kernels.reference import attention_mask

MIXED = [33, 0, 211, 7, 64, 1, 200, 65, 12, 12, 0]
MASKS = [
    {"targets": targets, "num_context": num_context, "window": window}
    for targets, num_context, window in product([False, True], [0, 1, 4], [0, 1, 20])
]
BIASES = ["none", "position", "time", "position+time"]


def assert_close(found, expected, tolerance):
    """Every tensor within `tolerance` of the largest value of the expected one."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).abs().max() <= tolerance * tensor.abs().max(), name


def lengths_for(mask):
    """Every non-empty sequence holds the context."""
    return [max(n, mask["num_context"]) if n else 0 for n in MIXED]


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


# ---- the cpu backend against it


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("widths", [(1, 50, 50), (2, 25, 16), (8, 16, 25)], ids=str)
def test_cpu_equals_reference_forward_and_backward(widths, bias, mask):
    problem = make_problem(lengths_for(mask), widths=widths, bias=bias, alpha=0.7, **mask)
    assert_close(problem.output_and_gradients("torch"), problem.output_and_gradients("reference"), 1e-12)


@pytest.mark.parametrize("mask", [MASKS[0], MASKS[-1]], ids=str)
def test_cpu_in_float32_is_within_1e5_of_float64(mask):
    problem = make_problem(lengths_for(mask), widths=(2, 25, 25), **mask)
    expected = problem.output_and_gradients("reference")
    found = {name: t.double() for name, t in problem.to(torch.float32).output_and_gradients("torch").items()}
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_and_within_3_percent(backend, dtype):
    problem = make_problem([33, 70], widths=(2, 16, 16), targets=True)
    found = problem.to(dtype).output_and_gradients(backend)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_close({name: t.double() for name, t in found.items()}, problem.output_and_gradients("reference"), 0.03)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [64], [65], [128, 129]], ids=str)
def test_cpu_equals_reference_at_the_edges_of_its_tiles(lengths):
    problem = make_problem(lengths)
    expected = problem.output_and_gradients("reference")
    found = problem.output_and_gradients("torch")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("spread", [0, 40 * 365 * 86_400, 2**40])
def test_cpu_equals_reference_with_equal_far_apart_and_reversed_times(spread):
    problem = make_problem([70, 5])
    times = torch.arange(75).flip(0) * spread - 7 * spread
    problem = replace(problem, timestamps=times, next_timestamps=times + spread)
    assert_close(problem.output_and_gradients("torch"), problem.output_and_gradients("reference"), 1e-12)


def test_cpu_takes_contiguous_tensors_and_a_transposed_gradient():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(40, 2, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    offsets = torch.tensor([0, 30, 40])
    gradients = []
    for backend in ("reference", "torch"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        output = hstu_attention(*leaves, offsets, max_len=40, backend=backend)
        output.transpose(0, 2).pow(2).sum().backward()
        gradients.append({name: leaf.grad for name, leaf in zip("qkv", leaves, strict=True)})
    assert_close(gradients[1], gradients[0], 1e-12)


def test_cpu_gives_no_gradient_to_what_did_not_ask_for_one():
    problem = make_problem([20, 3])
    time_weight = problem.time_weight.clone().requires_grad_()
    replace(problem, time_weight=time_weight).run("torch").sum().backward()
    assert time_weight.grad.abs().sum() > 0
    assert problem.z.grad is None
    assert problem.position_weight.grad is None


def test_layers_that_share_timestamps_each_get_their_own_bias():
    problem = make_problem([90, 14])
    shared = RelativeBias(None, None, problem.timestamps, problem.next_timestamps)
    for factor in (1.0, -2.0):
        other = replace(
            problem, position_weight=problem.position_weight * factor, time_weight=problem.time_weight * factor
        )
        bias = shared.with_tables(other.position_weight, other.time_weight)
        found = hstu_attention(*other.qkv, other.offsets, max_len=211, bias=bias, backend="torch")
        torch.testing.assert_close(found, other.run("reference"), rtol=1e-11, atol=1e-13)


def test_a_kept_layout_is_not_used_for_another_batch():
    first, second = make_problem([30, 10], seed=1), make_problem([10, 30], seed=1)
    bias = RelativeBias(first.position_weight, first.time_weight, first.timestamps, first.next_timestamps)
    for problem in (first, second):
        found = hstu_attention(*problem.qkv, problem.offsets, max_len=211, bias=bias, backend="torch")
        torch.testing.assert_close(found, problem.run("reference"), rtol=1e-11, atol=1e-13)


def test_buckets_that_are_not_kept_give_the_same_result(monkeypatch):
    problem = make_problem([90, 14])
    kept = problem.output_and_gradients("torch")
    monkeypatch.setattr("kernels.hstu_cpu_bias._MAX_KEPT", 0)
    assert_close(problem.output_and_gradients("torch"), kept, 0.0)


# ---- what must not matter


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_position_table_is_read_from_past_to_present(backend):
    """A table that is 1 for j = i - 1 only lets each row see just the row before it."""
    table = torch.zeros(9, dtype=torch.float64)
    table[5 - 1 - 1] = 1.0
    qk = torch.zeros(4, 1, 1, dtype=torch.float64)
    v = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)[:, None, None]
    bias = RelativeBias(table, None, None, None)
    output = hstu_attention(qk, qk, v, torch.tensor([0, 4]), max_len=5, bias=bias, backend=backend)
    silu_of_one = 1 / (1 + torch.e**-1.0)
    expected = torch.tensor([0.0, 1.0, 10.0, 100.0], dtype=torch.float64) * silu_of_one / 5
    torch.testing.assert_close(output.flatten(), expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_time_bias_takes_the_next_time_of_the_row_and_the_time_of_the_key(backend):
    """A table that is 1 for gaps of a day only lets row 1 (next event on day 2) see row 0 (day 1)."""
    table = torch.zeros(129, dtype=torch.float64)
    table[37] = 1.0
    qk = torch.zeros(2, 1, 1, dtype=torch.float64)
    v = torch.tensor([1.0, 10.0], dtype=torch.float64)[:, None, None]
    bias = RelativeBias(None, table, torch.tensor([86_400, 0]), torch.tensor([0, 2 * 86_400]))
    output = hstu_attention(qk, qk, v, torch.tensor([0, 2]), max_len=2, bias=bias, backend=backend).flatten()
    silu_of_one = 1 / (1 + torch.e**-1.0)
    assert output.tolist() == pytest.approx([silu_of_one / 2, silu_of_one / 2])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("num_context", [0, 2])
def test_swapping_two_candidates_swaps_their_outputs_and_nothing_else(backend, num_context):
    problem = make_problem([12], targets=True, num_context=num_context)
    request_time = problem.next_timestamps[8].expand(4)
    problem = replace(
        problem,
        num_targets=torch.tensor([4]),
        timestamps=torch.cat([problem.timestamps[:8], request_time]),
        next_timestamps=torch.cat([problem.next_timestamps[:8], request_time]),
    )
    swapped = [*range(8), 8, 11, 10, 9]
    before = problem.run(backend)
    after = replace(problem, z=problem.z[swapped]).run(backend)
    torch.testing.assert_close(after, before[swapped])
    assert not torch.allclose(before[9], before[11])


def test_a_sequence_is_the_same_alone_and_beside_others():
    problem = make_problem([40, 200, 3, 40, 0, 64], targets=True, window=30)
    together = problem.run("torch")
    bounds = problem.offsets.tolist()
    for b, rows in enumerate(slice(*pair) for pair in pairwise(bounds)):
        alone = replace(
            problem,
            z=problem.z[rows],
            offsets=torch.tensor([0, rows.stop - rows.start]),
            timestamps=problem.timestamps[rows],
            next_timestamps=problem.next_timestamps[rows],
            num_targets=problem.num_targets[b : b + 1],
        ).run("torch")
        torch.testing.assert_close(alone, together[rows], rtol=1e-12, atol=1e-14)


def test_a_nan_stays_within_its_sequence():
    problem = make_problem([40, 38, 41])
    z = problem.z.clone().requires_grad_()
    poison = torch.zeros_like(z)
    poison[45] = torch.nan
    output = replace(problem, z=z + poison).run("torch")
    output[torch.cat([torch.arange(40), torch.arange(78, 119)])].sum().backward()
    assert output[:40].isfinite().all()
    assert output[78:].isfinite().all()
    assert output[45:78].isnan().any()
    assert z.grad[:40].isfinite().all()
    assert z.grad[78:].isfinite().all()


def test_later_rows_change_nothing_before_them():
    problem = make_problem([70])
    z = problem.z.clone()
    z[50:] += 1.0
    torch.testing.assert_close(replace(problem, z=z).run("torch")[:50], problem.run("torch")[:50], rtol=1e-12, atol=1e-14)


# ---- arguments


def test_auto_takes_the_cpu_path_on_a_cpu_and_says_why():
    name, reason = choose_backend("cpu", "auto")
    assert name == "torch"
    assert "CPU" in reason


def test_auto_takes_the_reference_on_a_gpu_and_says_why():
    name, reason = choose_backend(torch.device("cuda"), "auto")
    assert name == "reference"
    assert "cuda" in reason


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda", "triton", "next release.*auto, reference and cpu"),
        ("torch", "fast", "'fast'.*auto, reference, cpu"),
        ("cuda", "torch", "tensors on cuda"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(device, backend, message):
    with pytest.raises(ValueError, match=message):
        choose_backend(device, backend)


def bias_with(**changes):
    parts = {
        "position_weight": torch.zeros(9),
        "time_weight": torch.zeros(129),
        "timestamps": torch.zeros(4, dtype=torch.int64),
        "next_timestamps": torch.zeros(4, dtype=torch.int64),
    }
    return RelativeBias(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 2)}, r"q has shape \(4, 2\)"),
        ({"q": torch.zeros(4, 1, 2, dtype=torch.int64)}, "q is torch.int64"),
        ({"k": torch.zeros(4, 1, 2, dtype=torch.float64)}, "k is torch.float64"),
        ({"k": torch.zeros(4, 1, 3)}, "q, k, v have shapes"),
        ({"v": torch.zeros(5, 1, 2)}, "q, k, v have shapes"),
        ({"offsets": torch.tensor([0, 4], dtype=torch.int32)}, "offsets is torch.int32"),
        ({"offsets": torch.tensor([0, 3])}, "rise from 0 to L = 4"),
        ({"offsets": torch.tensor([1, 4])}, "rise from 0 to L = 4"),
        ({"offsets": torch.tensor([0, 5, 4])}, "rise from 0 to L = 4"),
        ({"max_len": 3}, "4 rows, more than max_len = 3"),
        ({"window": -1}, "window is -1"),
        ({"num_context": -1}, "num_context is -1"),
        ({"num_context": 5}, "shorter than its 5 context rows"),
        ({"num_targets": torch.tensor([1, 1])}, "num_targets is torch.int64"),
        ({"num_targets": torch.tensor([-1])}, "negative"),
        ({"num_targets": torch.tensor([3]), "num_context": 2}, "shorter than its 2 context rows and its targets"),
        ({"bias": bias_with(position_weight=torch.zeros(10))}, r"position_weight .* \(9,\)"),
        ({"bias": bias_with(time_weight=torch.zeros(128))}, r"time_weight .* \(129,\)"),
        ({"bias": bias_with(time_weight=torch.zeros(129, dtype=torch.float64))}, "time_weight is torch.float64"),
        ({"bias": bias_with(timestamps=None)}, "without timestamps"),
        ({"bias": bias_with(next_timestamps=torch.zeros(4))}, "next_timestamps is torch.float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    arguments = {
        "q": torch.zeros(4, 1, 2),
        "k": torch.zeros(4, 1, 2),
        "v": torch.zeros(4, 1, 2),
        "offsets": torch.tensor([0, 4]),
        "max_len": 5,
    }
    with pytest.raises(ValueError, match=message):
        hstu_attention(**(arguments | changes))
