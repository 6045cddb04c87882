"""Timestamps: unit by magnitude, ISO 8601, order below the second, and what is refused."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from made_sources import MadeFile

from components.errors import InputError
from components.sources.cells import Cells
from components.sources.times import TimeColumn, Times

NOON = 1_704_110_400  # 2024-01-01 12:00:00 UTC


def times(*chunks: list[object] | pa.Array, unit: str = "auto") -> Times:
    column, row = TimeColumn(unit), 0
    for chunk in chunks:
        values = pa.array(chunk) if isinstance(chunk, list) else chunk
        column.add(Cells(values, "ts", row, MadeFile()))
        row += len(values)
    return column.finish()


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (1_000, "ms"), (1_000_000, "us")])
def test_the_unit_is_told_by_the_magnitude_of_the_median_and_said(factor: int, unit: str):
    read = times([str(NOON * factor), str((NOON + 1) * factor)], ["0"])
    assert read.seconds.tolist() == [NOON, NOON + 1, 0]
    assert read.unit == unit
    assert "median" in read.reason


def test_the_unit_can_be_overridden():
    assert times(["5000", "7999"], unit="ms").seconds.tolist() == [5, 7]
    assert times(["5000"]).seconds.tolist() == [5000]


def test_nanoseconds_are_refused_not_guessed():
    with pytest.raises(InputError, match=r"too large.*Divide nanoseconds by 1000"):
        times([str(NOON * 10**9)])


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01T12:00:00Z",
        "2024-01-01 12:00:00",
        "2024-01-01T12:00",
        "2024-01-01T14:00:00+02:00",
        "2024-01-01T04:00:00.25-0800",
        "2024-01-01T12:00:00.123456789Z",
        " 2024-01-01T12:00:00.999 ",
    ],
)
def test_iso_8601_is_read_as_utc_where_it_names_no_zone(text: str):
    assert times([text]).seconds.tolist() == [NOON]


def test_zoned_and_zoneless_iso_may_be_mixed_and_a_date_is_midnight():
    assert times(["2024-01-01", "2024-01-01T01:00:00+01:00"]).seconds.tolist() == [NOON - 43_200] * 2


@pytest.mark.parametrize(
    "values",
    [
        pa.array([dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)]),
        pa.array([NOON * 10**9], pa.timestamp("ns")),
        pa.array([NOON], pa.int32()),
        pa.array([float(NOON) + 0.5]),
        pa.array([str(NOON) + ".75"]),
    ],
)
def test_typed_columns_and_fractions_of_seconds_are_read(values: pa.Array):
    assert times(values).seconds.tolist() == [NOON]


def test_events_of_one_second_keep_the_order_of_their_milliseconds():
    order = times([str(NOON * 1000 + fine) for fine in (900, 100, 500, 100)]).order
    assert order is not None
    assert order.tolist() == [1, 3, 2, 0]


def test_negative_and_far_future_times_parse_because_validation_judges_them():
    assert times(["-5", str(NOON), "90000000000"]).seconds.tolist() == [-5, NOON, 90_000_000_000]
    assert times([str(NOON), "-1"], unit="ms").seconds.tolist() == [NOON // 1000, -1]


@pytest.mark.parametrize(
    ("chunks", "unit", "line", "what"),
    [
        ((["1", "2"], ["3", "yesterday"]), "auto", 5, "yesterday.*expected seconds"),
        ((["yesterday"],), "auto", 2, "not a timestamp"),
        ((["1", ""],), "auto", 3, "is missing"),
        (([1, None],), "auto", 3, "is missing"),
        ((["1", "nan"],), "auto", 3, "not a time"),
        ((["1.5", "inf"],), "auto", 3, "not a time"),
        ((["1", str(-(2**63))],), "auto", 3, "not a time"),
        ((["1", "2024-01-01"],), "auto", 3, "One file has one kind"),
        ((["2024-01-01", "2024-02-30"],), "auto", 3, "2024-02-30"),
        ((["2024-01-01", "5"],), "iso", 3, "expected ISO 8601"),
        ((["2024-01-01"],), "s", 2, r"expected a number \(s\)"),
        (([True],), "auto", 2, "not a timestamp"),
    ],
)
def test_what_is_no_time_is_named_with_its_line(chunks: tuple[list[object], ...], unit: str, line: int, what: str):
    with pytest.raises(InputError, match=rf"made\.csv, line {line}, column ts: .*{what}"):
        times(*chunks, unit=unit)


def test_no_rows_give_no_times():
    assert times().seconds.dtype == np.int64
