"""The Triton kernels of attention against the reference in float64. How to run: made_interpreted.py."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from made_attention import YEAR, make_problem
from made_interpreted import DEVICE, refuse_foreign_addresses

from kernels import RelativeBias, hstu_attention, hstu_triton
from kernels.gpu.bias import bucket_of
from kernels.gpu.tile_shapes import TileShape
from kernels.gpu.tiles import Batch, columns_seen, load_sequence, rows_seeing, visited_tile
from kernels.reference import attention_mask
from kernels.time_buckets import TIME_THRESHOLDS, time_buckets

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _fresh_tensors_hold_nan(monkeypatch):
    """What a kernel does not write is seen."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*arguments, **options):
        tensor = new_empty(*arguments, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture(autouse=True)
def _only_the_arguments_are_read_and_written(monkeypatch):
    refuse_foreign_addresses(monkeypatch)


@pytest.fixture
def with_tiles(monkeypatch):
    """Return a function that makes the kernels use tiles of M queries and N keys."""

    def use(block_m, block_n):
        def shape(family, kernel, width, itemsize, *, has_bias, in_16_bytes):
            return TileShape(block_m, block_m if kernel == "bias" else block_n, 4, 2)

        monkeypatch.setattr(hstu_triton, "tile_shape", shape)

    return use


def to_device(problem):
    tensors = {name: value.to(DEVICE) for name, value in vars(problem).items() if isinstance(value, torch.Tensor)}
    return replace(problem, **tensors)


def with_times(problem, step):
    """A log as it is: sorted, ties, sessions `step` seconds apart; row i takes the time of row i + 1."""
    num_rows = len(problem.timestamps)
    session = torch.arange(num_rows + 1) // 9
    times = session * step + torch.arange(num_rows + 1) % 9 // 3 * 20
    return replace(problem, timestamps=times[:-1], next_timestamps=times[1:])


def found(problem):
    return {name: tensor.double().cpu() for name, tensor in to_device(problem).output_and_gradients("triton").items()}


def largest_errors(found, expected):
    """Return, for each tensor, the largest error as a share of the largest value."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert found[name].isfinite().all(), name
        errors[name] = float((found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-30))
    return errors


def assert_equals_reference(problem, tolerance=1e-5):
    errors = largest_errors(found(problem.to(FLOAT32)), problem.output_and_gradients("reference"))
    assert max(errors.values()) <= tolerance, errors


# ---- which tiles are visited


@triton.jit
def _visit_kernel(
    offsets, num_targets, num_context, window, tile, out, M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr
):
    """Write how often each tile is visited: with a mask into out[x], without one into out[256 + x]."""
    sequence = load_sequence(Batch(offsets, num_targets, None, num_context, window), 0)
    visits = rows_seeing(tile, sequence, M, N) if ROWS else columns_seen(tile, sequence, M, N)
    for x in range(visits.num_tiles):
        visited, is_whole = visited_tile(visits, x)
        place = out + tl.where(is_whole, 256, 0) + visited
        tl.store(place, tl.load(place) + 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_visited_tiles_hold_every_visible_pair_once_and_whole_ones_nothing_else(data):
    n = data.draw(st.integers(1, 100))
    num_context = data.draw(st.sampled_from([0, 0, 1, 5, 40]).filter(lambda c: c <= n))
    num_targets = data.draw(st.sampled_from([0, 1, 3, 50]).filter(lambda t: t + num_context <= n))
    window = data.draw(st.sampled_from([0, 1, 20, 70]))
    block_m, block_n = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16), (64, 16), (16, 64)]))
    holds_keys = data.draw(st.booleans())
    mask = attention_mask(n, num_targets, num_context, window)
    held, streamed = (block_n, block_m) if holds_keys else (block_m, block_n)
    mask = mask.T if holds_keys else mask  # rows are held, columns streamed
    for tile, rows in enumerate(mask.split(held)):
        visits = torch.zeros(512, dtype=torch.int32, device=DEVICE)
        offsets, targets = torch.tensor([0, n], device=DEVICE), torch.tensor([num_targets], device=DEVICE)
        _visit_kernel[(1,)](offsets, targets, num_context, window or n, tile, visits, block_m, block_n, holds_keys)
        masked, whole = visits.view(2, 256).cpu()
        for x, columns in enumerate(rows.split(streamed, dim=1)):
            if columns.any():
                assert masked[x] + whole[x] == 1
            if whole[x]:
                assert columns.all()
        num_tiles = -(-n // streamed)
        assert masked[num_tiles:].sum() + whole[num_tiles:].sum() == 0


# ---- time buckets


@triton.jit
def _bucket_kernel(gaps, thresholds, out, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + place, bucket_of(tl.load(gaps + place), thresholds))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_buckets_agree_to_the_second(dtype):
    limit = 2**31 - 1 if dtype == torch.int32 else 2**62
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([t + d for t in TIME_THRESHOLDS for d in (-1, 0, 1)])
    spread = (2.0 ** (torch.rand(6000, generator=generator, dtype=torch.float64) * 62)).long()
    gaps = torch.cat([torch.arange(1000), near, spread, torch.tensor([limit - 1])])
    gaps = gaps[gaps < limit]
    gaps = torch.cat([gaps, gaps.new_zeros(-len(gaps) % 1024)]).to(DEVICE)
    thresholds = torch.tensor([0, *TIME_THRESHOLDS], device=DEVICE).clamp(max=limit).to(dtype)
    out = torch.empty_like(gaps)
    _bucket_kernel[len(gaps) // 1024,](gaps.to(dtype), thresholds, out, 1024)
    assert torch.equal(out, time_buckets(gaps))


# ---- against the reference


CASES = {  # pairs of mask, bias, widths and tile; lengths are odd, empty, whole tiles, and longer than one
    "plain": {"lengths": [33, 0, 200], "bias": "none", "widths": (1, 50, 50)},
    "position": {"lengths": [100, 7, 0, 65], "bias": "position", "widths": (2, 25, 16), "tile": (32, 64)},
    "time": {"lengths": [150, 1, 64], "bias": "time", "widths": (1, 16, 32), "tile": (64, 32)},
    "both": {"lengths": [211, 0, 33], "widths": (1, 32, 25), "tile": (128, 32)},
    "heads": {"lengths": [40, 9], "widths": (8, 16, 16), "targets": True},
    "targets": {"lengths": [0, 130, 33, 7], "widths": (1, 64, 64), "targets": True},
    "many targets": {"lengths": [0, 120, 50], "counts": [3, 90, 50], "widths": (1, 25, 16), "tile": (32, 32)},
    "context": {"lengths": [100, 0, 64, 5], "bias": "position", "widths": (1, 16, 50), "num_context": 5},
    "much context": {"lengths": [100, 75], "widths": (1, 25, 25), "num_context": 70},
    "much context, window": {"lengths": [150, 75], "num_context": 70, "window": 20, "tile": (32, 32)},
    "window": {"lengths": [150, 7], "bias": "position", "widths": (1, 50, 25), "window": 20, "tile": (32, 32)},
    "window of one": {"lengths": [65, 0, 90], "bias": "time", "widths": (2, 16, 16), "window": 1},
    "context, window": {"lengths": [150, 64], "bias": "none", "num_context": 3, "window": 30, "tile": (32, 64)},
    "targets, context": {"lengths": [9, 100], "widths": (1, 32, 16), "targets": True, "num_context": 4},
    "targets, window": {"lengths": [30, 130], "counts": [3, 70], "window": 25, "tile": (64, 32)},
    "all": {"lengths": [12, 100], "counts": [5, 40], "num_context": 3, "window": 40, "tile": (32, 32)},
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_the_reference(name, with_tiles):
    case = dict(CASES[name])
    with_tiles(*case.pop("tile", (64, 64)))
    counts = case.pop("counts", None)
    problem = with_times(make_problem(case.pop("lengths"), alpha=0.7, **case), step=50)
    if counts:
        problem = replace(problem, num_targets=torch.tensor(counts))
    assert_equals_reference(problem)


@pytest.mark.parametrize("step", [0, YEAR // 3, 2**33], ids=["equal", "years", "beyond int32"])
def test_output_and_gradients_with_times(step):
    assert_equals_reference(with_times(make_problem([100, 20], targets=True), step))


def test_output_and_gradients_with_unsorted_times():
    assert_equals_reference(make_problem([66, 9], targets=True))


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [64, 64]], ids=str)
def test_output_and_gradients_at_the_edges(lengths):
    problem = make_problem(lengths, targets=True)
    if lengths in ([], [0, 0]):
        results = found(problem.to(FLOAT32))
        assert results["output"].shape == (0, 1, 16)
        assert not any(tensor.any() for tensor in results.values())
    else:
        assert_equals_reference(problem)


def test_sequences_as_long_as_the_model_takes():
    assert_equals_reference(make_problem([5, 70], targets=True, max_len=70))


def test_the_widest_window_in_int32():
    assert_equals_reference(make_problem([70, 20], targets=True, window=2**31 - 1))


@pytest.mark.parametrize("strides", [(16, 2**30), (2**26, 16)], ids=["heads", "rows"])
def test_heads_and_rows_beyond_2_31_elements_are_found(strides):
    x = torch.randn(40, 3, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    num_elements = 39 * strides[0] + 2 * strides[1] + 16
    storage = torch.UntypedStorage(4 * num_elements, device=DEVICE)  # gigabytes of addresses, hardly any touched
    far = torch.tensor([], device=DEVICE).set_(storage, 0, x.shape, (*strides, 1)).copy_(x)
    offsets = torch.tensor([0, 40], device=DEVICE)
    expected = hstu_attention(x, x, x, offsets, max_len=40, backend="triton")
    assert torch.equal(hstu_attention(far, x, x, offsets, max_len=40, backend="triton"), expected)


@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float64), (300, FLOAT32)])
def test_what_the_kernels_do_not_take_goes_to_torch(width, dtype):
    problem = make_problem([40, 3], widths=(1, 16, width), targets=True)
    errors = largest_errors(found(problem.to(dtype)), problem.output_and_gradients("reference"))
    assert max(errors.values()) <= (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_half_precision_is_about_as_exact_as_torch(dtype):
    """Against the float64 result of the rounded inputs, as torch is when it computes in the same dtype."""
    problem = with_times(make_problem([100, 33], widths=(2, 32, 32), targets=True), step=50).to(dtype)
    exact = problem.to(torch.float64).output_and_gradients("reference")
    torch_errors = largest_errors(
        {name: tensor.double() for name, tensor in problem.output_and_gradients("reference").items()}, exact
    )
    for name, error in largest_errors(found(problem), exact).items():
        assert error <= (2 if name == "output" else 5) * torch_errors[name] + 1e-7, (name, error, torch_errors[name])


# ---- what must not matter


def test_two_runs_are_bit_identical():
    problem = to_device(with_times(make_problem([100, 70], targets=True), step=50).to(FLOAT32))
    first, second = (problem.output_and_gradients("triton") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_rows_of_any_stride_and_a_transposed_gradient():
    generator = torch.Generator().manual_seed(1)
    wide = [torch.randn(2, 8, 40, dtype=torch.float64, generator=generator) for _ in range(3)]
    gradients = []
    for backend, dtype in (("reference", torch.float64), ("triton", FLOAT32)):
        leaves = [x.to(DEVICE, dtype, copy=True).requires_grad_() for x in wide]
        q, k, v = (x.permute(2, 0, 1) for x in leaves)  # the last dimension is not contiguous
        output = hstu_attention(q, k, v, torch.tensor([0, 30, 40], device=DEVICE), max_len=40, backend=backend)
        output.transpose(0, 2).pow(2).sum().backward()
        gradients.append({name: leaf.grad.double().cpu() for name, leaf in zip("qkv", leaves, strict=True)})
    assert max(largest_errors(gradients[1], gradients[0]).values()) <= 1e-5


@pytest.mark.parametrize("wanted", ["position_weight", "time_weight"])
def test_a_table_alone_may_want_a_gradient(wanted):
    problem = with_times(make_problem([70, 3], targets=True), step=50)
    expected = problem.output_and_gradients("reference")[f"grad of {wanted}"]
    problem = to_device(problem.to(FLOAT32))
    table = getattr(problem, wanted).clone().requires_grad_()
    output = replace(problem, **{wanted: table}).run("triton")
    generator = torch.Generator().manual_seed(5)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output))
    assert largest_errors({"": table.grad.double().cpu()}, {"": expected})[""] <= 1e-5


@pytest.mark.parametrize("num_context", [0, 2])
def test_swapping_two_candidates_swaps_their_outputs_and_nothing_else(num_context):
    problem = make_problem([12], targets=True, num_context=num_context).to(FLOAT32)
    request_time = problem.next_timestamps[8].expand(4)
    problem = to_device(
        replace(
            problem,
            num_targets=torch.tensor([4]),
            timestamps=torch.cat([problem.timestamps[:8], request_time]),
            next_timestamps=torch.cat([problem.next_timestamps[:8], request_time]),
        )
    )
    swapped = [*range(8), 8, 11, 10, 9]
    before = problem.run("triton")
    after = replace(problem, z=problem.z[swapped]).run("triton")
    torch.testing.assert_close(after, before[swapped], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[9], before[11])


def test_a_sequence_is_the_same_to_the_bit_alone_and_beside_others():
    problem = to_device(make_problem([40, 130, 3, 0, 64], targets=True, window=30).to(FLOAT32))
    together = problem.run("triton")
    bounds = problem.offsets.tolist()
    for b, rows in enumerate(slice(*pair) for pair in pairwise(bounds)):
        alone = replace(
            problem,
            z=problem.z[rows],
            offsets=torch.tensor([0, rows.stop - rows.start], device=DEVICE),
            timestamps=problem.timestamps[rows],
            next_timestamps=problem.next_timestamps[rows],
            num_targets=problem.num_targets[b : b + 1],
        ).run("triton")
        assert torch.equal(alone, together[rows])


def test_a_nan_stays_within_its_sequence():
    problem = to_device(make_problem([40, 38, 41], targets=True).to(FLOAT32))
    z = problem.z.clone()
    z[45] = torch.nan
    results = replace(problem, z=z).output_and_gradients("triton")
    for name in ("output", "grad of z"):
        assert results[name][:40].isfinite().all()
        assert results[name][78:].isfinite().all()
        assert results[name][40:78].isnan().any()


def test_layers_that_share_a_batch_each_get_their_own_bias():
    problem = make_problem([90, 14])
    fast = to_device(problem.to(FLOAT32))
    shared = RelativeBias(None, None, fast.timestamps, fast.next_timestamps)
    for factor in (1.0, -2.0):
        tables = problem.position_weight * factor, problem.time_weight * factor
        bias = shared.with_tables(*(table.to(DEVICE, FLOAT32) for table in tables))
        output = hstu_attention(*fast.qkv, fast.offsets, max_len=211, bias=bias, backend="triton").double().cpu()
        expected = replace(problem, position_weight=tables[0], time_weight=tables[1]).run("reference")
        assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
