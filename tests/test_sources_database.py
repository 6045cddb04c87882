"""A query's answer is a file of the log: named by the night, read like any other, replaced when asked for again."""

import datetime as dt
import sqlite3
from pathlib import Path

import pytest

from components.errors import InputError, SettingsError, SourceUnreachableError
from components.files import hash_files
from components.ingestion import Change, ingest
from components.interactions import read_interactions, read_keys, read_manifest
from components.settings import IngestSettings
from components.sources.database import query_database

DEFAULT = IngestSettings(source="movielens-100k")
URL = "sqlite:///shop.db"
QUERY = "SELECT who, what, at, mark FROM events WHERE date(at, 'unixepoch') = '{night}' ORDER BY at"
COLUMNS = {"user_id": "who", "item_id": "what", "timestamp": "at", "rating": "mark"}
FIFTH = int(dt.datetime(2024, 3, 5, tzinfo=dt.UTC).timestamp())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder that has a database with two nights of events."""
    monkeypatch.chdir(tmp_path)
    run("CREATE TABLE events (who TEXT, what INTEGER, at INTEGER, mark REAL)")
    for who, what, at, mark in (("ann", 10, FIFTH, 4.5), ("bob", 20, FIFTH + 60, None), ("ann", 20, FIFTH + 86_400, 1)):
        run("INSERT INTO events VALUES (?, ?, ?, ?)", who, what, at, mark)
    return tmp_path


def run(statement: str, *values: object) -> None:
    connection = sqlite3.connect("shop.db")
    with connection:
        connection.execute(statement, values)
    connection.close()


def take(night: str | None = None, *, mode: str = "append", **changes: object) -> Change:
    options = {"source": "database", "path": URL, "query": QUERY, "columns": COLUMNS, "night": night, "mode": mode}
    return ingest(DEFAULT, options | changes, data=Path("data"))


def test_nights_are_files_of_their_own_whatever_their_order(here: Path):
    take("2024-03-06")
    take("2024-03-05")
    names = read_keys(Path("data"), "user")
    log = read_interactions()
    assert [names[user] for user in log["user_id"].to_pylist()] == ["ann", "bob", "ann"]
    assert log["rating"].to_pylist() == [4.5, None, 1.0]
    manifest = read_manifest()
    assert [entry["name"] for entry in manifest["files"]] == ["2024-03-05.parquet", "2024-03-06.parquet"]
    assert (manifest["query"], "night" in manifest) == (QUERY, False)


def test_the_same_night_again_changes_nothing_and_a_corrected_one_its_own_rows(here: Path):
    take("2024-03-05")
    take("2024-03-06")
    assert take("2024-03-05").changed is False
    run("DELETE FROM events WHERE who = 'bob'")
    run("UPDATE events SET what = 30 WHERE at = ?", FIFTH)
    assert take("2024-03-05").changed is True
    assert read_interactions()["item_id"].to_pylist() == [30, 20]


def test_without_a_night_it_is_yesterday(here: Path, tmp_path: Path):
    settings = IngestSettings(source="database", mode="append", path=URL, query=QUERY)
    before, name, after = dt.datetime.now(dt.UTC), query_database(settings, tmp_path).name, dt.datetime.now(dt.UTC)
    assert name in {f"{(now - dt.timedelta(days=1)).date()}.parquet" for now in (before, after)}  # two at midnight


def test_one_night_is_appended_or_refused_and_never_replaces_the_log(here: Path):
    one = {"source": "database", "path": URL, "query": QUERY, "columns": COLUMNS, "night": "2024-03-06"}
    with pytest.raises(SettingsError, match=r"--query: asks for one night, .*\. Pass --mode append"):
        ingest(DEFAULT, one, data=Path("data"))
    take("2024-03-05")
    before = hash_files([Path("data")])
    with pytest.raises(SettingsError, match="--query: asks for one night"):
        ingest(DEFAULT, one, data=Path("data"), replace=True)
    assert hash_files([Path("data")]) == before


def test_a_query_without_a_night_is_a_log_of_its_own(here: Path):
    everything = "SELECT who, what, at, mark FROM events"
    assert take(mode="replace", query=everything).after.events == 3
    run("INSERT INTO events VALUES ('cid', 10, ?, NULL)", FIFTH + 90_000)
    assert take(mode="replace", query=everything).after.events == 4
    assert read_keys(Path("data"), "user") == {1: "ann", 2: "bob", 3: "cid"}
    with pytest.raises(InputError, match="already holds another log"):
        take(mode="replace", query=everything + " LIMIT 1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "events.csv"}, "--path: is no database: observed events.csv, expected sqlite:///"),
        ({"path": "postgresql://me:secret@host/shop"}, "--path: holds a password. Put it into PGPASSWORD"),
        ({"query": None}, "--query: is missing"),
        ({"night": "March"}, "--night: is wrong: observed March"),
        ({"source": "table"}, "--query: is no option of the source table"),
    ],
)
def test_options_that_do_not_fit_are_named(here: Path, changes: dict[str, object], message: str):
    with pytest.raises(SettingsError, match=message) as raised:
        take(**changes)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "SELECT nowhere FROM events"}, "sqlite:///shop.db: refuses the query.*no such column"),
        ({"path": "sqlite:///other.db"}, "sqlite:///other.db: no such file"),
        ({"query": "DROP TABLE events"}, "refuses the query.*readonly"),
        ({"night": "2020-01-01"}, "has a header but no events"),
    ],
)
def test_what_the_database_says_is_handed_on_and_the_log_stays(here: Path, changes: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        take(**{"night": "2024-03-05", **changes})
    assert not Path("data").exists()
    assert not Path("other.db").exists()


def test_a_database_that_cannot_be_reached_may_be_tried_again(here: Path):
    with pytest.raises(SourceUnreachableError, match=r"postgresql://me@127\.0\.0\.1:1/shop: cannot be reached"):
        take("2024-03-05", path="postgresql://me@127.0.0.1:1/shop")
