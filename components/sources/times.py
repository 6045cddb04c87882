"""Timestamps: seconds, milliseconds or microseconds, told apart by magnitude, or ISO 8601. Seconds UTC come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.errors import InputError
from components.sources.cells import Cells, first_failure, first_true

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
# 1e11 s is the year 5138, 1e11 ms is 1973: a median below it is seconds. The same step again for ms and us.
_LIMITS = (("s", 1e11), ("ms", 1e14), ("us", 1e17))
_EXPECTED = {"auto": "seconds, milliseconds, microseconds or ISO 8601", "iso": "ISO 8601"}
_ZONED = r":\d{2}.*([Zz]|[+-]\d{2}(:?\d{2})?)$"
_MISSING_TIME = np.iinfo(np.int64).min  # NaT written as a number


@dataclass(frozen=True)
class Times:
    """Seconds since 1970 UTC (n,); `order` sorts by the finer source time, None where that is seconds already."""

    seconds: np.ndarray
    order: np.ndarray | None
    unit: str
    reason: str

    def only(self, kept: np.ndarray) -> Times:
        """Return the times where `kept` (n,) is true, in the same order among themselves."""
        order = self.order
        if order is not None:
            order = (np.cumsum(kept) - 1)[order[kept[order]]]
        return replace(self, seconds=self.seconds[kept], order=order)


class TimeColumn:
    """Collects the chunks of the timestamp column; the unit is decided over all of them at the end."""

    def __init__(self, unit: str = "auto") -> None:
        self._wanted = unit
        self._calendar: bool | None = None if unit == "auto" else unit == "iso"
        self._chunks: list[np.ndarray] = []
        self._name = "timestamp"

    def add(self, cells: Cells) -> None:
        """Append one chunk; raises InputError at a value that is no timestamp, or of the other kind than before."""
        self._name = f"{cells.file.shown}, column {cells.name}"
        values = _trimmed(cells)
        if self._calendar is None and len(values):
            self._calendar = _looks_like_calendar(values)
        expected = _EXPECTED.get(self._wanted, f"a number ({self._wanted})")
        parse = _parse_calendar if self._calendar else _parse_number
        if pa.types.is_null(values.type) or values.null_count:
            raise cells.error(first_true(values.is_null()) or 0, "is missing", expected=expected)
        try:
            chunk = parse(values)
        except pa.ArrowInvalid:
            raise self._wrong(cells, values, parse, expected) from None
        bad = np.flatnonzero(chunk == _MISSING_TIME) if chunk.dtype == np.int64 else np.flatnonzero(~np.isfinite(chunk))
        if len(bad):
            raise cells.error(int(bad[0]), "is not a time", expected=expected)
        self._chunks.append(chunk)

    def _wrong(self, cells: Cells, values: pa.Array, parse: Callable[[pa.Array], object], expected: str) -> InputError:
        todo = None if self._wanted != "auto" else "One file has one kind of timestamp; see --timestamp-unit"
        return cells.error(first_failure(values, parse), "is not a timestamp", expected=expected, todo=todo)

    def finish(self) -> Times:
        """Return all times; raises InputError where no known unit fits their magnitude."""
        raw = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int64)
        self._chunks = []
        if self._calendar:
            return Times(raw // PER_SECOND["us"], np.argsort(raw, kind="stable"), "iso", "ISO 8601, UTC where no zone")
        unit, reason = (self._wanted, "as told") if self._wanted != "auto" else self._by_magnitude(raw)
        fine = unit != "s" or raw.dtype == np.float64
        seconds = np.floor_divide(raw, PER_SECOND[unit]).astype(np.int64)
        return Times(seconds, np.argsort(raw, kind="stable") if fine else None, unit, reason)

    def _by_magnitude(self, raw: np.ndarray) -> tuple[str, str]:
        median = float(np.median(np.abs(raw.astype(np.float64)))) if len(raw) else 0.0
        for unit, limit in _LIMITS:
            if median < limit:
                return unit, f"the median is {median:.4g}"
        raise InputError(
            "is too large for a timestamp",
            where=self._name,
            observed=f"a median of {median:.4g}",
            expected="seconds, milliseconds or microseconds since 1970",
            todo="Divide nanoseconds by 1000, or say --timestamp-unit",
        )


def _trimmed(cells: Cells) -> pa.Array:
    values = cells.values
    if pa.types.is_dictionary(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.string())
    if not pa.types.is_string(values.type):
        return values
    values = pc.utf8_trim_whitespace(values)
    empty = first_true(pc.equal(values, ""))
    if empty is not None:
        raise cells.error(empty, "is missing", expected="a timestamp", todo="Leave out the rows that have none")
    return values


def _looks_like_calendar(values: pa.Array) -> bool:
    if pa.types.is_temporal(values.type):
        return True
    if not pa.types.is_string(values.type):
        return False
    try:
        _parse_number(values[:1])
    except pa.ArrowInvalid:
        return True
    return False


def _parse_number(values: pa.Array) -> np.ndarray:
    """Return int64 where every value is whole, else float64; raises pa.ArrowInvalid."""
    if pa.types.is_integer(values.type):
        return _numpy(values.cast(pa.int64()))
    if not pa.types.is_string(values.type) and not pa.types.is_floating(values.type):
        raise pa.ArrowInvalid(f"{values.type} is not a number")
    try:
        return _numpy(values.cast(pa.int64()))
    except pa.ArrowInvalid:
        return _numpy(values.cast(pa.float64()))


def _parse_calendar(values: pa.Array) -> np.ndarray:
    """Return microseconds since 1970 UTC as int64; raises pa.ArrowInvalid."""
    if pa.types.is_temporal(values.type):
        return _numpy(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()))
    if not pa.types.is_string(values.type):
        raise pa.ArrowInvalid(f"{values.type} is not ISO 8601")
    values = pc.replace_substring_regex(values, r"(\.\d{6})\d+", r"\1")  # Arrow refuses more digits than microseconds
    zoned = pc.match_substring_regex(values, _ZONED)
    result = np.empty(len(values), np.int64)
    mask = _numpy(zoned)
    result[mask] = _numpy(values.filter(zoned).cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    result[~mask] = _numpy(values.filter(pc.invert(zoned)).cast(pa.timestamp("us")).cast(pa.int64()))
    return result


def _numpy(values: pa.Array) -> np.ndarray:
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array
