"""The whole step through its command: what a person types, what changes in data/, and what never may."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_sources import ARCHIVES, shared_archive, write_zip

from components import __main__ as command_line
from components import ingestion
from components.errors import InputError, SettingsError
from components.files import hash_files
from components.ingestion import Change, Counts, ingest
from components.interactions import read_interactions, read_items, read_keys, read_manifest
from components.settings import IngestSettings
from components.sources import SourceLog
from components.sources.grouplens import read_grouplens

ROOT = Path(__file__).parent.parent
DEFAULT = IngestSettings(source="movielens-100k")
GOOD = "user_id,item_id,timestamp,rating\n1,10,1700000000,5\n2,20,1703000000,3\n1,20,1700000100,4\n"
COLUMNS = "user_id=userId,item_id=movieId,timestamp=timestamp"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder that has the committed params.yaml."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def made_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the default source return a made log instead of fetching a wheel."""
    archive = write_zip(tmp_path / "default.zip", ARCHIVES["ml-100k"])

    def read(wanted: IngestSettings, scratch: Path) -> SourceLog:
        if wanted.source != "movielens-100k":
            return real(wanted, scratch)
        source = read_grouplens(IngestSettings(source="grouplens", path=str(archive)), scratch)
        source.notes = []
        return source

    real = ingestion.read_source
    monkeypatch.setattr(ingestion, "read_source", read)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["components", "ingest", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def take(path: Path, *, replace: bool = False, **options: object) -> Change:
    return ingest(DEFAULT, {"source": "table", "path": str(path), **options}, data=Path("data"), replace=replace)


# --- what a person types first ---------------------------------------------------------------------------------------


def test_a_table_with_other_names_is_ingested_without_editing_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (here / "my_events.csv").write_text("userId,movieId,rating,timestamp\n7,70,4.0,1112486027\n7,71,3.5,1112484676\n")
    assert run(monkeypatch, "--source", "table", "--path", "my_events.csv", "--columns", COLUMNS) == 0
    log = read_interactions()
    assert log.select(["user_id", "item_id", "timestamp", "rating"]).to_pylist() == [
        {"user_id": 7, "item_id": 71, "timestamp": 1112484676, "rating": 3.5},
        {"user_id": 7, "item_id": 70, "timestamp": 1112486027, "rating": 4.0},
    ]
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines() if line.startswith("rows")] == [["rows", "0", "2", "+2"]]
    assert "timestamps read as s" in printed.err


def test_an_archive_is_ingested_by_its_path(here: Path, monkeypatch: pytest.MonkeyPatch):
    write_zip(here / "ml-1m.zip", ARCHIVES["ml-1m"])
    assert run(monkeypatch, "--source", "grouplens", "--path", "ml-1m.zip") == 0
    assert read_items().to_pylist()[1] == {
        "item_id": 20,
        "title": "Mission:: Impossible :: II (2000)",
        "genres": "Action",
    }


def test_the_manifest_records_source_mapping_counts_and_the_hash_of_the_log(here: Path):
    (here / "log.csv").write_text(GOOD.replace("user_id", "who"))
    take(here / "log.csv", columns={"user_id": "who"})
    manifest = read_manifest()
    parts = [Path("data") / name for name in ("interactions", "items.parquet")]
    assert manifest == {
        "source": "table",
        "path": "log.csv",
        "columns": {"user_id": "who"},
        "items": None,
        "item_columns": {},
        "timestamp_unit": "s",
        "counts": {"events": 3, "users": 2, "items": 2, "months": 2},
        "notes": ["timestamps read as s (the median is 1.7e+09); --timestamp-unit overrides"],
        "data_hash": hash_files(parts),
    }


# --- keeping, refusing, replacing ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("made_default")
def test_without_options_the_default_is_fetched_once_and_then_kept(here: Path):
    first = ingest(DEFAULT, {"source": None}, data=here / "data")
    assert first == Change(None, Counts(3, 2, 2, 2), changed=True, months=("1997-12", "1998-04"))
    before = snapshot(here)
    assert ingest(DEFAULT, {}, data=here / "data") == Change(first.after, first.after, changed=False)
    assert snapshot(here) == before
    assert str(here) not in (here / "data" / "manifest.json").read_text()


@pytest.mark.usefixtures("made_default")
def test_a_log_of_your_own_is_kept_by_a_call_without_options(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "log.csv").write_text(GOOD)
    assert run(monkeypatch, "--source", "table", "--path", "log.csv") == 0
    before = snapshot(here)
    (here / "log.csv").unlink()
    assert run(monkeypatch) == 0
    assert {name: seen for name, seen in before.items() if name != "log.csv"} == snapshot(here)


def test_a_source_written_into_the_settings_is_read_again_so_that_a_nightly_run_sees_new_events(here: Path):
    settings = IngestSettings(source="table", path="log.csv")
    (here / "log.csv").write_text(GOOD)
    ingest(settings, {}, data=Path("data"))
    (here / "log.csv").write_text(GOOD + "3,30,1710000000,1\n")
    change = ingest(settings, {}, data=Path("data"))
    assert (change.before, change.after) == (Counts(3, 2, 2, 2), Counts(4, 3, 3, 3))
    assert change.months == ("2024-03",)


