"""User and item ids: int64 where the log's own ids are, else numbered by a mapping that only ever appends.

An id column stays int64 as long as *every* id survives text -> int64 -> text unchanged. "00123", "1.0" and 2**63 do
not, so one such id makes the whole column text, and its ids get numbers in order of first appearance. Arrow alone
would read "0123" as 123 and "0x1f" as 31 (tried with 26.0): hence the round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.sources.cells import Cells, first_true

# What exporters write for "no value". Read as an id, it would merge all anonymous events into one giant user.
MISSING = pa.array(["", "nan", "NaN", "NAN", "NaT", "null", "NULL", "None", "<NA>", "\\N"])

KEYS = pa.schema([pa.field("id", pa.int64()), pa.field("key", pa.string())])


class IdColumn:
    """Collects the chunks of one id column, in order: int64 chunks, or text as dictionary chunks."""

    def __init__(self) -> None:
        self.is_text = False
        self._chunks: list[pa.Array] = []

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def add(self, cells: Cells) -> None:
        """Append one chunk; raises InputError at a missing id."""
        ids = _clean(cells)
        exact = exact_int64(ids)
        if exact is not None and not self.is_text:
            self._chunks.append(exact)
            return
        if not self.is_text:
            self.is_text, self._chunks = True, [_to_text(chunk) for chunk in self._chunks]
        self._chunks.append(_to_text(ids))

    def integers(self) -> pa.ChunkedArray:
        """Return all ids as int64; only while the column is not text."""
        return pa.chunked_array(self._chunks, pa.int64())

    def texts(self) -> pa.ChunkedArray:
        """Return all ids as dictionary-encoded text, whatever they are."""
        chunks = self._chunks if self.is_text else map(_to_text, self._chunks)
        return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))

    def only(self, mask: pa.Array) -> IdColumn:
        """Return a column of the ids where `mask` (n,) is true; int64 again where all of those are."""
        kept = self.texts().cast(pa.string()).combine_chunks().filter(mask)
        exact = exact_int64(kept)
        column = IdColumn()
        column.is_text = exact is None
        column._chunks = [kept.dictionary_encode() if exact is None else exact]
        return column

    def mask_integers(self) -> np.ndarray:
        """Return which ids are int64 exactly, as bool (n,). For item tables: it loops over rows."""
        if not self.is_text:
            return np.ones(len(self), bool)
        return np.array([_is_int64(text) for text in self.texts().to_pylist()], bool)


@dataclass(frozen=True)
class Numbered:
    """Ids as int64; `keys` (schema KEYS) is None where the log's own ids are the canonical ones."""

    ids: np.ndarray
    others: np.ndarray
    keys: pa.Table | None


def number_ids(column: IdColumn, others: IdColumn, known: pa.Table | None) -> Numbered:
    """Number the ids of a log's `column`, and of an item table's `others`, keeping every number that `known` gives.

    New ids come after the known ones, in order of first appearance: the log's first, then the item table's. `others`
    must be int64 where `column` is and `known` is None.
    """
    if not column.is_text and known is None:
        return Numbered(column.integers().to_numpy(), others.integers().to_numpy(), None)
    both = pa.chunked_array([*column.texts().chunks, *others.texts().chunks], pa.dictionary(pa.int32(), pa.string()))
    chunks = both.unify_dictionaries().chunks
    appearing = chunks[-1].dictionary if chunks else pa.array([], pa.string())
    keys = _append(known if known is not None else KEYS.empty_table(), appearing)
    number_of = keys["id"].to_numpy()[pc.index_in(appearing, keys["key"].combine_chunks()).to_numpy()]
    numbers = [number_of[chunk.indices.to_numpy()] for chunk in chunks]
    ids = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
    return Numbered(ids[: len(column)], ids[len(column) :], keys)


def keys_of_integers(ids: pa.Array) -> pa.Table:
    """Return the mapping under which int64 ids keep their numbers when their log turns to text ids."""
    ids = pc.unique(ids).sort()
    return pa.table([ids, ids.cast(pa.string())], schema=KEYS)


def exact_int64(ids: pa.Array) -> pa.Array | None:
    """Return `ids` as int64 when every one of them keeps its text, else None."""
    if ids.type == pa.int64():
        return ids
    try:
        integers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return integers if integers.cast(pa.string()).equals(ids) else None


def _to_text(ids: pa.Array) -> pa.Array:
    """Return ids as dictionary-encoded text; int64 loses nothing, it came from exactly that text."""
    return ids.cast(pa.string()).dictionary_encode()


def _append(known: pa.Table, appearing: pa.Array) -> pa.Table:
    new = appearing.filter(pc.invert(pc.is_in(appearing, known["key"].combine_chunks())))
    start = pc.max(known["id"]).as_py() + 1 if known.num_rows else 1
    numbers = pa.array(np.arange(start, start + len(new), dtype=np.int64))
    return pa.concat_tables([known.cast(KEYS), pa.table([numbers, new], schema=KEYS)]).combine_chunks()


def _is_int64(text: str) -> bool:
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def _clean(cells: Cells) -> pa.Array:
    """Return int64 or trimmed text; raises InputError at a missing id, or where the type cannot be one."""
    values, kind = cells.values, cells.values.type
    if pa.types.is_null(kind) or pa.types.is_dictionary(kind) or pa.types.is_large_string(kind):
        values = values.cast(pa.string())
    elif pa.types.is_floating(kind):
        values = _whole_numbers(cells)
    elif pa.types.is_integer(kind):
        values = _widen(values)
    elif isinstance(kind, pa.UuidType):
        values = _write_out(values)
    elif not pa.types.is_string(kind):
        raise cells.error(0, "cannot be an id", expected=f"text or whole numbers instead of {kind}")
    if values.null_count:
        raise _missing(cells, first_true(values.is_null()) or 0)
    if values.type == pa.int64():
        return values
    values = pc.utf8_trim_whitespace(values)
    bad = first_true(pc.is_in(values, MISSING))
    if bad is not None:
        raise _missing(cells, bad)
    return values


def _widen(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:  # uint64 past 2**63: keep them exactly, as text
        return values.cast(pa.string())


def _whole_numbers(cells: Cells) -> pa.Array:
    """Accept 1.0 as 1: what pandas makes of integer ids; beyond 2**53 such ids have already lost digits."""
    values = cells.values.cast(pa.float64())
    bad = first_true(pc.or_kleene(pc.is_nan(values), values.is_null()).fill_null(True))
    if bad is not None:
        raise _missing(cells, bad)
    wrong = first_true(pc.or_(pc.not_equal(pc.floor(values), values), pc.greater(pc.abs(values), float(2**53))))
    if wrong is not None:
        raise cells.error(wrong, "is not a whole number", expected="an id", todo="Store ids as text or integers")
    return values.cast(pa.int64())


def _missing(cells: Cells, index: int) -> Exception:
    return cells.error(index, "is missing", expected="an id", todo="Leave out the rows that have none")


def _write_out(uuids: pa.Array) -> pa.Array:
    """Return UUIDs as text, each written once however often it comes."""
    coded = uuids.storage.dictionary_encode()
    texts = pa.array([str(UUID(bytes=one)) for one in coded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(coded.indices, texts).cast(pa.string())
