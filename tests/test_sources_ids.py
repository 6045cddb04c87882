"""Ids: int64 only where nothing is lost, and a mapping that only ever appends."""

from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import MadeFile

from components.errors import InputError
from components.sources.cells import Cells
from components.sources.ids import IdColumn, keys_of_integers, number_ids


def column(*chunks: list[object] | pa.Array) -> IdColumn:
    ids, row = IdColumn(), 0
    for chunk in chunks:
        values = pa.array(chunk) if isinstance(chunk, list) else chunk
        ids.add(Cells(values, "id", row, MadeFile()))
        row += len(values)
    return ids


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-5", "0", str(2**63 - 1), str(-(2**63))], [1, -5, 0, 2**63 - 1, -(2**63)]),
        (pa.array([1, -5, 2**62]), [1, -5, 2**62]),
        (pa.array([1.0, 2.0, 2.0**53]), [1, 2, 2**53]),
        (pa.array([1, 2], pa.uint64()), [1, 2]),
        (pa.array(["12", "7", "12"]).dictionary_encode(), [12, 7, 12]),
        ([" 1", "2 "], [1, 2]),
    ],
)
def test_ids_that_keep_their_digits_stay_integers(values: list[object] | pa.Array, expected: list[int]):
    numbered = number_ids(column(values), IdColumn(), None)
    assert numbered.keys is None
    assert numbered.ids.tolist() == expected


@pytest.mark.parametrize("odd", ["0123", "0x1f", "-0", "+1", "1.0", "9223372036854775808", "1e3", "a7", "\u0661"])
def test_one_id_that_is_not_exactly_an_integer_makes_the_column_text(odd: str):
    numbered = number_ids(column(["5", "6"], [odd], ["5"]), IdColumn(), None)
    assert numbered.keys is not None
    assert numbered.keys["key"].to_pylist() == ["5", "6", odd]
    assert numbered.ids.tolist() == [1, 2, 3, 1]


def test_uuids_are_ids_written_as_everybody_writes_them():
    ann, bob = UUID(int=1), UUID(int=2)
    numbered = number_ids(column(pa.array([ann, bob, ann], pa.uuid())), IdColumn(), None)
    assert numbered.keys is not None
    assert numbered.keys["key"].to_pylist() == [str(ann), str(bob)]
    assert numbered.ids.tolist() == [1, 2, 1]


def test_unsigned_integers_past_63_bits_are_kept_as_text():
    numbered = number_ids(column(pa.array([2**63 + 1, 4], pa.uint64())), IdColumn(), None)
    assert numbered.keys is not None
    assert numbered.keys["key"].to_pylist() == [str(2**63 + 1), "4"]


@pytest.mark.parametrize(
    "values",
    [
        ["1", ""],
        ["1", "   "],
        ["1", "NaN"],
        ["1", "nan"],
        ["1", "NULL"],
        ["1", "None"],
        ["1", "\\N"],
        ["1", None],
        pa.array([1.0, float("nan")]),
        pa.array([1, None]),
        pa.nulls(2),
    ],
)
def test_a_missing_id_is_named_with_its_line(values: list[object] | pa.Array):
    bad = 0 if isinstance(values, pa.NullArray) else 1
    with pytest.raises(InputError, match=rf"made\.csv, line {bad + 2}, column id: is missing"):
        column(values)


@pytest.mark.parametrize("values", [pa.array([1.5]), pa.array([2.0**53 * 4]), pa.array([True]), pa.array([[1]])])
def test_what_cannot_be_an_id_is_refused(values: pa.Array):
    with pytest.raises(InputError, match=r"line 2, column id"):
        column(values)


def test_the_items_of_a_table_are_numbered_after_those_of_the_log():
    numbered = number_ids(column(["b", "a"]), column(["c", "a"]), None)
    assert numbered.ids.tolist() == [1, 2]
    assert numbered.others.tolist() == [3, 2]


def test_integers_keep_their_numbers_when_the_log_turns_to_text():
    known = keys_of_integers(pa.array([7, 3, 7]))
    numbered = number_ids(column(["new", "3", "7"]), IdColumn(), known)
    assert numbered.ids.tolist() == [8, 3, 7]


def test_only_the_integers_of_a_mixed_column_can_be_kept():
    ids = column(["4", "x", "05", "9"])
    mask = ids.mask_integers()
    assert mask.tolist() == [True, False, False, True]
    assert ids.only(pa.array(mask)).integers().to_pylist() == [4, 9]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("ab01", min_size=1, max_size=3), max_size=8), min_size=1, max_size=4))
def test_an_id_never_changes_its_number_whatever_comes_later(logs: list[list[str]]):
    known, numbers = None, {}
    for log in logs:
        numbered = number_ids(column([f"k{key}" for key in log]), IdColumn(), known)
        if numbered.keys is None:
            continue
        for key, number in zip(log, numbered.ids.tolist(), strict=True):
            assert numbers.setdefault(key, number) == number
        assert len(set(numbered.keys["id"].to_pylist())) == numbered.keys.num_rows
        assert known is None or numbered.keys.slice(0, known.num_rows).equals(known)
        known = numbered.keys
