"""How long the attention operator takes, forward and backward, beside padded and softmax attention of the same shape.

    python -m benchmarks.bench_attention                            # ML-1M's shape, on the GPU where there is one
    python -m benchmarks.bench_attention --ratings ml-1m.zip        # its own lengths and times
    python -m benchmarks.bench_attention --sweep gpu                # 512 to 16,384 rows, D 64 to 256; 8 minutes

A version is NAME[-kept]:BIAS. The names are the operator's backends and

    dense   everything padded to N, autograd; what one would write
    sdpa    torch's softmax attention, causal, q, k, v padded already; the yardstick on GPUs, not the same function
    flex    FlexAttention, likewise; compiled, without which it is not fused. It cannot express HSTU's silu

`-kept` gets what depends on the batch alone (layout, buckets of the times) from an untimed call before it, as the
second layer of a model does; the others see the batch for the first time. Versions take turns; each is compared with
the first one listed that has the same bias and gets the same. benchmarks/results/attention.csv gets a row a pass.

Shapes: B sequences, N max_len, L rows, H heads, D head width (Dqk = Dv).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import measuring, memory, recording, workload
from benchmarks.attention_versions import Problem, Version, make_version
from benchmarks.recording import Row
from components.dataset import Sequences, gather_batch

PASSES = ("forward", "backward", "both")
DEFAULTS = {
    "cpu": ("cpu", "cpu-kept", "torch", "torch-kept", "reference", "dense", "dense-kept"),
    "cuda": (
        *("triton", "triton-kept:none", "triton-kept:position", "triton-kept:time", "triton-kept"),
        *("torch-kept", "dense-kept", "sdpa-kept:none", "flex-kept:none"),
    ),
}
COLUMNS = (
    *("case", "version", "pass", "median_ms", "p20_ms", "p80_ms", "gflops_per_s", "percent_of_ceiling"),
    *("gb_per_s", "peak_mb", "ratio", "ratio_low", "ratio_high"),
)
# A sweep's limits, in seconds: of timing one case, and after which no further case is begun.
_CASE_SECONDS, _SWEEP_SECONDS = 8.0, 430.0


@dataclass(frozen=True)
class Case:
    """One shape and the versions to time on it; `log` is a name of workload.made_log, or that of an archive."""

    log: str
    batch: int
    max_len: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    versions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.log} B{self.batch} N{self.max_len} H{self.heads} D{self.head_dim}"


def make_problem(case: Case, log: Sequences, device: torch.device) -> Problem:
    """Return the inputs of a case."""
    batch, _ = gather_batch(log, workload.choose_windows(log, max_len=case.max_len, batch=case.batch))
    return Problem(batch.to(device), case.max_len, case.heads, case.head_dim, case.dtype)


def run_case(
    case: Case, log: Sequences, device: torch.device, clock: measuring.Clock, *, rounds: int, seconds: float
) -> tuple[list[Row], dict[str, str]]:
    """Return a row a version and pass, and why some versions failed."""
    problem = make_problem(case, log, device)
    failures: dict[str, str] = {}
    made: dict[str, measuring.Version] = {}
    for version in map(Version.parse, case.versions):
        with measuring.reporting(str(version), failures):
            made[str(version)] = make_version(version, problem)
    measured = measuring.take_turns(made, clock, rounds=rounds, seconds=seconds)
    failures |= measured.failures
    ceiling = measuring.matmul_ceiling(case.dtype, device, clock)
    rows: list[Row] = []
    for name in measured.times:
        peak = None
        with measuring.reporting(f"{name}, its memory", failures):
            peak = _peak_bytes(case, log, device, name, made[name])
        rows += _rows_of(case, problem, name, measured, ceiling, peak)
    return rows, {f"{case} {name}": reason for name, reason in failures.items()}


def _peak_bytes(case: Case, log: Sequences, device: torch.device, name: str, version: measuring.Version) -> int:
    if device.type == "cuda":
        return memory.peak_device_bytes(partial(version, lambda: None))
    return memory.peak_host_bytes(prepare_alone, case, log, name)


def prepare_alone(case: Case, log: Sequences, name: str) -> Callable[[], None]:
    """Return a run of one version in a process of its own, which has run on one sequence; see `benchmarks.memory`."""
    small, run = (
        make_version(Version.parse(name), make_problem(replace(case, batch=batch), log, torch.device("cpu")))
        for batch in (1, case.batch)
    )
    small(lambda: None)
    return partial(run, lambda: None)


def _rows_of(
    case: Case, problem: Problem, name: str, measured: measuring.Measured, ceiling: float, peak: int | None
) -> list[Row]:
    lengths: list[int] = problem.batch.offsets.diff().tolist()
    flops = workload.attention_flops(lengths, case.heads, case.head_dim, case.head_dim)
    moved = workload.attention_bytes(sum(lengths), case.heads, case.head_dim, case.head_dim, case.dtype.itemsize)
    baseline = _baseline_of(name, list(measured.times))
    passes = (_passes(measured.times[which]) for which in (name, baseline))
    rows = []
    for phase, times, baseline_times in zip(PASSES, *passes, strict=True):
        spread, ratio = measuring.spread_of(times), measuring.paired_ratio(times, baseline_times)
        speed = flops[phase] / (spread.median / 1e3)
        rows.append(
            {
                "case": str(case),
                "dtype": str(case.dtype).removeprefix("torch."),
                "rows": sum(lengths),
                "pairs": workload.num_pairs(lengths),
                "version": name,
                "pass": phase,
                "rounds": len(times),
                "median_ms": spread.median,
                "p20_ms": spread.p20,
                "p80_ms": spread.p80,
                "useful_gflop": flops[phase] / 1e9,
                "gflops_per_s": speed / 1e9,
                "ceiling_gflops_per_s": ceiling / 1e9,
                "percent_of_ceiling": 100 * speed / ceiling,
                "moved_mb": moved[phase] / 1e6,
                "gb_per_s": moved[phase] / 1e9 / (spread.median / 1e3),
                "peak_mb": "" if peak is None or phase != "both" else peak / 1e6,
                "baseline": baseline,
                "ratio": ratio.value,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
            }
        )
    return rows


def _passes(times: np.ndarray) -> list[np.ndarray]:
    """Split (rounds, 2) into PASSES."""
    return [*times.T, times.sum(1)]


def _baseline_of(name: str, names: Sequence[str]) -> str:
    """Return the first version that has the same bias and is kept likewise."""
    version = Version.parse(name)
    like = (version.bias, version.is_kept)
    return next(other for other in names if (Version.parse(other).bias, Version.parse(other).is_kept) == like)


def gpu_sweep() -> list[Case]:
    """Return ML-20M's shape, then batches of 32 sequences of one length, D 128 first: time may run out."""
    cases = [Case("ml-20m-like", 128, 200, 4, 64, torch.bfloat16, DEFAULTS["cuda"])]
    for head_dim in (128, 64, 256):
        for rows in (512, 1024, 2048, 4096, 8192, 16384):
            versions = [version for version in DEFAULTS["cuda"] if version.startswith(("triton-kept", "sdpa"))]
            versions += ["flex-kept:none"] if rows in (1024, 4096, 16384) else []  # compiling it takes 10 s a shape
            versions += ["torch-kept", "dense-kept"] if rows <= 1024 else []  # seconds a run at 4096
            cases.append(Case("full", 32, rows, 4, head_dim, torch.bfloat16, tuple(versions)))
    return cases


