"""How long a training step of HSTU takes, and an epoch of ML-1M by that, beside a straightforward dense trainer's.

    python -m benchmarks.bench_training                                # ML-1M's shape, shared negatives
    python -m benchmarks.bench_training --loss full --ratings ml-1m.zip
    python -m benchmarks.bench_training --memory                       # peak memory of a step as N grows

`ours` is what components.training runs; `dense` (benchmarks/baselines.py) pads attention to N, buckets times in every
layer, gathers negatives plainly and leaves the rest to autograd and torch.optim. Both begin with the same weights, take
turns, and have the same allocator setting. A step is: gather the batch and compute the loss (forward), its gradients
(backward), the update. Rows are added to benchmarks/results/training.csv.

With --memory, every history is as long as N allows: events grow as N, what is padded as N squared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring, memory, recording, workload
from benchmarks.baselines import DenseStep
from benchmarks.recording import Row
from components.dataset import Batch, Sequences, find_training_windows, gather_batch
from components.fitting.optimizer import AdamW
from components.model import SequenceModel, build_model
from components.model.losses import make_loss
from kernels import choose_backend

VERSIONS = ("ours", "dense")
PASSES = ("forward", "backward", "update", "step")
MEMORY_LENGTHS = (64, 128, 256, 512, 1024)
MEMORY_BATCH = 16  # the dense step of 128 sequences of 1,024 rows takes over 10 GB
COLUMNS = (
    *("case", "loss", "version", "pass", "median_ms", "p20_ms", "p80_ms", "events_per_s", "epoch_s"),
    *("ratio", "ratio_low", "ratio_high"),
)
MEMORY_COLUMNS = ("case", "loss", "version", "events", "peak_mb")
# All columns, so that both kinds of rows go into one file.
_EMPTY: Row = dict.fromkeys((*COLUMNS[:4], "events", "rounds", *COLUMNS[4:], "baseline", "peak_mb"), "")

# Stands in for TrainSettings, which needs pydantic.
Settings = Any


class OurStep:
    """One step as components.fitting.loop takes it."""

    def __init__(self, settings: Settings, model: SequenceModel, num_items: int) -> None:
        self.model, self.rate = model, settings.learning_rate
        self.loss = make_loss(settings, num_items)
        self.optimizer = AdamW(model, weight_decay=settings.weight_decay)
        self.negatives = torch.Generator(next(model.parameters()).device).manual_seed(1)
        self.number = 0

    def forward(self, batch: Batch, targets_L: Tensor) -> Tensor:
        """Return the loss."""
        self.optimizer.zero_grad()
        return self.loss(self.model(batch), self.model.item_vectors(), targets_L, self.negatives)

    def update(self) -> None:
        """Change the weights by their gradients."""
        self.number += 1
        self.optimizer.step(self.rate, self.number)


def settings_of(args: argparse.Namespace, max_len: int) -> Settings:
    """Return the paper's public recipe (arXiv 2402.17152) in the shape asked for."""
    return SimpleNamespace(
        max_len=max_len,
        dim=args.dim,
        num_blocks=args.blocks,
        num_heads=args.heads,
        head_dim_qk=args.dim // args.heads,
        head_dim_v=args.dim // args.heads,
        dropout=0.2,
        bias="position+time",
        bias_per_head=False,
        attention="pointwise",
        feed_forward="none",
        gated_residual=False,
        head="dot",
        mixture_query_vectors=1,
        mixture_item_vectors=1,
        request_time_dropout=0.0,
        backend="auto",
        loss=args.loss,
        num_negatives=args.negatives,
        gbce_calibration=0.75,
        temperature=0.05,
        learning_rate=1e-3,
        weight_decay=0.0,
    )


def make_step(
    name: str,
    settings: Settings,
    log: Sequences,
    windows: np.ndarray,
    device: torch.device,
) -> measuring.Version:
    """Return a version that takes one step on `windows` each time it is run."""
    torch.manual_seed(0)
    model = build_model("hstu", settings, log.num_items).to(device)
    step = OurStep(settings, model, log.num_items) if name == "ours" else DenseStep(settings, model)

    def run(mark: measuring.Mark) -> None:
        mark()
        batch, targets = gather_batch(log, windows)
        loss = step.forward(batch.to(device), targets.to(device))
        mark()
        torch.autograd.backward(loss)
        mark()
        step.update()
        mark()

    return run