@pytest.mark.usefixtures("made_default")
def test_another_source_is_refused_until_replace_is_passed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (here / "log.csv").write_text(GOOD)
    assert run(monkeypatch) == 0
    before = snapshot(here)
    capsys.readouterr()
    assert run(monkeypatch, "--source", "table", "--path", "log.csv") == 2
    assert "already holds another log: observed movielens-100k, expected table log.csv" in capsys.readouterr().err
    assert snapshot(here) == before
    assert run(monkeypatch, "--source", "table", "--path", "log.csv", "--replace") == 0
    assert read_manifest()["source"] == "table"


def test_another_path_or_another_mapping_is_another_log(here: Path):
    for name in ("a.csv", "b.csv"):
        (here / name).write_text("user_id,item_id,other_id,timestamp\n1,10,11,5\n")
    take(here / "a.csv")
    with pytest.raises(InputError, match="already holds another log"):
        take(here / "b.csv")
    with pytest.raises(InputError, match="already holds another log"):
        take(here / "a.csv", columns={"item_id": "other_id"})
    assert take(Path("./a.csv")).changed is False  # the same file, spelt otherwise


def test_files_that_are_no_log_are_not_swept_away(here: Path):
    (here / "data").mkdir()
    (here / "data" / "thesis.docx").write_text("four years")
    (here / "log.csv").write_text(GOOD)
    with pytest.raises(InputError, match="holds files but no log"):
        take(here / "log.csv")
    assert (here / "data" / "thesis.docx").read_text() == "four years"


# --- the same input, the same bytes ----------------------------------------------------------------------------------


def test_ingesting_again_touches_no_file(here: Path):
    (here / "log.csv").write_text(GOOD)
    take(here / "log.csv")
    before = snapshot(here)
    assert take(here / "log.csv").changed is False
    assert snapshot(here) == before


@pytest.mark.usefixtures("made_default")
def test_the_default_source_gives_the_same_bytes_in_every_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        ingest(DEFAULT, {}, data=Path("data"))
        hashes.append(hash_files([Path("data")]))
    assert hashes[0] == hashes[1]


def test_unsorted_rows_come_out_in_time_order_with_ties_in_source_order(here: Path):
    (here / "log.csv").write_text("user_id,item_id,timestamp\n1,3,200\n1,1,100\n1,4,200\n1,2,100\n")
    take(here / "log.csv")
    assert read_interactions()["item_id"].to_pylist() == [1, 2, 3, 4]


def test_an_append_changes_the_month_it_is_in_and_no_other(here: Path):
    (here / "log.csv").write_text(GOOD)
    take(here / "log.csv")
    november = Path("data/interactions/2023-11/part-0.parquet").read_bytes()
    (here / "log.csv").write_text(GOOD + "9,10,1703000001,1\n")
    assert take(here / "log.csv").months == ("2023-12",)
    assert Path("data/interactions/2023-11/part-0.parquet").read_bytes() == november


@pytest.mark.parametrize("mode", ["read-only", "links"])
def test_files_that_dvc_made_read_only_or_links_are_never_written_through(here: Path, mode: str):
    (here / "log.csv").write_text(GOOD)
    take(here / "log.csv")
    cache = here / "cache"
    cache.mkdir()
    for number, file in enumerate(sorted(path for path in Path("data").rglob("*") if path.is_file())):
        if mode == "links":
            shutil.copy(file, cache / str(number))
            file.unlink()
            file.symlink_to(cache / str(number))
        file.chmod(0o444)
    cached = snapshot(cache)
    (here / "log.csv").write_text(GOOD + "9,10,1703000001,1\n")
    assert take(here / "log.csv").after.events == 4
    assert snapshot(cache) == cached


# --- string ids ------------------------------------------------------------------------------------------------------


def named(*rows: str) -> str:
    return "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n"


def test_string_ids_are_numbered_by_first_appearance_and_never_renumbered(here: Path):
    (here / "log.csv").write_text(named("ann,007,20", "bob,x,10"))
    take(here / "log.csv")
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob"}
    (here / "log.csv").write_text(named("cid,y,5", "bob,x,10", "ann,007,20"))
    take(here / "log.csv")
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob", 3: "cid"}
    (here / "newer.csv").write_text(named("dan,y,6"))
    take(here / "newer.csv", replace=True)
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob", 3: "cid", 4: "dan"}
    assert read_keys(Path("data"), "item") == {1: "007", 2: "x", 3: "y"}
    assert read_interactions()["user_id"].to_pylist() == [4]


def test_integer_ids_keep_their_numbers_when_text_ids_join_them(here: Path):
    (here / "log.csv").write_text(named("5,50,1", "3,30,2"))
    (here / "items.csv").write_text("item_id,title\n50,Fifty\n90,Ninety\n")
    take(here / "log.csv", items="items.csv")
    assert read_keys(Path("data"), "item") is None
    (here / "log.csv").write_text(named("5,50,1", "3,30,2", "5,new,3"))
    take(here / "log.csv", items="items.csv")
    assert read_keys(Path("data"), "item") == {30: "30", 50: "50", 90: "90", 91: "new"}
    assert read_keys(Path("data"), "user") is None
    assert read_interactions()["item_id"].to_pylist() == [50, 30, 91]


