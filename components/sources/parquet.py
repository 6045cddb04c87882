"""Parquet files: types are the file's own, so nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import InputError
from components.sources.cells import shorten
from components.sources.fetch import LocalFile

_ROWS = 1 << 18


@dataclass(frozen=True)
class ParquetTable:
    """One Parquet file."""

    file: LocalFile
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """How messages name the file."""
        return self.file.shown

    @cached_property
    def _opened(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.file.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._corrupt(error) from None

    def column_names(self) -> list[str]:
        """Return the top-level columns."""
        return list(self._opened.schema_arrow.names)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names`; raises InputError where a page is corrupt."""
        try:
            yield from self._opened.iter_batches(batch_size=_ROWS, columns=list(names))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._corrupt(error) from None

    def place_of(self, row: int) -> str:
        """Return the row, counted from 1."""
        return f"row {row + 1}"

    def _corrupt(self, error: Exception) -> InputError:
        return InputError(
            "is not a readable Parquet file",
            where=self.shown,
            observed=shorten(str(error), 120),
            todo="Fetch or write it again",
        )
