"""What goes with every figure: machine, versions, revision, command; rows are appended to a CSV and printed."""

from __future__ import annotations

import csv
import datetime as dt
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def describe_run(module: str, arguments: Sequence[str], device: torch.device, num_threads: int) -> Row:
    """Return the columns that all rows of a run share."""
    return {
        "day": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "revision": revision(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": num_threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        # Folders are this machine's own affair.
        "command": shlex.join(["python", "-m", module, *(re.sub(r"[^\s=]*/", "", word) for word in arguments)]),
    }


def revision() -> str:
    """Return the commit's short hash, ending in -dirty where tracked files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
        done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "no git"
    return done.stdout.strip() if done.returncode == 0 else "no repository"


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}" if names else platform.processor()


def version_of(package: str) -> str:
    """Return an installed package's version, or `absent`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def find_done(path: Path, run: Row, columns: Sequence[str]) -> set[tuple[str, ...]]:
    """Return these columns, as text, of the rows that the same command has left at the same revision: not done again.

    Of a revision that is -dirty none, as the code may have changed meanwhile.
    """
    if not path.exists() or run["revision"].endswith("-dirty"):
        return set()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    same = [row for row in rows if all(row.get(name) == run[name] for name in ("command", "revision", "hardware"))]
    return {tuple(row[column] for column in columns) for row in same}


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV, which is made where there is none.

    Raises:
        ValueError: it has other columns.
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    if not is_new:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(rows[0]):
            raise ValueError(f"{path} has other columns: name another file with --results, or move it away")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print the columns of all rows, words to the left and numbers to the right."""
    cells = [[_plain(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    is_word = [any(isinstance(row[column], str) and row[column] for row in rows) for column in columns]
    for line in [list(columns), *cells]:
        padded = (
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, is_word, strict=True)
        )
        print("  ".join(padded).rstrip())


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact a line."""
    for name, value in facts.items():
        print(f"{name:<12}{_plain(value)}")


def close(path: Path, rows: Sequence[Row], columns: Sequence[str], failures: Mapping[str, str]) -> int:
    """Print the table, where its rows are and what failed; return the exit status, 1 where anything did."""
    if rows:
        print_table(rows, columns)
        print(f"{len(rows)} rows appended to {path}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return 1 if failures else 0


def _plain(value: object) -> str:
    """Return four digits of a float that is not whole, and everything else as it is."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return str(value)
