"""A log of 300 clean events, ways to spoil it, and what validating it leaves behind."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.expectations.verdict import QUARANTINE
from components.files import read_json, write_json
from components.interactions import INTERACTIONS
from components.settings import ValidateSettings
from components.validation import validate

MONTHS = ("2001-09", "2001-10")
ROWS_A_MONTH = 150
NUM_ROWS = 2 * ROWS_A_MONTH
NUM_ITEMS = 60

SETTINGS = ValidateSettings(
    max_bad_fraction=0.01,
    max_month_bad_fraction=0.05,
    min_users=20,
    min_items=20,
    min_events=200,
    min_timestamp=dt.date(1990, 1, 1),
    max_timestamp=dt.date(2100, 1, 1),
    min_rating=0.0,
    max_rating=5.0,
    max_tied_share=0.95,
    min_volume_ratio=0.5,
    max_new_item_share=0.5,
    max_new_user_share=0.8,
    max_action_shift=0.2,
)

Columns = dict[str, list[Any]]


def clean_columns() -> Columns:
    """300 events of 30 users on 60 items, one a minute from 2001-09-30 21:30 on, so that 150 lie in each month."""
    rows = range(NUM_ROWS)
    start = int(dt.datetime(2001, 10, 1, tzinfo=dt.UTC).timestamp()) - 60 * ROWS_A_MONTH
    return {
        "user_id": [row % 30 for row in rows],
        "item_id": [row * 7 % NUM_ITEMS for row in rows],
        "timestamp": [start + 60 * row for row in rows],
        "action": ["view" if row % 4 else "buy" for row in rows],
        "rating": [float(row % 5 + 1) for row in rows],
    }


@dataclass
class Run:
    """A log in a folder of its own, and the outputs of validating it."""

    root: Path

    @property
    def paths(self) -> dict[str, Path]:
        return {
            "data": self.root / "data",
            "quarantine": self.root / "artifacts" / "quarantine.parquet",
            "report": self.root / "reports" / "validation.json",
            "docs": self.root / "reports" / "data_docs",
            "promoted_profile": self.root / "registry" / "profile.json",
            "judged": self.root / "artifacts" / "validated",
        }

    def write(self, columns: Columns, *, items: int = NUM_ITEMS, source: str = "table", **replaced: pa.Table) -> None:
        """Write `columns` as two partitions, row i stays row i; `replaced` holds other tables for `first` or `last`."""
        table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in INTERACTIONS})
        parts = {"first": table.slice(0, ROWS_A_MONTH), "last": table.slice(ROWS_A_MONTH), **replaced}
        for month, part in zip(MONTHS, parts.values(), strict=True):
            folder = self.root / "data" / "interactions" / month
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, folder / "part-0.parquet", store_schema=False)
        ids = pa.array(range(items), pa.int64())
        pq.write_table(pa.table({"item_id": ids}), self.root / "data" / "items.parquet")
        write_json(self.root / "data" / "manifest.json", {"source": source, "path": None, "columns": {}})

    def validate(self, **settings: object) -> None:
        validate(SETTINGS.model_copy(update=settings), **self.paths)

    def promote(self) -> None:
        write_json(self.paths["promoted_profile"], self.report["profile"])

    @property
    def report(self) -> dict[str, Any]:
        return read_json(self.paths["report"])

    @property
    def page(self) -> str:
        return (self.paths["docs"] / "index.html").read_text()

    @property
    def bad_rows(self) -> list[tuple[str, int, str]]:
        table = pq.read_table(self.paths["quarantine"])
        assert table.schema == QUARANTINE
        return [tuple(row.values()) for row in table.to_pylist()]

    def failed(self, suite: str) -> list[str]:
        return [e["name"] for e in self.report["expectations"] if e["suite"] == suite and not e["success"]]


def place(row: int) -> tuple[str, int]:
    """Partition and row of the log's row `row`."""
    return MONTHS[row // ROWS_A_MONTH], row % ROWS_A_MONTH


def changed(row: int, **values: object) -> Columns:
    columns = clean_columns()
    for name, value in values.items():
        columns[name][row] = value
    return columns
