"""What a new champion costs a running service: time until it answers, latency meanwhile, memory afterwards.

    python -m benchmarks.bench_swaps                     # 3,706 items, about 2 minutes
    python -m benchmarks.bench_swaps --items 100000

One real `bentoml serve` with random weights (benchmarks/made_service.py) follows a pointer that goes back and forth
between two tags, first at rest, then under load at a steady rate; the same load without swaps stands beside it. Rows
are added to benchmarks/results/swaps.csv.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import torch

from benchmarks import recording
from benchmarks.made_service import K, Server, make_bodies, run_load, serving, write_model
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.files import write_json

COLUMNS = ("case", "items", "p50_ms", "p99_ms", "facts")


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row a case."""
    write_model(folder, args.items)
    pointer = folder / "champion.json"
    os.environ["HSTUFLOW_FOLLOW"] = str(pointer)  # the service inherits it
    with serving(folder) as server:
        tags = [_served_tag(server), _copy_model(folder)]
        write_json(pointer, {"model_tag": tags[0]})
        bodies = make_bodies(args.items, k=K)
        run_load(server, "/recommend", bodies, folder, seconds=5)  # warm
        megabytes, seconds = [server.megabytes], []
        for number in range(args.swaps):
            seconds.append(_swap(server, pointer, tags[(number + 1) % 2]))
            megabytes.append(server.megabytes)
        facts = f"seconds until it answered: {_list(seconds)}; MB before and after each: {_list(megabytes, 0)}"
        yield {"case": f"{args.swaps} swaps at rest", "facts": facts}
        options = {"seconds": args.seconds, "rate": args.rate}
        yield _row("load without swaps", run_load(server, "/recommend", bodies, folder, **options), "")
        ended, times = threading.Event(), []
        swapper = threading.Thread(target=_keep_swapping, args=(server, pointer, tags, ended, times))
        swapper.start()
        found = run_load(server, "/recommend", bodies, folder, **options)
        ended.set()
        swapper.join()
        yield _row("the same load, one swap after the other", found, f"{len(times)} swaps, {_list(times)} s each; ")


def _keep_swapping(server: Server, pointer: Path, tags: list[str], ended: threading.Event, times: list[float]) -> None:
    while not ended.is_set():
        times.append(_swap(server, pointer, next(tag for tag in tags if tag != _served_tag(server))))


def _swap(server: Server, pointer: Path, tag: str) -> float:
    """Let the pointer name `tag`; return the seconds until the service answers with it."""
    began = time.monotonic()
    write_json(pointer, {"model_tag": tag})
    while _served_tag(server) != tag:
        time.sleep(0.05)
    return time.monotonic() - began


def _served_tag(server: Server) -> str:
    return str(httpx.get(f"{server.url}/info", timeout=60).json()["model"]["tag"])


def _copy_model(folder: Path) -> str:
    """Put the stored model into the store under a second tag: the same time and memory, another name."""
    (model,) = [model for model in (folder / "bentoml" / "models" / "hstuflow").iterdir() if model.is_dir()]
    copy = model.with_name("second")
    shutil.copytree(model, copy)
    text = (copy / "model.yaml").read_text().replace(f"version: {model.name}", "version: second")
    (copy / "model.yaml").write_text(text)
    return "hstuflow:second"


def _row(case: str, found: Row, facts: str) -> Row:
    statuses = ", ".join(f"{status}: {count:,}" for status, count in found["statuses"].items())
    return {"case": case, "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"], "facts": facts + statuses}


def _list(values: Sequence[float], digits: int = 1) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=3_706)
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second of each load")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "swaps.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything; a row is appended when it is done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a look at /info
    facts = recording.describe_run("benchmarks.bench_swaps", arguments, torch.device("cpu"), 1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hstuflow-swaps-") as name:
        for row in measure(args, Path(name)):
            rows.append(facts | dict.fromkeys(COLUMNS, "") | {"items": args.items} | row)
            recording.append_rows(args.results, rows[-1:])
            log.info("%s: p50 %s ms, p99 %s ms %s", *(rows[-1][c] for c in ("case", "p50_ms", "p99_ms", "facts")))
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