def test_text_ids_stay_text_when_only_integers_are_left(here: Path):
    (here / "log.csv").write_text(named("a,b,1"))
    take(here / "log.csv")
    (here / "log.csv").write_text(named("7,9,1"))
    take(here / "log.csv")
    assert read_keys(Path("data"), "user") == {1: "a", 2: "7"}


def test_a_log_of_another_source_starts_its_own_numbers(here: Path):
    (here / "log.csv").write_text(named("a,b,1"))
    take(here / "log.csv")
    archive = write_zip(here / "tweets.zip", ARCHIVES["movietweetings"])
    ingest(DEFAULT, {"source": "grouplens", "path": str(archive)}, data=Path("data"), replace=True)
    assert read_keys(Path("data"), "item") == {1: "0104257", 2: "1074638"}
    assert read_keys(Path("data"), "user") is None


# --- item tables -----------------------------------------------------------------------------------------------------


def test_an_item_table_is_ordered_by_id_without_repeats_and_with_nulls_for_empty_text(here: Path):
    (here / "log.csv").write_text(GOOD)
    (here / "items.tsv").write_text("sku\tname\n20\tTwenty\n10\t\n20\tagain\nA-3\tnever seen\n")
    take(here / "log.csv", items="items.tsv", item_columns={"item_id": "sku", "title": "name"})
    assert read_items().to_pylist() == [
        {"item_id": 10, "title": None, "genres": None},
        {"item_id": 20, "title": "Twenty", "genres": None},
    ]
    assert read_manifest()["notes"][1:] == [
        "item table: 1 ids that are no integers cannot occur in this log, left out",
        "item table: 1 repeated ids, first row kept",
    ]


def test_a_log_without_an_item_table_has_one_without_rows(here: Path):
    (here / "log.csv").write_text(GOOD)
    take(here / "log.csv")
    assert read_items().to_pydict() == {"item_id": [], "title": [], "genres": []}
    assert pq.read_schema("data/items.parquet").names == ["item_id", "title", "genres"]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"path": "log.csv"}, "--path: is no option of the source movielens-100k.*--source table"),
        ({}, {"columns": {"user_id": "u"}}, "--columns: is no option"),
        ({}, {"source": "csv"}, "--source: is wrong: observed csv"),
        ({}, {"source": "table", "timestamp_unit": "ns", "path": "x"}, "--timestamp-unit: is wrong: observed ns"),
        ({}, {"source": "table"}, "--path: is missing"),
    ],
)
def test_options_that_do_not_fit_are_named(here: Path, settings: dict[str, str], options: dict[str, str], message: str):
    with pytest.raises(SettingsError, match=message):
        ingest(IngestSettings(source="movielens-100k", **settings), options, data=here / "data")


def test_options_override_the_settings_of_the_same_source_and_forget_those_of_another(here: Path):
    (here / "new.csv").write_text("who,item_id,timestamp\n1,10,5\n")
    settings = IngestSettings(source="table", path="old.csv", columns={"user_id": "who"})
    assert ingest(settings, {"path": "new.csv"}, data=Path("data")).after.events == 1
    write_zip(here / "a.zip", ARCHIVES["ml-20m"])
    ingest(settings, {"source": "grouplens", "path": "a.zip"}, data=Path("data"), replace=True)
    assert read_manifest()["columns"] == {}


# --- what parses but makes no sense is for validation ----------------------------------------------------------------


def test_senseless_but_parsable_events_are_ingested(here: Path):
    rows = ["1,10,-5,1", "1,10,99999999999,inf", "1,10,1700000000,-7", "1,10,1700000000,-7", "1,999,1700000001,1e30"]
    (here / "log.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    (here / "items.csv").write_text("item_id,title\n10,Ten\n")
    assert take(here / "log.csv", items="items.csv").after.events == 5


# --- real archives ---------------------------------------------------------------------------------------------------

REAL = {
    "ml-100k.zip": Counts(100_000, 943, 1_682, 8),
    "ml-1m.zip": Counts(1_000_209, 6_040, 3_706, 35),
    "movietweetings-100k.zip": Counts(100_000, 16_554, 10_506, 8),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_archives_are_ingested_whole(here: Path, name: str):
    options = {"source": "grouplens", "path": str(shared_archive(name))}
    change = ingest(DEFAULT, options, data=here / "data")
    assert change.after == REAL[name]
    titles = dict(zip(*(read_items(here / "data")[column].to_pylist() for column in ("item_id", "title")), strict=True))
    assert all(titles[item] for item in read_interactions(here / "data")["item_id"].unique().to_pylist())
    keys = read_keys(here / "data", "item")
    if name.startswith("movietweetings"):
        assert keys is not None
        assert "0104257" in keys.values()
    else:
        assert keys is None
    assert json.loads((here / "data" / "manifest.json").read_text())["counts"]["events"] == change.after.events
