"""Judges the rows of a log month by month, and keeps each verdict: a night looks at the months that changed only.

    artifacts/validated/<hash>.safetensors    one month's verdict: bad rows with their reasons, and what was counted

The hash covers the month's files, the suite and this code; a verdict that today's log does not use is removed. The
folder lies outside DVC's outs, because DVC deletes those before it re-runs a stage; without it all months are judged
again, to the same outputs. Items that the item table did not have may have come to it: where that changes which items
of the month are unknown, it is judged again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from components.console import log
from components.expectations.facts import Facts, count_events
from components.expectations.runner import SuiteRunner, version
from components.expectations.suites import EVENT, Expectation, event_frame
from components.files import hash_files, replacing_file
from components.interactions import INTERACTIONS, read_month

ROWS_AT_ONCE = 4_000_000  # judged together, 0.6 GB: Great Expectations takes 0.15 s a run, however few rows
ROWS_THAT_COUNT = 100  # of a month: three bad rows dated 1970 are no reason to stop
_ARRAYS = ("users", "items", "months")  # of Facts


@dataclass(frozen=True)
class Month:
    """A month's verdict.

    bad:     positions of the rows that break an expectation, ascending int64
    broken:  which: bit i is the suite's i-th expectation, int64
    missing: nulls by column
    known, unknown: distinct ids of the month's items that are in the item table, and that are not
    facts:   of the rows that break none
    """

    name: str
    num_rows: int
    bad: np.ndarray
    broken: np.ndarray
    missing: dict[str, int]
    known: np.ndarray
    unknown: np.ndarray
    facts: Facts

    def rows_breaking(self, bit: int) -> np.ndarray:
        """Return the positions of the rows that break the suite's expectation `bit`."""
        rows: np.ndarray = self.bad[self.broken >> bit & 1 == 1]
        return rows


def worst_month(months: Sequence[Month]) -> dict[str, float]:
    """Return the largest share of bad rows in a month: a bad night drowns in years of good ones, not in its month."""
    shares = [len(month.bad) / month.num_rows for month in months if month.num_rows >= ROWS_THAT_COUNT]
    return {"month_bad_fraction": max(shares, default=0.0)}


def judge_months(
    runner: SuiteRunner, files: dict[str, list[Path]], items: pa.Array, suite: list[Expectation], kept: Path
) -> list[Month]:
    """Return the verdicts of all months, in order; what is not in the folder `kept` is judged and put there."""
    targets = {name: kept / f"{_hash(name, paths, suite)}.safetensors" for name, paths in files.items()}
    ids = np.unique(items.to_numpy())
    found = {name: month for name, target in targets.items() if (month := _read(name, target, ids)) is not None}
    stale = [name for name in files if name not in found]
    for names in _batches({name: files[name] for name in stale}):
        for month in _judge(runner, {name: files[name] for name in names}, items, suite):
            found[month.name] = month
            _write(month, targets[month.name])
    log.info("months judged: %d of %d%s", len(stale), len(files), f" ({_name_few(stale)})" if stale else "")
    for file in set(kept.glob("*.safetensors")) - set(targets.values()):
        file.unlink()
    return [found[name] for name in files]


def _hash(name: str, files: Sequence[Path], suite: list[Expectation]) -> str:
    """Return 32 hex digits over all that a month's verdict depends on but for the item table."""
    here = Path(__file__).parent
    code = hash_files([here, here.parent / "interactions.py"])
    facts = [name, hash_files(files), [asdict(expectation) for expectation in suite], code, version()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _batches(files: dict[str, list[Path]]) -> Iterator[list[str]]:
    """Yield months to be judged together: at most ROWS_AT_ONCE rows, or one month."""
    batch: list[str] = []
    rows = 0
    for name, paths in files.items():
        size = sum(pq.read_metadata(path).num_rows for path in paths)
        if batch and rows + size > ROWS_AT_ONCE:
            yield batch
            batch, rows = [], 0
        batch.append(name)
        rows += size
    if batch:
        yield batch


def _judge(
    runner: SuiteRunner, files: dict[str, list[Path]], items: pa.Array, suite: list[Expectation]
) -> Iterator[Month]:
    """Judge the rows of some months in one run."""
    months = [read_month(paths, INTERACTIONS.names) for paths in files.values()]
    ends = np.cumsum([0, *(month.num_rows for month in months)])
    frame = event_frame(pa.concat_tables(months), np.repeat(np.arange(len(months)), np.diff(ends)), items)
    months.clear()
    pa.default_memory_pool().release_unused()  # what the tables held: 0.7 GB of 20 million rows
    broken = np.zeros(len(frame), dtype=np.int64)
    for bit, judgement in enumerate(runner.run(f"rows from {next(iter(files))} on", frame, suite)):
        broken[judgement.rows] |= 1 << bit
    for name, start, end in zip(files, ends[:-1], ends[1:], strict=True):
        yield _summarize(name, frame.iloc[start:end], broken[start:end], items, suite)


def _summarize(name: str, frame: pd.DataFrame, broken: np.ndarray, items: pa.Array, suite: list[Expectation]) -> Month:
    bad = np.flatnonzero(broken)
    ids = np.unique(frame["item_id"].dropna().to_numpy("int64"))
    known = np.isin(ids, items.to_numpy())
    return Month(
        name=name,
        num_rows=len(frame),
        bad=bad,
        broken=broken[bad],
        missing={column: int(frame[column].isna().sum()) for column in {e.column for e in suite}},
        known=ids[known],
        unknown=ids[~known],
        facts=count_events(frame[EVENT][broken == 0]),
    )


def _write(month: Month, target: Path) -> None:
    arrays = {name: getattr(month, name) for name in ("bad", "broken", "known", "unknown")}
    arrays |= {name: getattr(month.facts, name) for name in _ARRAYS}
    numbers = {name: value for name, value in asdict(month.facts).items() if name not in _ARRAYS}
    told = json.dumps({"num_rows": month.num_rows, "missing": month.missing, "facts": numbers})
    with replacing_file(target) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, {"month": told})


def _read(name: str, file: Path, items: np.ndarray) -> Month | None:
    """Return a month's verdict; None where there is none, or where its items are in the item table now, or no more.

    A damaged one is none: the month is judged again.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, "numpy") as stored:
            arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
            told = json.loads(stored.metadata()["month"])
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged, so %s is judged again: %s", file, name, error)
        return None
    if np.isin(arrays["unknown"], items).any() or not np.isin(arrays["known"], items).all():
        return None
    facts = Facts(**told["facts"], **{key: arrays.pop(key) for key in _ARRAYS})
    return Month(name, told["num_rows"], missing=told["missing"], facts=facts, **arrays)


def _name_few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"
