"""The benchmarks: what they count, whether their baselines do the same work, what they write, and how they fail."""

import csv
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench_attention, bench_training, measuring, memory, recording, workload
from benchmarks.attention_versions import Problem, Version, make_version
from benchmarks.baselines import DenseStep, dense_attention, dense_buckets
from components.dataset import find_training_windows, gather_batch
from components.model import build_model
from kernels import hstu_attention
from kernels.reference import attention_mask
from kernels.time_buckets import time_buckets

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch):
    """A benchmark owns its process; here it shares one with other tests."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measuring, "_GEMM_SIZES", {"cpu": (64, 128)})


@pytest.fixture
def measured_alone(monkeypatch):
    """Runs that would each have had a process of its own, and the imports that takes: 3 to 8 s."""
    runs = []

    def run_here(prepare, *args):
        prepare(*args)()
        runs.append((prepare, *args))
        return 1_000_000 * len(runs)

    monkeypatch.setattr(memory, "peak_host_bytes", run_here)
    return runs


def made_batch(batch=6, max_len=20, num_items=30):
    log = workload.made_log("ml-1m-like", max_len=max_len, num_items=num_items, num_users=batch)
    return gather_batch(log, find_training_windows(log, max_len))


# ---- what is counted


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_flops_are_two_for_each_visible_pair_and_multiplied_number(lengths, heads, dim_qk, dim_v):
    pairs = sum(int(attention_mask(n, 0, 0, 0).sum()) for n in lengths)
    flops = workload.attention_flops(lengths, heads, dim_qk, dim_v)
    scores, values = 2 * heads * pairs * dim_qk, 2 * heads * pairs * dim_v
    assert workload.num_pairs(lengths) == pairs
    assert flops["forward"] == scores + values
    # Scores again, dq, dk; the gradients of the weights and of v.
    assert flops["backward"] == 3 * scores + 2 * values
    assert flops["both"] == flops["forward"] + flops["backward"]


def test_bytes_are_those_of_the_tensors_that_go_in_and_out():
    q, k, v = (torch.zeros(7, 2, dim, dtype=torch.bfloat16) for dim in (5, 5, 3))
    size = {name: x.numel() * x.element_size() for name, x in {"q": q, "k": k, "v": v, "o": v}.items()}
    moved = workload.attention_bytes(7, 2, 5, 3, 2)
    assert moved["forward"] == sum(size.values())
    assert moved["backward"] == sum(size.values()) + size["q"] + size["k"] + size["v"]


def test_spread_is_the_percentiles():
    assert measuring.spread_of(np.arange(101.0)[::-1]) == (50.0, 20.0, 80.0)


def test_a_ratio_compares_rounds_not_versions_apart():
    """A machine that gets slower by the round hurts both alike: the ratio is exact, its interval has no width."""
    baseline = np.array([1.0, 9.0, 2.0, 50.0, 3.0])
    assert measuring.paired_ratio(2 * baseline, baseline) == pytest.approx((2.0, 2.0, 2.0))
    value, low, high = measuring.paired_ratio(np.array([2.0, 3.0, 2.5, 2.2, 2.8]), np.ones(5))
    assert low < value == 2.5 < high


class CountingClock:
    """Time passes by one ms a mark, and stands still between runs."""

    name = "counting"

    def __init__(self):
        self.ready, self.marks = 0, 0

    def get_ready(self):
        self.ready += 1

    def now(self):
        self.marks += 1
        return self.marks

    def milliseconds(self, marks):
        return [float(end - start) for start, end in pairwise(marks)]


def test_versions_take_turns_each_round_begins_with_another_and_warm_up_does_not_count():
    order, clock = [], CountingClock()

    def version(name, mark):
        order.append(name)
        for _ in range(3):
            mark()

    versions = {name: lambda mark, name=name: version(name, mark) for name in "abc"}
    measured = measuring.take_turns(versions, clock, rounds=4)
    assert "".join(order) == "abcbcacababcbcacab"
    assert {name: times.tolist() for name, times in measured.times.items()} == dict.fromkeys("abc", [[1.0, 1.0]] * 4)
    assert clock.ready == len(order)


def test_a_time_limit_leaves_enough_rounds():
    measured = measuring.take_turns({"a": lambda mark: [mark(), mark()]}, CountingClock(), rounds=99, seconds=0.0)
    assert measured.times["a"].shape == (5, 1)


def test_a_version_that_fails_in_any_round_is_reported_and_the_others_go_on(capsys):
    runs = []

    def fails_late(mark):
        mark()
        mark()
        runs.append(1)
        if len(runs) == 4:
            raise RuntimeError("no more\nsecond line")

    versions = {"late": fails_late, "fine": lambda mark: [mark(), mark()]}
    measured = measuring.take_turns(versions, CountingClock(), rounds=6)
    assert measured.failures == {"late": "RuntimeError: no more"}
    assert {name: times.shape for name, times in measured.times.items()} == {"fine": (6, 1)}
    assert len(runs) == 4
    assert "second line" in capsys.readouterr().err


def test_memory_of_a_run_is_what_it_takes_on_top_of_its_inputs():
    """Neither what the inputs hold nor what making them took and gave back."""
    assert memory.peak_host_bytes(take_40_megabytes) == pytest.approx(40e6, rel=0.1)


def take_40_megabytes():
    def take(megabytes):
        return torch.ones(megabytes, 1_000_000, dtype=torch.uint8)

    before = take(100)
    sum(float(take(1)[0, 0]) for _ in range(90))
    take(200)
    return lambda: [take(20), take(20), before]


# ---- what is compared does the same work


@pytest.mark.parametrize("bias", ["none", "position", "time", "position+time"])
@pytest.mark.parametrize("kept", [False, True])
def test_dense_attention_and_its_gradients_equal_the_reference(bias, kept):
    problem = Problem(made_batch()[0], 20, heads=2, head_dim=5, dtype=torch.float32)
    offsets, tables = problem.batch.offsets, problem.bias_of(problem.batch, bias)
    buckets = dense_buckets(tables, offsets, 20) if kept else None
    dense = dense_attention(*problem.qkv, offsets, max_len=20, bias=tables, buckets_BNN=buckets)
    reference = hstu_attention(*problem.qkv, offsets, max_len=20, bias=tables, backend="reference")
    torch.testing.assert_close(dense, reference, rtol=1e-5, atol=1e-5)
    weights = [weight for weight in (tables.position_weight, tables.time_weight) if weight is not None]
    leaves = [*problem.qkv, *weights]
    for mine, theirs in zip(*(torch.autograd.grad(o, leaves, problem.grad) for o in (dense, reference)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_made_times_use_many_buckets_on_which_the_published_logarithm_agrees_with_ours():
    batch, _ = made_batch(max_len=200)
    problem = Problem(batch, 200, heads=1, head_dim=2, dtype=torch.float32)
    buckets = dense_buckets(problem.bias_of(batch, "time"), batch.offsets, 200)[0]
    n = int(batch.offsets[1])
    gaps = batch.next_timestamps[:n, None] - batch.timestamps[None, :n]
    assert (buckets[:n, :n] == time_buckets(gaps)).float().mean() > 0.99
    assert len(buckets[:n, :n].tril().unique()) > 10


@pytest.mark.parametrize("name", ["torch", "torch-kept", "reference", "dense", "dense-kept"])
def test_a_version_sees_a_batch_for_the_first_time_unless_it_is_kept(name, monkeypatch):
    problem = Problem(made_batch()[0], 20, heads=1, head_dim=4, dtype=torch.float32)
    seen = []
    version = Version.parse(name)
    where = "hstu_attention" if version.name in ("torch", "reference") else "dense_attention"

    def attend(q, k, v, offsets, *, bias, **_):
        seen.append((offsets, bias.timestamps))
        return v * 1.0

    monkeypatch.setattr(f"benchmarks.attention_versions.{where}", attend)
    run = make_version(version, problem)
    for _ in range(2):
        run(lambda: None)
    is_same = all(one is other for one, other in zip(seen[-1], seen[0], strict=True))
    assert is_same == version.is_kept
    assert len(seen) == (4 if version.is_kept else 2)  # kept: once before, untimed, forward and backward


@pytest.mark.parametrize("loss", ["full", "shared", "sampled"])
def test_the_dense_step_changes_the_weights_as_ours_does(loss):
    """Without dropout: the two draw their masks differently."""
    options = ["--dim", "8", "--heads", "2", "--negatives", "7", "--loss", loss]
    settings = bench_training.settings_of(bench_training.parse(options), 20)
    settings.dropout = 0.0
    batch, targets = made_batch()
    torch.manual_seed(0)
    model = build_model("hstu", settings, 30)
    dense, ours = DenseStep(settings, model), bench_training.OurStep(settings, model, 30)
    for _ in range(2):
        losses = [step.forward(batch, targets) for step in (ours, dense)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
        for step, value in zip((ours, dense), losses, strict=True):
            value.backward()
            step.update()
    weights = dense.model.weights
    assert len(weights) == len(model.state_dict()) > 10
    for name, weight in model.state_dict().items():
        # AdamW moves a weight by the sign of a gradient at first, so gradients that are zero but for rounding differ.
        moved_alike = (weights[name.replace(".", "/")] - weight).abs() < 1e-5
        assert moved_alike.float().mean() > 0.98, name


# ---- logs


def test_ratings_are_read_in_order_of_time_then_rows(tmp_path):
    rows = ["7::30::5::100", "3::10::4::50", "3::20::1::40", "7::10::3::100", "3::30::2::50"]
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/movies.dat", "10::Ten::Drama\n")
        archive.writestr("ml/ratings.dat", "\n".join(rows) + "\n")
    log = workload.read_ratings(tmp_path / "ml.zip")
    assert log.num_items == 3
    assert log.items.tolist() == [1, 0, 2, 2, 0]
    assert log.timestamps.tolist() == [40, 50, 50, 100, 100]
    batch, targets = gather_batch(log, find_training_windows(log, 1))
    assert (batch.items.tolist(), targets.tolist()) == ([0, 2], [2, 0])


def test_made_histories_are_as_long_as_their_name_says():
    log = workload.made_log("ml-1m-like", max_len=200, num_items=9)
    inputs = np.diff(find_training_windows(log, 200)).ravel()
    assert len(inputs) == workload.NUM_USERS
    assert 90 <= np.median(inputs) <= 100
    assert (inputs.min(), inputs.max()) == (19, 200)
    full = workload.made_log("full", max_len=8, num_items=9, num_users=3)
    assert np.diff(find_training_windows(full, 8)).ravel().tolist() == [8, 8, 8]


# ---- whole runs

TINY_ATTENTION = ["--batch", "3", "--max-len", "12", "--heads", "2", "--head-dim", "4", "--rounds", "5"]
TINY_TRAINING = ["--batch", "3", "--max-len", "12", "--dim", "4", "--items", "20", "--negatives", "5", "--rounds", "5"]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_attention_benchmark_appends_a_row_a_version_and_pass(tmp_path, capsys, measured_alone):
    path = tmp_path / "new" / "attention.csv"
    versions = ["torch", "torch-kept:none", "dense", "dense-kept:none", "sdpa-kept:none"]
    command = [*TINY_ATTENTION, "--versions", *versions, "--results", str(path)]
    assert bench_attention.main(command) == 0
    assert bench_attention.main([*TINY_ATTENTION, "--versions", "torch", "--results", str(path)]) == 0
    rows = rows_of(path)
    names = ["torch:position+time", "torch-kept:none", "dense:position+time", "dense-kept:none", "sdpa-kept:none"]
    assert [row["version"] for row in rows[:15:3]] == names
    assert [row["pass"] for row in rows] == ["forward", "backward", "both"] * 6
    assert [row["baseline"] for row in rows[:15:3]] == [names[0], names[1], names[0], names[1], names[1]]
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        rate = float(row["useful_gflop"]) / (float(row["median_ms"]) / 1e3)
        assert float(row["gflops_per_s"]) == pytest.approx(rate, rel=0.01)
        share = 100 * float(row["gflops_per_s"]) / float(row["ceiling_gflops_per_s"])
        assert float(row["percent_of_ceiling"]) == pytest.approx(share, rel=0.01)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
    assert [row["peak_mb"] for row in rows] == [x for number in range(1, 7) for x in ("", "", str(number))]
    assert [name for *_, name in measured_alone] == [*names, names[0]]
    assert {row["ratio"] for row in rows if row["version"] == row["baseline"]} == {"1"}
    assert {row["torch"] for row in rows} == {torch.__version__}
    assert all(row["revision"] and row["hardware"] and row["day"] for row in rows)
    assert rows[0]["command"].endswith("--results attention.csv")  # and no folder of this machine
    assert str(tmp_path) not in path.read_text()
    assert "percent_of_ceiling" in capsys.readouterr().out


def test_a_version_that_does_not_run_is_reported_the_rest_is_written_and_the_status_is_1(
    tmp_path, capsys, monkeypatch, measured_alone
):
    def fail(*_, **__):
        raise RuntimeError("out of everything")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("benchmarks.attention_versions.dense_attention", fail)
    path = tmp_path / "attention.csv"
    command = [*TINY_ATTENTION, "--versions", "triton", "dense", "torch", "--results", str(path)]
    assert bench_attention.main(command) == 1
    assert {row["version"] for row in rows_of(path)} == {"torch:position+time"}
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("failed: ")]
    assert len(failed) == 2
    assert "triton:position+time: ValueError: backend 'triton' does not run here" in failed[0]
    assert "dense:position+time: RuntimeError: out of everything" in failed[1]


@pytest.mark.parametrize(
    "arguments", [["--sweep", "gpu"], ["--flush-l2"], ["--versions", "fast"], ["--versions", "sdpa:time"]]
)
def test_what_cannot_be_timed_is_refused_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_attention.main(arguments)
    assert stopped.value.code == 2
    assert "sweep" in capsys.readouterr().err


def test_ratings_are_refused_where_memory_is_measured(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_training.main(["--memory", "--ratings", "ml-1m.zip"])
    assert stopped.value.code == 2
    assert "leave --ratings out" in capsys.readouterr().err


def test_the_gpu_sweep_has_every_length_and_width_and_versions_that_exist():
    cases = bench_attention.gpu_sweep()
    dense = [case for case in cases if case.log == "full"]
    assert {(case.head_dim, case.max_len) for case in dense} == {
        (dim, 2**power) for dim in (64, 128, 256) for power in range(9, 15)
    }
    for case in cases:
        parsed = list(map(Version.parse, case.versions))
        assert {version.bias for version in parsed if version.name == "triton"} == {
            "none",
            "position",
            "time",
            "position+time",
        }
        assert "sdpa" in {version.name for version in parsed}


def test_rows_of_another_kind_are_not_mixed_into_a_file(tmp_path):
    path = tmp_path / "some.csv"
    recording.append_rows(path, [{"a": 1}])
    with pytest.raises(ValueError, match="other columns"):
        recording.append_rows(path, [{"b": 1}])
    assert path.read_text() == "a\n1\n"


@pytest.mark.parametrize("loss", ["shared", "sampled", "full"])
def test_the_training_benchmark_says_how_long_an_epoch_takes(loss, tmp_path):
    path = tmp_path / "training.csv"
    assert bench_training.main([*TINY_TRAINING, "--loss", loss, "--results", str(path)]) == 0
    rows = rows_of(path)
    assert [(row["version"], row["pass"]) for row in rows] == [
        (version, phase) for version in ("ours", "dense") for phase in ("forward", "backward", "update", "step")
    ]
    log = workload.made_log("ml-1m-like", max_len=12, num_items=20)
    epoch_events = np.diff(find_training_windows(log, 12)).sum()
    for row in rows[3::4]:
        per_second = float(row["events"]) / (float(row["median_ms"]) / 1e3)
        assert float(row["events_per_s"]) == pytest.approx(per_second, rel=0.01)
        assert float(row["epoch_s"]) == pytest.approx(epoch_events / per_second, rel=0.01)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])


def test_memory_is_measured_for_both_versions_as_histories_grow(tmp_path, measured_alone):
    path = tmp_path / "training.csv"
    command = [*TINY_TRAINING, "--memory", "--memory-lengths", "4", "8", "--results", str(path)]
    assert bench_training.main(command) == 0
    assert [(row["version"], int(row["events"]), row["peak_mb"]) for row in rows_of(path)] == [
        ("ours", 16 * 4, "1"),
        ("dense", 16 * 4, "2"),
        ("ours", 16 * 8, "3"),
        ("dense", 16 * 8, "4"),
    ]
    assert len(measured_alone) == 4
    assert bench_training.main([*TINY_TRAINING, "--results", str(path)]) == 0  # both kinds of rows fit into one file
