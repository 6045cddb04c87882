"""The database source on a real PostgreSQL: types, nights, a password from the environment, a server that is down."""

import datetime as dt
from pathlib import Path

import pytest
from made_postgresql import needs_postgresql, running_postgresql

from components.errors import InputError, SourceUnreachableError
from components.ingestion import ingest
from components.interactions import read_interactions, read_keys, read_manifest
from components.settings import IngestSettings

pytestmark = [needs_postgresql, pytest.mark.slow]
PASSWORD = "swordfish"
QUERY = "SELECT uid, sku, ts, stars FROM events WHERE ts::date = '{night}' ORDER BY ts, uid"
COLUMNS = {"user_id": "uid", "item_id": "sku", "timestamp": "ts", "rating": "stars"}
SHOP = """
CREATE TABLE events (uid uuid, sku text, ts timestamptz, stars numeric(2, 1));
INSERT INTO events VALUES
  ('00000000-0000-0000-0000-00000000000a', 'tea', '2024-03-05 23:59:58.5+00', 4.5),
  ('00000000-0000-0000-0000-00000000000b', 'cup', '2024-03-05 12:00:00+00', NULL),
  ('00000000-0000-0000-0000-00000000000a', 'cup', '2024-03-06 00:00:01+00', 1.0);
ALTER DATABASE postgres SET timezone = 'UTC';
"""


@pytest.fixture(scope="module")
def shop():
    with running_postgresql(PASSWORD) as server:
        server.run(SHOP)
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return tmp_path


def take(shop, night, **changes):
    options = {"source": "database", "path": shop.url(), "query": QUERY, "columns": COLUMNS, "mode": "append"}
    settings = IngestSettings(source="movielens-100k")
    return ingest(settings, options | {"night": night} | changes, data=Path("data"))


def test_a_night_of_the_shop_becomes_a_file_of_the_log(shop, here):
    take(shop, "2024-03-05")
    take(shop, "2024-03-06")
    log, names = read_interactions(), read_keys(here / "data", "user")
    assert [names[user][-1] for user in log["user_id"].to_pylist()] == ["b", "a", "a"]
    at = dt.datetime(2024, 3, 5, 12, tzinfo=dt.UTC).timestamp()
    assert log["timestamp"].to_pylist() == [at, at + 43_198, at + 43_201]
    assert log["rating"].to_pylist() == [None, 4.5, 1.0]
    assert [entry["name"] for entry in read_manifest()["files"]] == ["2024-03-05.parquet", "2024-03-06.parquet"]
    assert PASSWORD not in (here / "data" / "manifest.json").read_text()


def test_a_query_that_is_wrong_is_not_asked_again_and_the_answer_is_in_the_error(shop):
    with pytest.raises(InputError, match=r"refuses the query: .*column .nobody. does not exist"):
        take(shop, "2024-03-05", query="SELECT nobody FROM events WHERE ts::date = '{night}'")


def test_a_wrong_password_and_a_server_that_is_down_count_as_unreachable_and_the_log_stays(shop, monkeypatch):
    take(shop, "2024-03-05")
    before = read_manifest()
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(SourceUnreachableError, match="password authentication failed") as error:
        take(shop, "2024-03-06")
    assert "wrong" not in str(error.value)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    shop.stop()
    try:
        with pytest.raises(SourceUnreachableError, match="Connection refused"):
            take(shop, "2024-03-06")
    finally:
        shop.start()
    assert read_manifest() == before
    assert take(shop, "2024-03-06").changed
