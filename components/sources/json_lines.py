"""JSON lines: one object per line. Arrow reads blocks of one type per column; json reads what is mixed or broken."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from components.errors import InputError
from components.sources.cells import shorten
from components.sources.text import PlainText

BLOCK = 1 << 23  # bytes
_TYPES: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    list: pa.list_(pa.string()),
}
_LINES_FOR_TYPES = 1000


@dataclass(frozen=True)
class JsonLinesFile:
    """A checked text file with one JSON object per line."""

    text: PlainText
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """How messages name the file."""
        return self.text.shown

    def column_names(self) -> list[str]:
        """Return the keys of the first 1000 objects."""
        names = dict.fromkeys(key for _, row in self._head() for key in row)
        if not names:
            raise InputError("holds no events", where=self.shown, expected="one JSON object per line")
        return list(names)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names`; raises InputError at the line that is no JSON object."""
        if self.text.encoding != "utf8":
            raise InputError("is not UTF-8", where=self.shown, expected="UTF-8", todo="Save it as UTF-8")
        schema = self._schema(names)
        first = 1
        for block in self._blocks():
            yield self._parse(block, first, schema, names)
            first += block.count(b"\n")

    def place_of(self, row: int) -> str:
        """Return the line of data row `row`, counted from 1."""
        with self.text.path.open("rb") as stream:
            filled = (number for number, line in enumerate(stream, 1) if line.strip())
            return f"line {next(itertools.islice(filled, row, None))}"

    def _blocks(self) -> Iterator[bytes]:
        with self.text.path.open("rb") as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            while block := stream.read(BLOCK):
                yield block + stream.readline()

    def _head(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for block in self._blocks():
            return itertools.islice(self._objects(block, 1), _LINES_FOR_TYPES)
        return iter(())

    def _schema(self, names: Sequence[str]) -> pa.Schema | None:
        """Return one type per column, None where the first rows mix types."""
        fields = []
        for name in names:
            seen = {type(row[name]) for _, row in self._head() if row.get(name) is not None}
            kind = float if seen == {int, float} else next(iter(seen)) if len(seen) == 1 else None
            if kind not in _TYPES:
                return None
            fields.append(pa.field(name, _TYPES[kind]))
        return pa.schema(fields)

    def _parse(self, block: bytes, first: int, schema: pa.Schema | None, names: Sequence[str]) -> pa.RecordBatch:
        if schema is not None and block.strip():
            options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            read = pa_json.ReadOptions(block_size=len(block) + 1, use_threads=False)
            try:
                table = pa_json.read_json(pa.BufferReader(block), read_options=read, parse_options=options)
            except pa.ArrowInvalid:
                table = None  # mixed ids, or a broken line that json below will name
            # Arrow takes two objects on one line for two rows, and one object over two lines for one: json does not.
            if table is not None and table.num_rows == block.rstrip(b"\r\n").count(b"\n") + 1:
                return table.select(list(names)).combine_chunks().to_batches()[0]
        rows = [row for _, row in self._objects(block, first)]
        return pa.record_batch([_column([row.get(name) for row in rows]) for name in names], names=list(names))

    def _objects(self, block: bytes, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line, object); raises InputError at a line that is no JSON object."""
        for line, text in enumerate(block.split(b"\n"), first):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise self._broken(line, text, f"is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise self._broken(line, text, "is not a JSON object")
            yield line, row

    def _broken(self, line: int, text: bytes, what: str) -> InputError:
        shown = shorten(text.decode("utf-8", "replace").strip())
        return InputError(what, where=f"{self.shown}, line {line}", observed=shown, expected="one JSON object per line")


def _column(values: list[Any]) -> pa.Array:
    """Return values of one JSON type as Arrow has them, mixed ones as text: 7 and "a7" are the ids "7" and "a7"."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or kinds <= {float, int} or kinds <= {str} or kinds <= {bool} or kinds <= {list}:
        try:
            return pa.array(values)
        except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):  # an integer past 64 bits, a list of mixed types
            pass
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:  # noqa: ANN401 - whatever json can read
    """Return a value as text, a list as components/sources/events.py joins it."""
    if isinstance(value, list):
        return "|".join(text for text in map(_text, value) if text is not None)
    return value if value is None or isinstance(value, str) else json.dumps(value)