def parse(arguments: Sequence[str], device: torch.device) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in (("batch", 128), ("max-len", 200), ("heads", 1), ("head-dim", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    on_gpu = device.type == "cuda"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--ratings", type=Path, help="a MovieLens archive, for its lengths and times")
    parser.add_argument("--versions", nargs="+", default=DEFAULTS[device.type], help="NAME[-kept]:BIAS, see above")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is counted")
    parser.add_argument("--flush-l2", action="store_true", help="empty the GPU's cache before each run")
    parser.add_argument("--sweep", choices=["gpu"])
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "attention.csv")
    args = parser.parse_args(arguments)
    if (args.sweep or args.flush_l2) and not on_gpu:
        parser.error("--sweep gpu and --flush-l2 need a GPU")
    try:
        args.versions = tuple(str(Version.parse(text)) for text in args.versions)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Time all cases; return 1 where a version failed or a case was not reached."""
    arguments = sys.argv[1:] if arguments is None else arguments
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args = parse(arguments, device)
    torch.set_num_threads(args.threads)
    on_gpu = device.type == "cuda"
    clock = measuring.CudaClock(is_ahead=True, flush_l2=args.flush_l2) if on_gpu else measuring.CpuClock(args.threads)
    facts = recording.describe_run("benchmarks.bench_attention", arguments, device, args.threads)
    facts |= {"clock": clock.name, "allocator": memory.settle_allocator(device)}
    recording.print_facts(facts)
    cases = gpu_sweep() if args.sweep else [_asked_for(args)]
    started, rows, failures, num_written = time.monotonic(), [], {}, 0
    for case in cases:
        if args.sweep and time.monotonic() - started > _SWEEP_SECONDS:
            failures[str(case)] = f"not begun within {_SWEEP_SECONDS:.0f} s"
            continue
        seconds = _CASE_SECONDS if args.sweep else float("inf")
        with measuring.reporting(str(case), failures):
            log = workload.read_ratings(args.ratings) if args.ratings else _made_log(case)
            found, failed = run_case(case, log, device, clock, rounds=args.rounds, seconds=seconds)
            rows += [facts | row for row in found]
            failures |= failed
        recording.append_rows(args.results, rows[num_written:])  # now: a sweep may be killed
        num_written = len(rows)
    return recording.close(args.results, rows, COLUMNS, failures)


def _asked_for(args: argparse.Namespace) -> Case:
    log = args.ratings.stem if args.ratings else "ml-1m-like"
    dtype = getattr(torch, args.dtype)
    return Case(log, args.batch, args.max_len, args.heads, args.head_dim, dtype, args.versions)


def _made_log(case: Case) -> Sequences:
    return workload.made_log(case.log, max_len=case.max_len, num_items=1, num_users=case.batch)


if __name__ == "__main__":
    raise SystemExit(main())
