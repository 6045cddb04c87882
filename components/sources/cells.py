"""Columns of a file as read, before they mean anything, and the place of every cell for error messages.

A `TableFile` yields batches of raw columns; `Cells` is one column of one batch that still knows its file and first row,
so that whoever finds a bad value can say file, line and column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from components.errors import InputError


class TableFile(Protocol):
    """A file with named columns: delimited text, JSON lines or Parquet."""

    @property
    def shown(self) -> str:
        """How messages name the file."""

    @property
    def notes(self) -> list[str]:
        """What was decided while reading it."""

    def column_names(self) -> list[str]:
        """Return the names in the file, in its order."""

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names`, row by row in the file's order; raises InputError where the file is broken."""

    def place_of(self, row: int) -> str:
        """Return where data row `row` (from 0) is, as a person counts: 'line 7'; for errors only, so it may be slow."""


@dataclass(frozen=True)
class Cells:
    """One column of one batch; `first_row` is the file's row of `values[0]`."""

    values: pa.Array
    name: str
    first_row: int
    file: TableFile

    def error(self, index: int, what: str, *, expected: str, todo: str | None = None) -> InputError:
        """Return the error that names the cell `values[index]`."""
        place = f"{self.file.shown}, {self.file.place_of(self.first_row + index)}, column {self.name}"
        return InputError(what, where=place, observed=shorten(self.values[index].as_py()), expected=expected, todo=todo)

    def replace(self, values: pa.Array) -> Cells:
        """Return the same place with other values of the same length."""
        return Cells(values, self.name, self.first_row, self.file)


def shorten(value: object, width: int = 60) -> str:
    """Return repr(value), cut to about `width` characters, on one line."""
    text = repr(value)
    return text if len(text) <= width else text[:width] + "..."


def first_true(mask: pa.Array) -> int | None:
    """Return the index of the first true value, None where there is none."""
    index: int = pc.index(mask, pa.scalar(True)).as_py()
    return index if index >= 0 else None


def first_failure(values: pa.Array, parse: Callable[[pa.Array], object]) -> int:
    """Return the index of the first value that `parse` (vectorised, raising pa.ArrowInvalid) refuses, by halving."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            parse(values[low:middle])
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low
