"""Delimited text (CSV, TSV, `::`): every cell is read as text by pyarrow, so that no id loses its zeros.

Arrow counts rows, not lines. So on the way to an error, and only there, the file is read again with the csv module,
which knows the line of a record that blank lines or line breaks inside quotation marks have moved.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv

from components.errors import InputError
from components.sources.cells import shorten
from components.sources.text import PlainText

BLOCK = 1 << 23  # bytes; also the longest row
# Pretty names, and what a file may be separated by instead of what its name says.
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "\x1f": "'::'"}


@dataclass(frozen=True)
class DelimitedFile:
    """A checked text file with rows; `header` gives the names where the file has no header line."""

    text: PlainText
    delimiter: str
    header: tuple[str, ...] | None = None
    quoted: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """How messages name the file."""
        return self.text.shown

    def column_names(self) -> list[str]:
        """Return the names in the header line; raises InputError where there is none, or it is cut otherwise."""
        if self.header is not None:
            return list(self.header)
        for _, names in self._records():
            return names
        raise InputError("is empty", where=self.shown, expected="a header line and events")

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names` as text; raises InputError at a ragged row or an open quotation mark."""
        if self.text.encoding != "utf8":
            self.notes.append(f"{self.shown} is not UTF-8: read as Latin-1")
        if self.quoted and self.text.odd_quotes:
            self._check_closed()
        if next(itertools.islice(self._records(), 0 if self.header else 1, None), None) is None:
            return  # Arrow calls a header without a line end an error
        try:
            yield from self._arrow_batches(names)
        except pa.ArrowInvalid as error:
            self._diagnose(error)

    def place_of(self, row: int) -> str:
        """Return the line of data row `row`, counted from 1, the header included."""
        first = 0 if self.header is not None else 1
        for number, (line, _) in enumerate(self._records()):
            if number == row + first:
                return f"line {line}"
        return f"row {row + 1}"

    def _arrow_batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        read = pa_csv.ReadOptions(block_size=BLOCK, encoding=self.text.encoding, column_names=self.header)
        parse = pa_csv.ParseOptions(
            delimiter=self.delimiter, quote_char='"' if self.quoted else False, newlines_in_values=self.quoted
        )
        convert = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=list(names),
            null_values=[],
            strings_can_be_null=False,
        )
        with pa.OSFile(str(self.text.path)) as source:
            yield from pa_csv.open_csv(source, read_options=read, parse_options=parse, convert_options=convert)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line where it starts, fields) of every record that is not an empty line, the header included."""
        csv.field_size_limit(1 << 30)  # its 128 KiB would hide what an open quotation mark swallowed
        encoding = "utf-8-sig" if self.text.encoding == "utf8" else self.text.encoding
        with self.text.path.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(
                stream, delimiter=self.delimiter, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
            )
            start = 1
            for record in reader:
                if record:
                    yield start, record
                start = reader.line_num + 1

    def _diagnose(self, error: pa.ArrowInvalid) -> NoReturn:
        """Turn Arrow's complaint into the line of the first ragged row."""
        expected = len(self.column_names())
        for line, record in self._records():
            if len(record) != expected:
                raise InputError(
                    "is a ragged row",
                    where=f"{self.shown}, line {line}",
                    observed=f"{len(record)} fields ({shorten(self.delimiter.join(record))})",
                    expected=f"{expected} separated by {SEPARATORS.get(self.delimiter, self.delimiter)}",
                    todo="Repair or remove the row",
                ) from None
        raise InputError("cannot be parsed", where=self.shown, observed=shorten(str(error), 160)) from None

    def _check_closed(self) -> None:
        """Raise InputError where a quotation mark is never closed: Arrow would swallow all rows after it."""
        last = max((line for line, _ in self._records()), default=1)
        with self.text.path.open(encoding=self.text.encoding, newline="") as stream:
            try:
                for _ in csv.reader(stream, delimiter=self.delimiter, strict=True):
                    pass
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise InputError(
                        "opens a quotation mark that is never closed",
                        where=f"{self.shown}, line {last}",
                        todo="Close it, or fetch the file again if it was cut",
                    ) from None
