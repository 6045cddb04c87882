"""The expectation suites: what a log must look like, as data. `components/validation.py` runs them.

Three suites, each over the smallest table on which its question is a plain one:

    types   one row per partition file, one column per log column holding its Arrow type
    rows    one row per event; a row that fails is quarantined under the expectation's name
    log     one row in all: the facts of the log after the quarantine; one that fails stops the pipeline

What a single row cannot say about itself (is it a repeat, is its item in the item table) is computed beforehand as a
boolean column, so that Great Expectations judges it like any other column and the data docs show it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.expectations.repeats import find_repeats
from components.interactions import INTERACTIONS
from components.settings import ValidateSettings

EVENT = ["user_id", "item_id", "timestamp", "action"]  # two rows equal in these are the same event


@dataclass(frozen=True)
class Expectation:
    """One expectation of a suite.

    name:    what is wrong where it fails; the reason in the quarantine and in the reports
    claim:   what must hold, as the data docs say it
    kind:    class in great_expectations.expectations
    options: its arguments
    wanted:  the value or bound alone, for the sentence that stops the pipeline (suites types and log)
    """

    name: str
    claim: str
    kind: str
    column: str
    options: dict[str, Any] = field(default_factory=dict)
    wanted: str = ""


def type_suite() -> list[Expectation]:
    """Every partition has the canonical columns, in order, with their types."""
    names = ", ".join(INTERACTIONS.names)
    suite = [_in_set("columns", f"every partition has the columns {names}", "columns", names)]
    for column in INTERACTIONS:
        claim = f"{column.name} is {column.type} in every partition"
        suite.append(_in_set(f"{column.name}_type", claim, column.name, str(column.type)))
    return suite


def row_suite(settings: ValidateSettings, *, has_items: bool) -> list[Expectation]:
    """Each event on its own: nothing missing, times and ratings plausible, no repeat, item known where items are."""
    first, last = settings.min_timestamp, settings.max_timestamp
    low, high = settings.min_rating, settings.max_rating
    suite = [_not_null(column) for column in EVENT]
    suite += [
        _between(
            "timestamp_out_of_range",
            f"timestamp lies in [{first}, {last}) UTC",
            "timestamp",
            min_value=_seconds(first),
            max_value=_seconds(last),
            strict_max=True,
        ),
        _between(
            "rating_out_of_range",
            f"rating, where there is one, lies in [{low:g}, {high:g}]; infinity does not",
            "rating",
            min_value=float(np.float32(low)),  # ratings are float32: 0.1 read back is 0.10000000149
            max_value=float(np.float32(high)),
        ),
        _in_set("rating_nan", "rating, where there is one, is a number", "rating_is_number", True),
        _in_set("duplicate", f"no earlier row has the same {', '.join(EVENT)}", "is_first", True),
    ]
    if has_items:
        suite.append(_in_set("unknown_item", "item_id is in the item table", "item_in_table", True))
    return suite


def log_suite(settings: ValidateSettings, *, compared: bool) -> list[Expectation]:
    """The log as a whole, after the quarantine; `compared` adds the comparison with the promoted version's profile."""
    suite = [
        _at_most("bad_fraction", "rows in the quarantine / all rows", settings.max_bad_fraction),
        _at_most("month_bad_fraction", "the same of the worst month", settings.max_month_bad_fraction),
        _at_least("num_events", "events", settings.min_events),
        _at_least("num_users", "users", settings.min_users),
        _at_least("num_items", "items", settings.min_items),
        _at_most("tied_share", "events at the same second as another event of their user", settings.max_tied_share),
    ]
    if compared:
        suite += [
            _at_least("volume_ratio", "events / events of the promoted version", settings.min_volume_ratio),
            _at_most("new_item_share", "items the promoted version did not have", settings.max_new_item_share),
            _at_most("new_user_share", "users the promoted version did not have", settings.max_new_user_share),
            _at_most(
                "action_shift", "total variation from the promoted version's action mix", settings.max_action_shift
            ),
        ]
    return suite


def type_frame(schemas: dict[str, pa.Schema]) -> pd.DataFrame:
    """Return one row per partition file: its name and column names, and each canonical column's type or 'missing'."""
    rows = [
        {"partition": file, "columns": ", ".join(schema.names)}
        | {name: str(schema.field(name).type) if name in schema.names else "missing" for name in INTERACTIONS.names}
        for file, schema in schemas.items()
    ]
    return pd.DataFrame(rows)


def event_frame(log: pa.Table, months: np.ndarray, items: pa.Array) -> pd.DataFrame:
    """Return some months of the log as a frame, row i = row i of `log`, with the columns that row_suite() judges.

    log: INTERACTIONS rows in log order, the first of a month's equal events being the one that is kept.
    months: a number for the month of each row, int64. Equal events have one time, so they lie in one month.
    items: the item table's ids (int64); empty where there is no item table.
    """
    log = log.select(INTERACTIONS.names)
    actions = log.column("action").dictionary_encode()  # a few names: 4 bytes a row instead of a string
    frame = log.set_column(log.column_names.index("action"), "action", actions).to_pandas(types_mapper=_nullable)
    frame["rating_is_number"] = ~_is_nan(log.column("rating"))
    frame["month"] = months
    frame["is_first"] = ~find_repeats(frame, [*EVENT, "month"], keep="first")
    if len(items):
        # a null id is judged once, by item_id_null: it counts as known here
        known = pc.or_(pc.is_null(log.column("item_id")), pc.is_in(log.column("item_id"), value_set=items))
        frame["item_in_table"] = known.to_numpy()
    return frame


def _nullable(kind: pa.DataType) -> pd.api.extensions.ExtensionDtype | None:
    """Keep int64 exact beside nulls; pandas' default turns the column into float64, which merges ids above 2**53."""
    return pd.Int64Dtype() if kind == pa.int64() else None


def _is_nan(column: pa.ChunkedArray) -> np.ndarray:
    nan: np.ndarray = pc.fill_null(pc.is_nan(column), False).to_numpy()
    return nan


def _seconds(day: dt.date) -> int:
    return int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())


def _not_null(column: str) -> Expectation:
    return Expectation(f"{column}_null", f"{column} is never null", "ExpectColumnValuesToNotBeNull", column)


def _in_set(name: str, claim: str, column: str, only: str | bool) -> Expectation:
    return Expectation(name, claim, "ExpectColumnValuesToBeInSet", column, {"value_set": [only]}, str(only))


def _between(name: str, claim: str, column: str, **options: object) -> Expectation:
    return Expectation(name, claim, "ExpectColumnValuesToBeBetween", column, options)


def _at_least(fact: str, what: str, bound: float) -> Expectation:
    wanted = f"at least {bound:,}"
    return Expectation(fact, f"{what}: {wanted}", "ExpectColumnMinToBeBetween", fact, {"min_value": bound}, wanted)


def _at_most(fact: str, what: str, bound: float) -> Expectation:
    wanted = f"at most {bound:,}"
    return Expectation(fact, f"{what}: {wanted}", "ExpectColumnMaxToBeBetween", fact, {"max_value": bound}, wanted)
