"""Judge the log in data/ by the suites of `components/expectations/suites.py`; list bad rows, or stop the pipeline.

    python -m components validate

    artifacts/quarantine.parquet   partition, row, reason: one line per bad row; `sequences` leaves these rows out
    reports/validation.json        every expectation's outcome, counts by reason, the log's profile
    reports/data_docs/index.html   the same to read, with examples; opens without a network

All three are computed first and written together, whether the log passes or not; only then does a log that fails raise,
so nothing after this stage runs. The same data/, settings and promoted profile give the same bytes, whether months are
judged or their verdicts are kept from before.
5M rows take 14 s of one core and 0.9 GB the first time, 0.9 s where one month changed; Great Expectations' import takes
6 s more (docs/decisions/0020-validation-by-month.md).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.console import log
from components.errors import StateError, ValidationFailedError
from components.expectations import suites
from components.expectations.data_docs import write_page
from components.expectations.facts import add_up, measure
from components.expectations.months import Month, judge_months, worst_month
from components.expectations.profile import compare, profile_log
from components.expectations.runner import Judgement, SuiteRunner, restate
from components.expectations.suites import Expectation
from components.expectations.verdict import QUARANTINE, Verdict, complain, complain_about_types, count_reasons
from components.files import read_json, replacing_file, replacing_folder, write_json
from components.interactions import (
    INTERACTIONS,
    list_months,
    list_partitions,
    locate_rows,
    read_items,
    read_manifest,
    read_rows,
)
from components.settings import ValidateSettings

EXAMPLES_PER_REASON = 5  # rows shown in the data docs


def validate(
    settings: ValidateSettings,
    *,
    data: Path,
    quarantine: Path,
    report: Path,
    docs: Path,
    promoted_profile: Path,
    judged: Path,
) -> None:
    """Judge the log in `data`, write the three outputs, then raise if the log as a whole does not pass.

    promoted_profile: the profile of the version being served; nothing is compared where there is no such file, or
        where it describes a log from another source. No DVC dependency, on purpose: promotion writes it after this
        stage has run, and `dvc status` would never be clean.
    judged: the folder in which the verdicts on single months stay (`components/expectations/months.py`).

    Raises:
        ValidationFailedError: too many bad rows, or an expectation on the whole log is broken.
        StateError: `data` holds no log, or a file of it cannot be read.
    """
    verdict = judge_log(settings, data, promoted_profile, judged)
    _write(verdict, quarantine, report, docs)
    _log_summary(verdict, quarantine, docs)
    if verdict.complaints:
        raise ValidationFailedError(
            "the log does not pass validation, so nothing after it runs",
            where=f"{data}/",
            observed="; ".join(verdict.complaints),
            todo=_advise(verdict, docs, promoted_profile),
        )


def judge_log(settings: ValidateSettings, data: Path, promoted_profile: Path, judged: Path) -> Verdict:
    """Run the three suites and return what they found; writes verdicts on months into the folder `judged`.

    Rows are read only when the types are right, and the whole is judged on what is left after the quarantine.
    """
    runner = SuiteRunner()
    schemas = suites.type_frame(_read_schemas(data))
    types = runner.run("types", schemas, suites.type_suite())
    if not all(judgement.success for judgement in types):
        num_rows = sum(pq.read_metadata(file).num_rows for file in list_partitions(data))
        notes = ["Columns are not as they should be, so rows were not looked at."]
        return Verdict(num_rows, types, complain_about_types(types, schemas), notes)

    items = read_items(data)["item_id"].combine_chunks()
    suite = suites.row_suite(settings, has_items=len(items) > 0)
    months = judge_months(runner, list_months(data), items, suite, judged)
    rows = _join(runner, months, suite, items)
    num_rows, counted = sum(month.num_rows for month in months), add_up([month.facts for month in months])

    source = _source(data)
    promoted, notes = _read_promoted(promoted_profile, source)
    facts = measure(counted, num_rows) | worst_month(months) | (compare(counted, promoted) if promoted else {})
    whole = runner.run("log", pd.DataFrame([facts]), suites.log_suite(settings, compared=promoted is not None))
    reasons = count_reasons(rows)
    return Verdict(
        num_rows=num_rows,
        judgements=[*whole, *rows, *types],
        complaints=complain(whole, reasons),
        notes=notes if len(items) else [*notes, "The item table has no rows, so item ids were not looked up in it."],
        facts=facts,
        profile=profile_log(counted, source),
        quarantine=_quarantine(data, num_rows, rows),
        reasons=reasons,
        examples={judgement.expectation.name: _examples(data, judgement.rows) for judgement in rows},
    )


def _join(runner: SuiteRunner, months: list[Month], suite: list[Expectation], items: pa.Array) -> list[Judgement]:
    """Return the suite's judgements over the rows of all months; those of no row at all give them their form."""
    nothing = suites.event_frame(INTERACTIONS.empty_table(), np.zeros(0, np.int64), items)
    starts = np.cumsum([0, *(month.num_rows for month in months)])
    joined = []
    for bit, judgement in enumerate(runner.run("rows", nothing, suite)):
        rows = [start + month.rows_breaking(bit) for start, month in zip(starts[:-1], months, strict=True)]
        missing = sum(month.missing[judgement.expectation.column] for month in months)
        joined.append(restate(judgement, int(starts[-1]), missing, np.concatenate(rows)))
    return joined


