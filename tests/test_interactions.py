"""The canonical store: partitions, order, quarantine, errors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import StateError
from components.interactions import (
    INTERACTIONS,
    list_partitions,
    locate_rows,
    months_of,
    read_interactions,
    read_items,
    read_key_table,
    read_keys,
    read_manifest,
    read_rows,
    write_items,
    write_keys,
    write_partitions,
)


def at(day: str) -> int:
    return int(np.datetime64(day, "s").astype(np.int64))


def events(*rows: tuple[int, int, int]) -> pa.Table:
    users, items, times = zip(*rows, strict=True)
    size = len(rows)
    columns = [users, items, times, pa.array(["view"] * size).dictionary_encode(), pa.array([1.0] * size, pa.float32())]
    return pa.table(columns, names=INTERACTIONS.names)


def test_each_month_is_one_file_and_rows_are_in_time_order_with_ties_in_source_order(tmp_path: Path):
    march, april = at("2024-03-31"), at("2024-04-01")
    write_partitions(tmp_path, events((1, 10, april), (2, 20, march), (3, 30, march), (4, 40, april)))
    assert [path.parent.name for path in list_partitions(tmp_path)] == ["2024-03", "2024-04"]
    log = read_interactions(tmp_path)
    assert log["user_id"].to_pylist() == [2, 3, 1, 4]
    assert log["partition"].to_pylist() == ["2024-03", "2024-03", "2024-04", "2024-04"]
    assert log["row"].to_pylist() == [0, 1, 0, 1]


def test_partitions_have_exactly_the_canonical_schema_and_no_metadata_of_the_writer(tmp_path: Path):
    write_partitions(tmp_path, events((1, 10, 0)))
    assert pq.read_schema(list_partitions(tmp_path)[0]).equals(INTERACTIONS, check_metadata=True)


def test_years_before_christ_and_after_9999_keep_their_order(tmp_path: Path):
    times = [at("12024-01-05"), -(10**11), at("2024-01-05"), at("1969-12-31"), 2**55]
    write_partitions(tmp_path, events(*((number, 1, time) for number, time in enumerate(times))))
    assert read_interactions(tmp_path)["timestamp"].to_pylist() == sorted(times)


def test_months_of_is_utc():
    assert months_of(np.array([0, -1, at("2024-02-29T23:59:59")])).tolist() == ["1970-01", "1969-12", "2024-02"]


def test_quarantined_rows_are_left_out_by_partition_and_row(tmp_path: Path):
    write_partitions(tmp_path, events((1, 10, 0), (2, 20, 1), (3, 30, at("1970-02-01"))))
    bad = tmp_path / "quarantine.parquet"
    pq.write_table(pa.table({"partition": ["1970-01"], "row": [1], "reason": ["because"]}), bad)
    assert read_interactions(tmp_path, quarantine=bad)["user_id"].to_pylist() == [1, 3]
    with pytest.raises(StateError, match="is missing"):
        read_interactions(tmp_path, quarantine=tmp_path / "none.parquet")


def test_keys_and_items_come_back_as_written(tmp_path: Path):
    assert read_keys(tmp_path, "item") is None
    assert read_key_table(tmp_path, "item") is None
    write_keys(tmp_path, "item", pa.table({"id": [1, 2], "key": ["b", "a"]}))
    assert read_keys(tmp_path, "item") == {1: "b", 2: "a"}
    items = pa.table({"item_id": [1, 2], "title": ["B", None], "genres": pa.array([None, None], pa.string())})
    write_items(tmp_path, items)
    assert read_items(tmp_path).equals(items)


def test_a_folder_without_a_log_is_a_state_error_that_says_what_to_run(tmp_path: Path):
    with pytest.raises(StateError, match="python -m components ingest"):
        list_partitions(tmp_path)
    with pytest.raises(StateError, match=r"manifest\.json: is missing"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StateError, match=r"manifest\.json: cannot be read.*dvc checkout"):
        read_manifest(tmp_path)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def test_a_damaged_file_of_the_log_is_named_with_what_to_run(tmp_path: Path):
    with pytest.raises(StateError, match=r"items\.parquet: is missing.*dvc checkout"):
        read_items(tmp_path)
    write_items(tmp_path, pa.table({"item_id": [1], "title": ["A"], "genres": ["B"]}))
    write_keys(tmp_path, "item", pa.table({"id": [1], "key": ["a"]}))
    write_partitions(tmp_path, events((1, 10, 0)))
    for file in tmp_path.rglob("*.parquet"):
        cut_short(file)
    with pytest.raises(StateError, match=r"items\.parquet: cannot be read.*dvc checkout"):
        read_items(tmp_path)
    with pytest.raises(StateError, match=r"item_keys\.parquet: cannot be read.*dvc checkout"):
        read_keys(tmp_path, "item")
    with pytest.raises(StateError, match=r"1970-01/part-0\.parquet: cannot be read.*components ingest"):
        read_interactions(tmp_path)


@pytest.mark.parametrize("spoil", [cut_short, lambda file: pq.write_table(pa.table({"other": [1]}), file)])
def test_a_damaged_quarantine_is_named_with_what_to_run(tmp_path: Path, spoil):
    write_partitions(tmp_path, events((1, 10, 0)))
    bad = tmp_path / "quarantine.parquet"
    pq.write_table(pa.table({"partition": ["1970-01"], "row": [0]}), bad)
    spoil(bad)
    with pytest.raises(StateError, match=r"quarantine\.parquet: cannot be read.*dvc repro validate"):
        read_interactions(tmp_path, quarantine=bad)


def six_days() -> pa.Table:
    return events(*((row, 10 * row, 86_400 * day) for row, day in enumerate((0, 1, 40, 41, 42, 100))))


def made_months(folder: Path) -> Path:
    write_partitions(folder, six_days())
    return folder


def test_only_the_columns_asked_for_are_read_less_the_quarantine(tmp_path: Path):
    data, bad = made_months(tmp_path / "data"), tmp_path / "bad.parquet"
    pq.write_table(pa.table({"partition": ["1970-02", "1970-04"], "row": [1, 0], "reason": ["x", "x"]}), bad)
    log = read_interactions(data, quarantine=bad, columns=("item_id", "timestamp"))
    assert log.column_names == ["item_id", "timestamp"]
    assert log["item_id"].to_pylist() == [0, 10, 20, 40]


@pytest.mark.parametrize("positions", [[0, 5], [1, 2, 4], [3], [0, 1, 2, 3, 4, 5]])
def test_rows_are_found_by_their_position_in_the_whole_log(tmp_path, positions):
    data = made_months(tmp_path)
    rows, places = read_interactions(data).take(positions), locate_rows(data, np.array(positions))
    assert places.to_pylist() == rows.select(["partition", "row"]).to_pylist()
    assert read_rows(data, places).to_pylist() == rows.to_pylist()


def test_no_position_has_no_place(tmp_path: Path):
    assert locate_rows(made_months(tmp_path), np.zeros(0, np.int64)).num_rows == 0


def test_a_log_without_events_has_no_file(tmp_path: Path):
    write_partitions(tmp_path, six_days().slice(0, 0))
    assert not (tmp_path / "interactions").exists()
