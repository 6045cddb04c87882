"""Append mode: what a night adds, leaves alone and replaces, and that the nights together are the log read at once."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import __main__ as command_line
from components.errors import InputError, SettingsError
from components.files import hash_files
from components.ingestion import Change, ingest
from components.interactions import (
    list_months,
    list_partitions,
    locate_rows,
    read_interactions,
    read_items,
    read_keys,
    read_manifest,
    read_rows,
)
from components.settings import IngestSettings

ROOT = Path(__file__).parent.parent
DEFAULT = IngestSettings(source="movielens-100k")
HEADER = "user_id,item_id,timestamp,action,rating"
DAY, NOVEMBER, DECEMBER = 86_400, 1_698_796_800, 1_701_388_800  # 2023-11-01, 2023-12-01


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder that has the committed params.yaml and a folder for events."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "events").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, *rows: str, header: str = HEADER) -> None:
    target = Path("events") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([header, *rows]) + "\n")


def night(path: str = "events", *, mode: str = "append", replace: bool = False, **options: object) -> Change:
    given = {"source": "table", "path": path, "mode": mode, **options}
    return ingest(DEFAULT, given, data=Path("data"), replace=replace)


def snapshot() -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in Path("data").rglob("*") if path.is_file())
    return {str(path.relative_to("data")): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def events() -> list[tuple[int, int, int]]:
    columns = read_interactions(columns=("user_id", "item_id", "timestamp"))
    return list(zip(*(columns[name].to_pylist() for name in columns.column_names), strict=True))


def parts() -> list[str]:
    return [file.relative_to("data/interactions").as_posix() for file in list_partitions()]


def told(name: str) -> dict[str, object]:
    return next(entry for entry in read_manifest()["files"] if entry["name"] == name)


# --- what a night does -----------------------------------------------------------------------------------------------


def test_a_night_adds_the_parts_of_its_file_and_touches_no_other(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,", f"2,20,{DECEMBER - 5},,")
    night()
    before = snapshot()
    put("2.csv", f"1,20,{DECEMBER - 1},,", f"2,10,{DECEMBER},,")
    change = night()
    assert parts() == ["2023-11/1.csv.parquet", "2023-11/2.csv.parquet", "2023-12/2.csv.parquet"]
    assert snapshot()["interactions/2023-11/1.csv.parquet"] == before["interactions/2023-11/1.csv.parquet"]
    assert change.months == ("2023-11", "2023-12")
    assert (change.before.events, change.after.events, change.after.months) == (2, 4, 2)


def test_a_night_without_a_new_file_changes_nothing(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    before = snapshot()
    assert night().changed is False
    assert night("events/*.csv").changed is False
    assert night("events/1.csv").changed is False
    assert snapshot() == before


def test_a_file_that_is_held_is_not_read_again(here: Path, monkeypatch: pytest.MonkeyPatch):
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    put("2.csv", f"1,20,{NOVEMBER + 1},,")
    read = []
    from components.sources import append

    real = append.read_one
    monkeypatch.setattr(append, "read_one", lambda file, *rest: read.append(file.name) or real(file, *rest))
    night()
    assert read == ["2.csv"]


def test_a_file_that_is_gone_stays_in_the_log(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    Path("events/1.csv").unlink()
    put("2.csv", f"1,20,{NOVEMBER + 1},,")
    night()
    assert events() == [(1, 10, NOVEMBER), (1, 20, NOVEMBER + 1)]


def test_late_events_are_merged_into_their_month_in_order_of_time(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,30,{NOVEMBER + 20},,")
    put("2.csv", f"1,40,{DECEMBER},,")
    night()
    put("3.csv", f"1,20,{NOVEMBER + 10},,", f"1,50,{DECEMBER + 1},,")
    night()
    assert [item for _, item, _ in events()] == [10, 20, 30, 40, 50]


def test_a_corrected_file_replaces_its_own_rows_in_all_months_and_no_other(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,11,{DECEMBER},,")
    put("2.csv", f"2,20,{NOVEMBER},,", f"2,21,{DECEMBER},,")
    night()
    before = snapshot()
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,12,{NOVEMBER + 1},,")
    night()
    assert events() == [(1, 10, NOVEMBER), (2, 20, NOVEMBER), (1, 12, NOVEMBER + 1), (2, 21, DECEMBER)]
    assert parts() == ["2023-11/1.csv.parquet", "2023-11/2.csv.parquet", "2023-12/2.csv.parquet"]
    for month in ("11", "12"):
        part = f"interactions/2023-{month}/2.csv.parquet"
        assert snapshot()[part] == before[part]


def test_the_manifest_tells_of_every_file_and_of_no_time_of_day(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,4", f"1,11,{DECEMBER},,")
    put("none.csv")
    night()
    manifest = read_manifest()
    assert (manifest["mode"], manifest["path"], manifest["timestamp_unit"]) == ("append", None, "s")
    assert manifest["data_hash"] == hash_files([Path("data/interactions"), Path("data/items.parquet")])
    first, empty = manifest["files"]
    assert (first["name"], first["rows"], first["repeats"]) == ("1.csv", 2, 0)
    assert (first["first"], first["last"], first["unit"]) == (NOVEMBER, DECEMBER, "s")
    assert (empty["name"], empty["rows"], empty["first"], empty["last"]) == ("none.csv", 0, None, None)


def test_each_file_decides_on_its_own_unit_of_time(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    put("2.csv", f"1,20,{NOVEMBER + 1}000,,")
    night()
    assert events() == [(1, 10, NOVEMBER), (1, 20, NOVEMBER + 1)]
    assert read_manifest()["timestamp_unit"] == "ms, s"


# --- rows that two files hold ----------------------------------------------------------------------------------------


def test_rows_that_another_file_holds_are_left_out_and_counted(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,11,{NOVEMBER + 1},view,2.5", f"1,12,{DECEMBER},,")
    night()
    put("2.csv", f"1,11,{NOVEMBER + 1},view,2.5", f"1,12,{DECEMBER},,", f"1,13,{DECEMBER},,", f"1,13,{DECEMBER},,")
    night()
    assert [item for _, item, _ in events()] == [10, 11, 12, 13, 13]  # twice in one file is for validation to judge
    assert told("2.csv")["repeats"] == 2
    assert "2 rows repeat a row of another file in all columns, left out" in read_manifest()["notes"]
    assert parts() == ["2023-11/1.csv.parquet", "2023-12/1.csv.parquet", "2023-12/2.csv.parquet"]


@pytest.mark.parametrize(
    "other",
    [
        f"2,10,{NOVEMBER},a,2.5",
        f"1,11,{NOVEMBER},a,2.5",
        f"1,10,{NOVEMBER + 1},a,2.5",
        f"1,10,{NOVEMBER},b,2.5",
        f"1,10,{NOVEMBER},a,2",
        f"1,10,{NOVEMBER},a,",
    ],
)
def test_a_row_that_differs_in_one_column_is_another_row(here: Path, other: str):
    put("1.csv", f"1,10,{NOVEMBER},a,2.5")
    put("2.csv", other)
    night()
    assert len(events()) == 2


def test_a_row_left_out_comes_back_when_the_file_that_held_it_is_corrected(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,11,{NOVEMBER + 1},,")
    night()
    put("2.csv", f"1,11,{NOVEMBER + 1},,")
    night()
    assert told("2.csv")["rows"] == 0
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    assert [item for _, item, _ in events()] == [10, 11]
    assert (told("2.csv")["rows"], told("2.csv")["repeats"]) == (1, 0)


def test_a_row_left_out_of_a_file_that_is_gone_is_warned_of(here: Path, caplog: pytest.LogCaptureFixture):
    put("1.csv", f"1,10,{NOVEMBER},,", f"1,11,{NOVEMBER + 1},,")
    night()
    put("2.csv", f"1,11,{NOVEMBER + 1},,")
    night()
    Path("events/2.csv").unlink()
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    assert [item for _, item, _ in events()] == [10]
    assert "2.csv left out 1 rows that another file held" in caplog.text


# --- ids and items ---------------------------------------------------------------------------------------------------


def test_text_ids_keep_their_numbers_from_night_to_night(here: Path):
    put("1.csv", f"ann,x,{NOVEMBER},,", f"bob,y,{NOVEMBER + 1},,")
    night()
    put("0.csv", f"cid,z,{NOVEMBER + 2},,", f"ann,y,{NOVEMBER + 3},,")
    night()
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob", 3: "cid"}
    assert read_keys(Path("data"), "item") == {1: "x", 2: "y", 3: "z"}
    assert [(user, item) for user, item, _ in events()] == [(1, 1), (2, 2), (3, 3), (1, 2)]


def test_integer_ids_keep_their_numbers_when_a_night_brings_text(here: Path):
    put("1.csv", f"5,50,{NOVEMBER},,")
    night()
    put("2.csv", f"9,40,{NOVEMBER + 1},,")
    put("3.csv", f"ann,50,{NOVEMBER + 2},,")
    night()
    assert read_keys(Path("data"), "user") == {5: "5", 9: "9", 10: "ann"}
    assert read_keys(Path("data"), "item") is None
    assert [user for user, _, _ in events()] == [5, 9, 10]


def test_of_two_rows_of_an_item_the_newest_wins_and_items_that_are_gone_stay(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    Path("items.csv").write_text("item_id,title,genres\n10,Ten,A\n20,Twenty,B\n")
    night(items="items.csv")
    Path("items.csv").write_text("item_id,title\n30,Thirty\n10,Tenth\n")
    night(items="items.csv")
    assert read_items().to_pylist() == [
        {"item_id": 10, "title": "Tenth", "genres": None},
        {"item_id": 20, "title": "Twenty", "genres": "B"},
        {"item_id": 30, "title": "Thirty", "genres": None},
    ]


# --- names and places ------------------------------------------------------------------------------------------------


def test_files_of_one_name_in_two_folders_are_two_files_however_the_path_is_written(here: Path):
    put("day=1/part-0.csv", f"1,10,{NOVEMBER},,")
    put("day=2/part-0.csv", f"1,20,{NOVEMBER + 1},,")
    night()
    assert parts() == ["2023-11/day=1%2Fpart-0.csv.parquet", "2023-11/day=2%2Fpart-0.csv.parquet"]
    assert night("events/*/*.csv").changed is False
    assert night(str(here / "events")).changed is False


def test_names_that_differ_only_at_a_long_end_are_two_files(here: Path):
    for last in "ab":
        put("é" * 90 + last + ".csv", f"1,{ord(last)},{NOVEMBER},,")
    night()
    assert len(events()) == 2
    assert all(len(file.name) < 230 for file in list_partitions())


def test_files_behind_a_url_have_the_names_they_have_in_its_folder(here: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("append/1/a.csv", "append/2/a.csv"):
        memory.pipe(f"/{name}", f"{HEADER}\n1,{name[7]},{NOVEMBER},,\n".encode())
    night("memory://append")
    before = snapshot()
    assert [entry["name"] for entry in read_manifest()["files"]] == ["1/a.csv", "2/a.csv"]
    night("memory://append/*/a.csv")
    assert snapshot() == before
    night("memory://append/1/a.csv")
    assert [entry["name"] for entry in read_manifest()["files"]] == ["1/a.csv", "2/a.csv", "a.csv"]
    assert len(events()) == 2


# --- beside the other mode -------------------------------------------------------------------------------------------


def test_a_log_that_was_read_at_once_is_appended_to(here: Path):
    put("all.csv", f"1,10,{NOVEMBER},,", f"1,11,{NOVEMBER + 1},,")
    night("events/all.csv", mode="replace")
    before = snapshot()
    put("2.csv", f"1,12,{NOVEMBER + 2},,")
    night()
    assert [item for _, item, _ in events()] == [10, 11, 12]
    assert snapshot()["interactions/2023-11/part-0.parquet"] == before["interactions/2023-11/part-0.parquet"]
    assert (told("part-0")["rows"], told("all.csv")["repeats"]) == (2, 2)


def test_reading_at_once_over_an_appended_log_needs_replace(here: Path):
    put("1.csv", f"ann,10,{NOVEMBER},,")
    night()
    before = snapshot()
    with pytest.raises(InputError, match=r"appended to, file by file: observed 1 files.*--mode append"):
        night(mode="replace")
    assert snapshot() == before
    put("1.csv", f"bob,10,{NOVEMBER},,")
    night(mode="replace", replace=True)
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob"}
    assert "files" not in read_manifest()


def test_another_mapping_is_another_log_and_replace_starts_it_anew(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    put("1.csv", f"1,10,{NOVEMBER},,", header="who,item_id,timestamp,action,rating")
    with pytest.raises(InputError, match="already holds another log"):
        night(columns={"user_id": "who"})
    Path("events/1.csv").rename("events/2.csv")
    night(columns={"user_id": "who"}, replace=True)
    assert parts() == ["2023-11/2.csv.parquet"]


def test_only_tables_are_appended_to(here: Path):
    with pytest.raises(SettingsError, match="--mode: is no option of the source movielens-100k"):
        ingest(DEFAULT, {"mode": "append"}, data=Path("data"))


def test_a_file_that_cannot_be_read_leaves_the_log_as_it_was(here: Path):
    put("1.csv", f"1,10,{NOVEMBER},,")
    night()
    before = snapshot()
    put("2.csv", f"1,20,{NOVEMBER},,")
    put("3.csv", "1,20,yesterday,,")
    with pytest.raises(InputError, match=r"3\.csv, line 2, column timestamp"):
        night()
    assert snapshot() == before
    assert [path.name for path in here.iterdir() if path.name.startswith(".data")] == []


def test_files_without_an_event_are_no_log(here: Path):
    put("1.csv")
    with pytest.raises(InputError, match="has a header but no events"):
        night()


def test_the_command_appends(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    put("1.csv", f"1,10,{NOVEMBER},,")
    arguments = ["components", "ingest", "--source", "table", "--mode", "append", "--path", "events/*.csv"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert not stopped.value.code
    assert "1 files: 1 new, 0 changed" in capsys.readouterr().err
    assert parts() == ["2023-11/1.csv.parquet"]


# --- the nights together are the log read at once --------------------------------------------------------------------

EVENTS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 90 * DAY))
ROWS = st.lists(EVENTS, min_size=1, max_size=30, unique_by=lambda event: event[2])


@st.composite
def nights(draw: st.DrawFn):
    """Rows, the file of each, the night of each file, and whether ids are text."""
    rows = draw(ROWS)
    files = draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    when = draw(st.lists(st.integers(0, 3), min_size=5, max_size=5))
    return rows, files, when, draw(st.booleans())


def by_user() -> dict[str, list[tuple[str, int, str, float | None]]]:
    """The events of each user under the ids of the source, in order."""
    users, items = read_keys(Path("data"), "user") or {}, read_keys(Path("data"), "item") or {}
    found: dict[str, list[tuple[str, int, str, float | None]]] = {}
    for row in read_interactions().to_pylist():
        event = (items.get(row["item_id"], str(row["item_id"])), row["timestamp"], row["action"], row["rating"])
        found.setdefault(users.get(row["user_id"], str(row["user_id"])), []).append(event)
    return found


@settings(max_examples=40, deadline=None)
@given(nights())
def test_files_appended_in_any_order_on_any_night_are_the_log_read_at_once(case):
    rows, files, when, text = case
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sign = "u" if text else ""
        lines = [f"{sign}{user},{sign}{item},{NOVEMBER + time},a{item % 2},{user}" for user, item, time in rows]
        for tonight in sorted({when[file] for file in files}):
            for file in {file for file in files if when[file] == tonight}:
                put(f"{file}.csv", *(line for line, its in zip(lines, files, strict=True) if its == file))
            night()
            check_places()
        appended, months = by_user(), list(list_months())
        night(mode="replace", replace=True)
        assert (by_user(), list(list_months())) == (appended, months)


def check_places() -> None:
    """Positions, partitions and rows name the same events, and a quarantine leaves out what it names."""
    log = read_interactions()
    assert log["timestamp"].to_pylist() == sorted(log["timestamp"].to_pylist())
    positions = np.arange(log.num_rows)
    places = locate_rows(Path("data"), positions)
    assert places.to_pylist() == log.select(["partition", "row"]).to_pylist()
    assert read_rows(Path("data"), places).to_pylist() == log.to_pylist()
    bad = Path("quarantine.parquet")
    pq.write_table(places.take(positions[::2]), bad)
    assert read_interactions(quarantine=bad).to_pylist() == log.to_pylist()[1::2]
    assert read_interactions(columns=("item_id",))["item_id"].to_pylist() == log["item_id"].to_pylist()


def test_ties_between_files_are_ordered_by_the_names_of_the_files_whatever_the_night(here: Path):
    put("b.csv", f"1,20,{NOVEMBER},,", f"1,21,{NOVEMBER},,")
    night()
    put("a.csv", f"1,10,{NOVEMBER},,", f"1,11,{NOVEMBER},,")
    night()
    assert [item for _, item, _ in events()] == [10, 11, 20, 21]
