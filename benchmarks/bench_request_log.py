"""What the log of requests costs the service: answers a second with and without it, turn by turn in one run.

    python -m benchmarks.bench_request_log

Two real services of the same model (benchmarks/made_service.py), one with HSTUFLOW_REQUESTS, asked in turn with 8
connections; rows are added to benchmarks/results/request_log.csv.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks import recording
from benchmarks.made_service import K, make_bodies, run_load, serving, write_model
from benchmarks.recording import Row
from components.console import log, setup_logging

COLUMNS = ("case", "per_s", "p50_ms", "p99_ms", "facts")


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row a side: medians over the rounds."""
    requests = folder / "requests"
    found: dict[str, list[Row]] = {"without": [], "with": []}
    with ExitStack() as stack:
        servers = {}
        for side, value in (("without", ""), ("with", str(requests))):
            os.environ["HSTUFLOW_REQUESTS"] = value  # the service inherits it
            write_model(folder / side, args.items)
            servers[side] = stack.enter_context(serving(folder / side))
        bodies = make_bodies(args.items, k=K)
        for number in range(args.rounds + 1):  # the first is for warming up
            for side, server in servers.items():
                row = run_load(server, "/recommend", bodies, folder, seconds=args.seconds, connections=8)
                found[side] += [row] if number else []
    lines = sum(file.read_bytes().count(b"\n") for file in requests.glob("*/*.jsonl"))
    size = sum(file.stat().st_size for file in requests.glob("*/*.jsonl"))
    ratios = [b["answered_per_s"] / a["answered_per_s"] for a, b in zip(found["without"], found["with"], strict=True)]
    spread = f"with / without {np.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
    for side, rows in found.items():
        medians = {name: round(float(np.median([row[name] for row in rows])), 2) for name in ("p50_ms", "p99_ms")}
        facts = f"{lines:,} rows of {size / max(lines, 1):.0f} bytes; {spread}" if side == "with" else ""
        yield {"case": side, "per_s": np.median([row["answered_per_s"] for row in rows]), **medians, "facts": facts}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=3_706)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a side in a round")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "request_log.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both sides."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    facts = recording.describe_run("benchmarks.bench_request_log", arguments, torch.device("cpu"), 1)
    with tempfile.TemporaryDirectory(prefix="hstuflow-requests-") as name:
        rows = [facts | row for row in measure(args, Path(name))]
    recording.append_rows(args.results, rows)
    for row in rows:
        log.info("%s: %s answers/s, p50 %s ms, p99 %s ms %s", *(row[column] for column in COLUMNS))
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