def _read_schemas(data: Path) -> dict[str, pa.Schema]:
    """Return each partition file's schema by its name below data/interactions."""
    schemas = {}
    for file in list_partitions(data):
        try:
            schemas[f"{file.parent.name}/{file.name}"] = pq.read_schema(file)
        except pa.ArrowInvalid as error:
            raise StateError(
                "is not a Parquet file",
                where=str(file),
                observed=str(error).split(". ")[0],
                todo="Run `python -m components ingest` again, or `dvc checkout data.dvc`",
            ) from None
    return schemas


def _source(data: Path) -> str:
    """Return what tells this log from another one, whose profile says nothing about it.

    A table is known by its column mapping, because a nightly file may have a new name each day; an archive by its name;
    a made log by its size.
    """
    manifest = read_manifest(data)
    parts = [manifest["source"]]
    if manifest["source"] != "table" and manifest.get("path"):
        parts.append(PurePosixPath(manifest["path"]).name)
    mapping = manifest.get("columns") or manifest.get("synthetic") or {}
    parts += [f"{name}={theirs}" for name, theirs in sorted(mapping.items())]
    return " ".join(parts)


def _quarantine(data: Path, num_rows: int, rows: list[Judgement]) -> pa.Table:
    """Return the bad rows (schema QUARANTINE, in log order), reasons joined by '; '."""
    broken = np.zeros(num_rows, dtype=np.int64)  # bit i: breaks expectation i
    for bit, judgement in enumerate(rows):
        broken[judgement.rows] |= 1 << bit
    positions = np.flatnonzero(broken)
    patterns, which = np.unique(broken[positions], return_inverse=True)
    texts = ["; ".join(j.expectation.name for bit, j in enumerate(rows) if pattern >> bit & 1) for pattern in patterns]
    reasons = pa.array(texts, pa.string()).take(pa.array(which))
    return locate_rows(data, positions).append_column("reason", reasons).cast(QUARANTINE)


def _examples(data: Path, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return the first few of the bad rows, place first."""
    if not len(rows):
        return []
    first = read_rows(data, locate_rows(data, rows[:EXAMPLES_PER_REASON]))
    examples: list[dict[str, Any]] = first.select(["partition", "row", *INTERACTIONS.names]).to_pylist()
    return examples


def _read_promoted(file: Path, source: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the promoted version's profile, or None and the reason why there is nothing to compare with."""
    if not file.exists():
        return None, ["No version has been promoted yet, so there is no earlier log to compare with."]
    try:
        profile: dict[str, Any] = read_json(file)
        trained_on = profile["source"]
    except (ValueError, LookupError, TypeError) as error:
        raise StateError(
            "is not a profile", where=str(file), observed=str(error), todo=f"Run `git checkout {file}`, or remove it"
        ) from None
    if trained_on != source:
        return None, [f"The promoted version was trained on {trained_on}, so the logs are not compared."]
    return profile, []


def _write(verdict: Verdict, quarantine: Path, report: Path, docs: Path) -> None:
    """Write all three outputs, or none if one cannot be written."""
    with replacing_file(quarantine) as rows, replacing_folder(docs) as folder:
        pq.write_table(verdict.quarantine, rows, compression="zstd", store_schema=False)
        write_page(folder, verdict, quarantine)
        write_json(report, verdict.as_report())


def _advise(verdict: Verdict, docs: Path, promoted_profile: Path) -> str:
    advice = f"Examples are in {docs / 'index.html'}; the bounds are in params.yaml, section validate"
    if "volume_ratio" in verdict.facts:
        advice += f"; removing {promoted_profile} ends the comparison with the promoted version"
    return advice


def _log_summary(verdict: Verdict, quarantine: Path, docs: Path) -> None:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in verdict.reasons.items()) or "none is bad"
    log.info("%s rows, %s in %s: %s", f"{verdict.num_rows:,}", f"{verdict.quarantine.num_rows:,}", quarantine, reasons)
    for note in verdict.notes:
        log.info("%s", note)
    log.info("data docs: %s", docs / "index.html")
