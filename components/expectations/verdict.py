"""What validation found out about a log: as a record, as JSON for machines, and as sentences for the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from components.expectations.runner import Judgement

QUARANTINE = pa.schema([("partition", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
WORST_REASONS = 3  # named in a complaint


@dataclass(frozen=True)
class Verdict:
    """The pipeline goes on when there are no `complaints`.

    num_rows:  rows of the log, bad ones included
    notes:     what was not judged, and why
    facts:     numbers about the log after the quarantine, by name
    reasons:   bad rows by reason, most frequent first; a row with two reasons counts under both
    examples:  a few bad rows of each reason
    """

    num_rows: int
    judgements: list[Judgement]
    complaints: list[str]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    profile: dict[str, Any] | None = None
    quarantine: pa.Table = field(default_factory=QUARANTINE.empty_table)
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def as_report(self) -> dict[str, Any]:
        """Return reports/validation.json. Numbers stand at the top, where `dvc metrics show` gives each a column."""
        outcomes = [
            {
                "suite": judgement.suite,
                "name": judgement.expectation.name,
                "column": judgement.expectation.column,
                "claim": judgement.expectation.claim,
                "success": judgement.success,
                "observed": judgement.observed,
            }
            for judgement in self.judgements
        ]
        return {
            "success": not self.complaints,
            "num_rows": self.num_rows,
            "num_quarantined": self.quarantine.num_rows,
            **self.facts,
            "reasons": self.reasons,
            "complaints": self.complaints,
            "notes": self.notes,
            "expectations": outcomes,
            "profile": self.profile,
        }


def count_reasons(rows: list[Judgement]) -> dict[str, int]:
    """Count the bad rows of each reason, most frequent first."""
    counts = [(judgement.expectation.name, len(judgement.rows)) for judgement in rows if len(judgement.rows)]
    return dict(sorted(counts, key=lambda pair: (-pair[1], pair[0])))


def complain(whole: list[Judgement], reasons: dict[str, int]) -> list[str]:
    """Say in a sentence each what stops the pipeline; for bad rows with the most frequent reasons."""
    sentences = []
    for judgement in whole:
        if judgement.success:
            continue
        expectation = judgement.expectation
        sentence = f"{expectation.name} is {judgement.observed:,.6g} and should be {expectation.wanted}"
        if expectation.name in ("bad_fraction", "month_bad_fraction"):
            worst = list(reasons.items())[:WORST_REASONS]
            sentence += f" ({', '.join(f'{reason} {count:,}' for reason, count in worst)})"
        sentences.append(sentence)
    return sentences


def complain_about_types(types: list[Judgement], schemas: pd.DataFrame) -> list[str]:
    """Name the first partition that breaks each expectation, and what it has instead."""
    sentences = []
    for judgement in types:
        if judgement.success:
            continue
        expectation, first = judgement.expectation, schemas.loc[judgement.rows[0]]
        others = f" and {len(judgement.rows) - 1} more" if len(judgement.rows) > 1 else ""
        found = f"{expectation.name} is {first[expectation.column]} in {first['partition']}{others}"
        sentences.append(f"{found} and should be {expectation.wanted}")
    return sentences