def time_steps(
    args: argparse.Namespace, log: Sequences, device: torch.device, clock: measuring.Clock
) -> tuple[list[Row], dict[str, str]]:
    """Return a row a version and pass, and why some versions failed."""
    settings = settings_of(args, args.max_len)
    failures: dict[str, str] = {}
    steps: dict[str, measuring.Version] = {}
    windows = workload.choose_windows(log, max_len=args.max_len, batch=args.batch)
    for name in VERSIONS:
        with measuring.reporting(name, failures):
            steps[name] = make_step(name, settings, log, windows, device)
    measured = measuring.take_turns(steps, clock, rounds=args.rounds)
    events, epoch_events = _num_events(windows), _num_events(find_training_windows(log, args.max_len))
    rows = []
    for name, times in measured.times.items():
        baseline = measured.times[next(iter(measured.times))]
        for phase, own, other in zip(PASSES, _passes(times), _passes(baseline), strict=True):
            spread, ratio = measuring.spread_of(own), measuring.paired_ratio(own, other)
            row = _EMPTY | {"case": _name_case(args, args.max_len), "loss": args.loss, "version": name, "pass": phase}
            row |= {"events": events, "rounds": len(own), "baseline": next(iter(measured.times))}
            row |= {"median_ms": spread.median, "p20_ms": spread.p20, "p80_ms": spread.p80}
            row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
            if phase == "step":
                per_second = events / (spread.median / 1e3)
                row |= {"events_per_s": per_second, "epoch_s": epoch_events / per_second}
            rows.append(row)
    return rows, failures | measured.failures


def _num_events(windows: np.ndarray) -> int:
    return int((windows[:, 1] - windows[:, 0]).sum())


def _passes(times: np.ndarray) -> list[np.ndarray]:
    """Split (rounds, 3) into PASSES."""
    return [*times.T, times.sum(1)]


def measure_memory(args: argparse.Namespace, device: torch.device) -> tuple[list[Row], dict[str, str]]:
    """Return a row a version and N: what a step holds at most, besides weights and log."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for max_len in args.memory_lengths:
        log = workload.made_log("full", max_len=max_len, num_items=args.items, num_users=MEMORY_BATCH)
        windows = workload.choose_windows(log, max_len=max_len, batch=MEMORY_BATCH)
        for name in VERSIONS:
            case = _name_case(args, max_len)
            with measuring.reporting(f"{case} {name}", failures):
                peak = _peak_bytes(device, name, settings_of(args, max_len), log, windows)
                row = _EMPTY | {"case": case, "loss": args.loss, "version": name, "events": _num_events(windows)}
                rows.append(row | {"peak_mb": peak / 1e6})
    return rows, failures


def _peak_bytes(device: torch.device, name: str, settings: Settings, log: Sequences, windows: np.ndarray) -> int:
    if device.type == "cpu":
        return memory.peak_host_bytes(prepare_alone, name, settings, log, windows)
    step = make_step(name, settings, log, windows, device)
    step(lambda: None)
    return memory.peak_device_bytes(partial(step, lambda: None))


def prepare_alone(name: str, settings: Settings, log: Sequences, windows: np.ndarray) -> Callable[[], None]:
    """Return a step in a process of its own, which has taken one on one sequence; see `benchmarks.memory`."""
    small, step = (make_step(name, settings, log, some, torch.device("cpu")) for some in (windows[:1], windows))
    small(lambda: None)
    return partial(step, lambda: None)


def _name_case(args: argparse.Namespace, max_len: int) -> str:
    shape = f"N{max_len} D{args.dim} H{args.heads} x{args.blocks} X{args.items}"
    if args.memory:
        return f"full B{MEMORY_BATCH} {shape}"
    return f"{args.ratings.stem if args.ratings else 'ml-1m-like'} B{args.batch} {shape}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    shape = {"batch": 128, "max-len": 200, "dim": 50, "heads": 1, "blocks": 2, "items": 3_706, "negatives": 128}
    for name, value in shape.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--loss", default="shared", choices=["shared", "sampled", "full"])
    parser.add_argument(
        "--system-malloc", action="store_true", help="leave malloc as it is, which slows dense steps down"
    )
    parser.add_argument("--ratings", type=Path, help="a MovieLens archive, for its histories and catalogue")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is counted")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--memory-lengths", type=int, nargs="+", default=MEMORY_LENGTHS, help="the N of --memory")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "training.csv")
    args = parser.parse_args(arguments)
    if args.memory and args.ratings:
        parser.error("--memory makes its own histories, each of N events: leave --ratings out")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 where a version failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.set_num_threads(args.threads)
    clock = measuring.CudaClock(is_ahead=False) if on_gpu else measuring.CpuClock(args.threads)
    facts = recording.describe_run("benchmarks.bench_training", arguments, device, args.threads)
    facts["backend"] = choose_backend(device)[0]
    if args.memory:
        facts |= {"clock": "", "allocator": "torch's, cached" if on_gpu else "the system's, a process a version"}
        recording.print_facts(facts)
        rows, failures = measure_memory(args, device)
    else:
        facts |= {
            "clock": clock.name,
            "allocator": "the system's" if args.system_malloc else memory.settle_allocator(device),
        }
        recording.print_facts(facts)
        log = _log(args)
        rows, failures = time_steps(args, log, device, clock)
    rows = [facts | row for row in rows]
    recording.append_rows(args.results, rows)
    return recording.close(args.results, rows, MEMORY_COLUMNS if args.memory else COLUMNS, failures)


def _log(args: argparse.Namespace) -> Sequences:
    if args.ratings is None:
        return workload.made_log("ml-1m-like", max_len=args.max_len, num_items=args.items)
    log = workload.read_ratings(args.ratings)
    args.items = log.num_items
    return log


if __name__ == "__main__":
    raise SystemExit(main())
