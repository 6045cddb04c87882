"""How long ingestion, validation and sequences take on a large log, and the most memory each of them holds.

    python -m benchmarks.bench_ingestion --rows 20000000
    python -m benchmarks.bench_ingestion --rows 20000000 --source csv --text-ids --steps ingest

Every step is a process of its own, `python -m components <step>` in an empty folder, as a person runs it. Its peak is
what the system counted for that process from start to end, imports included; its CPU seconds likewise, which a busy
machine stretches less than the clock. `csv` and `parquet` are the log of the source `synthetic` written into one file
first, which is not measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from benchmarks import recording
from components.settings import SyntheticSettings
from components.sources.synthetic import MEAN_LENGTH, iterate_months

ROOT = Path(__file__).parent.parent
STEPS = ("ingest", "validate", "sequences")
COLUMNS = ("source", "rows", "step", "cpu_s", "wall_s", "peak_mb")
# A child starts with the peak of the process that forked it, and this one has torch in it: so a small one forks.
_WATCH = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status)
"""
_WRITERS = {"csv": pyarrow.csv.CSVWriter, "parquet": pq.ParquetWriter}


def measure_steps(args: argparse.Namespace, folder: Path) -> Iterator[recording.Row]:
    """Run the steps in `folder` one after another; yield a row each.

    Raises:
        RuntimeError: a step failed; what it said is in the message.
    """
    shutil.copy(ROOT / "params.yaml", folder)
    users = max(round(args.rows / MEAN_LENGTH), 1)
    options = ["--source", "synthetic", "--synthetic", f"users={users}"]
    if args.source != "synthetic":
        options = ["--source", "table", "--path", write_table(folder, args.source, users, text_ids=args.text_ids)]
    case = {"source": f"{args.source}{', text ids' if args.text_ids else ''}", "rows": args.rows}
    for step in args.steps:
        yield case | {"step": step} | run_step(folder, [step, *(options if step == "ingest" else [])])


def run_step(folder: Path, arguments: Sequence[str]) -> recording.Row:
    """Run one command of the pipeline in `folder`; return its seconds and its peak resident memory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command, started = [sys.executable, "-m", "components", *arguments], time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with status {done.returncode}: {done.stderr[-1000:]}")
    seconds, kibibytes = map(float, done.stdout.split()[-2:])
    return {"cpu_s": seconds, "wall_s": time.monotonic() - started, "peak_mb": kibibytes * 1024 / 1e6}


def write_table(folder: Path, kind: str, users: int, *, text_ids: bool) -> str:
    """Write the made log as one file with the columns user_id, item_id, timestamp; return its name."""
    path, schema = folder / f"log.{kind}", None
    for month in iterate_months(SyntheticSettings(users=users)):
        part = month.select(["user_id", "item_id", "timestamp"])
        if text_ids:
            for index, prefix in enumerate(("user-", "item-")):
                ids = part.column(index).cast(pa.string())
                part = part.set_column(
                    index, part.column_names[index], pc.binary_join_element_wise(pa.scalar(prefix), ids, "")
                )
        if schema is None:
            schema, writer = part.schema, _WRITERS[kind](path, part.schema)
        writer.write_table(part)
    writer.close()
    return path.name


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--source", default="synthetic", choices=["synthetic", *_WRITERS])
    parser.add_argument("--text-ids", action="store_true", help="ids such as user-17, which ingestion has to number")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "ingestion.csv")
    args = parser.parse_args(arguments)
    if args.text_ids and args.source == "synthetic":
        parser.error("--text-ids needs --source csv or parquet: the made log's ids are numbers")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 where a step failed, with the steps before it written."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    facts = recording.describe_run("benchmarks.bench_ingestion", arguments, torch.device("cpu"), 1)
    facts |= {name: recording.version_of(name) for name in ("pyarrow", "pandas", "great-expectations")}
    recording.print_facts(facts)
    rows: list[recording.Row] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-ingestion-") as folder:
        try:
            rows += (facts | row for row in measure_steps(args, Path(folder)))
        except RuntimeError as error:
            failures[args.source] = str(error)
    recording.append_rows(args.results, rows)
    return recording.close(args.results, rows, COLUMNS, failures)


if __name__ == "__main__":
    raise SystemExit(main())
