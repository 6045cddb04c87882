"""How fast a million items are ranked for every target, filter and top lists included, and in what memory.

    python -m benchmarks.bench_ranking                       # 2,000 of 100,000 targets, and what all would take
    python -m benchmarks.bench_ranking --targets 100000

Random unit vectors stand for a trained model, random histories for a log: neither changes the work. Vectors and log lie
in memory before the counting begins; the peak is what ranking takes on top. The time is the CPU time of one thread.
Rows are added to benchmarks/results/ranking.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring, memory, recording
from benchmarks.recording import Row
from components.console import setup_logging
from components.ranking.blocks import rank_catalogue
from components.ranking.targets import Targets
from components.ranking.tiles import choose_shape

WHOLE = 100_000  # targets that the time is extrapolated to
TOP = 10
_WARM_UP_TARGETS = 64
COLUMNS = ("case", "budget_mb", "tile", "targets", "seconds", "targets_per_s", "whole_s", "peak_mb")


class VectorScorer:
    """Inner products of fixed vectors of users (T, D) and items (X, D)."""

    def __init__(self, num_targets: int, num_items: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._users_TD = torch.randn(num_targets, dim, generator=generator)
        self._items_XD = torch.nn.functional.normalize(torch.randn(num_items, dim, generator=generator))

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        return self.score_items(self.encode(targets), slice(None))

    def encode(self, targets: Targets) -> Tensor:
        """Return (T, D)."""
        return self._users_TD[torch.from_numpy(targets.rows)]

    def score_items(self, encoded: Tensor, items: slice | np.ndarray) -> Tensor:
        """Return (T, C)."""
        return encoded @ self._items_XD[items].T


def made_targets(num_targets: int, num_items: int, history: int) -> Targets:
    """Return one target for each of as many users, after `history` random events."""
    random = np.random.default_rng(0)
    numbers = np.arange(num_targets)
    events = random.integers(num_items, size=num_targets * (history + 1))
    return Targets(
        rows=numbers,
        users=numbers,
        items=events[history :: history + 1],
        firsts=numbers * (history + 1),
        positions=numbers * (history + 1) + history,
        known_items=events,
        known_timestamps=np.arange(len(events)),
        request_times=numbers * (history + 1) + history,
    )


def prepare(args: argparse.Namespace) -> Callable[[], None]:
    """Return what ranks all targets, after it has ranked a few."""
    scorer = VectorScorer(args.targets, args.items, args.dim)
    targets = made_targets(args.targets, args.items, args.history)

    def run(some: Targets = targets) -> None:
        rank_catalogue({"vectors": scorer}, some, args.items, block_bytes=args.budget << 20, what="ranking", top=TOP)

    run(targets.take(np.arange(min(_WARM_UP_TARGETS, args.targets))))
    return run


def measure(args: argparse.Namespace) -> Row:
    """Return time and memory of ranking."""
    run = prepare(args)
    started = time.process_time()
    run()
    seconds = time.process_time() - started
    shape = choose_shape(args.items, args.budget << 20, is_whole=False)
    return {
        "case": f"X{args.items} D{args.dim} history {args.history} top {TOP}",
        "budget_mb": args.budget,
        "tile": f"{shape.rows} x {shape.width}",
        "targets": args.targets,
        "seconds": seconds,
        "targets_per_s": args.targets / seconds,
        "whole_s": seconds * WHOLE / args.targets,
        "peak_mb": memory.peak_host_bytes(prepare, args) / 1e6,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--targets", type=int, default=2_000, help=f"how many of {WHOLE:,} are ranked")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--history", type=int, default=100, help="events that are filtered for each target")
    parser.add_argument("--budget", type=int, default=32, help="evaluate.block_megabytes")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "ranking.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 where it failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    torch.set_num_threads(1)
    facts = recording.describe_run("benchmarks.bench_ranking", arguments, torch.device("cpu"), 1)
    recording.print_facts(facts)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    with measuring.reporting("ranking", failures):
        rows.append(facts | measure(args))
    recording.append_rows(args.results, rows)
    return recording.close(args.results, rows, COLUMNS, failures)


if __name__ == "__main__":
    raise SystemExit(main())
