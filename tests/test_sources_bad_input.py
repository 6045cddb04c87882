"""Input that cannot be parsed: one line on stderr, exit status 2, and data/ as it was."""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_sources import ARCHIVES, serve, write_zip

from components import __main__ as command_line
from components.ingestion import ingest
from components.settings import IngestSettings

ROOT = Path(__file__).parent.parent
GOOD = "user_id,item_id,timestamp,rating\n1,10,1700000000,5\n2,20,1703000000,3\n1,20,1700000100,4\n"
DEFAULT = IngestSettings(source="movielens-100k")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder that has the committed params.yaml."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["components", "ingest", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything but the empty lock that says who works here (components/locks.py)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".run.lock")
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


Bad = Callable[[Path], list[str]]


def table(content: str | bytes, name: str = "bad.csv", *options: str) -> Bad:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return ["--source", "table", "--path", name, *options]

    return write


def archive(members: dict[str, bytes] | bytes) -> Bad:
    def write(folder: Path) -> list[str]:
        if isinstance(members, bytes):
            (folder / "bad.zip").write_bytes(members)
        else:
            write_zip(folder / "bad.zip", members)
        return ["--source", "grouplens", "--path", "bad.zip"]

    return write


def cut_archive(folder: Path) -> list[str]:
    arguments = archive(ARCHIVES["ml-1m"])(folder)
    (folder / "bad.zip").write_bytes((folder / "bad.zip").read_bytes()[:-40])
    return arguments


def cut_parquet(folder: Path) -> list[str]:
    pq.write_table(pq.read_table("data/items.parquet"), folder / "whole.parquet")
    return table((folder / "whole.parquet").read_bytes()[:-9], "bad.parquet")(folder)


def with_items(content: str, name: str = "items.csv") -> Bad:
    def write(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return [*table(GOOD, "log.csv")(folder), "--items", name]

    return write


def with_genres(values: object) -> Bad:
    def write(folder: Path) -> list[str]:
        rows = {"item_id": range(1, 4), "genres": values}
        pq.write_table(pa.table(rows), folder / "items.parquet")
        return [*table(GOOD, "log.csv")(folder), "--items", "items.parquet"]

    return write


HEADER = "user_id,item_id,timestamp,rating\n"
MANY = HEADER + "".join(f"{row},{row},{1_700_000_000 + row},1\n" for row in range(200_000))
GZIP = gzip.compress(GOOD.encode())

BAD: dict[str, tuple[Bad, str]] = {
    "missing column": (table("user_id,timestamp\n1,5\n"), "bad.csv, line 1: has no column 'item_id'"),
    "misspelt column": (table("user_id,itemid,timestamp\n1,1,5\n"), "--columns item_id=itemid"),
    "mapped column missing": (table(GOOD, "bad.csv", "--columns", "rating=stars"), "has no column 'stars' for rating"),
    "column twice": (table("user_id,item_id,item_id,timestamp\n1,1,1,5\n"), "has the column 'item_id' 2 times"),
    "semicolons": (table(GOOD.replace(",", ";")), "bad.csv, line 1: is separated by semicolons"),
    "tabs in a csv": (table(GOOD.replace(",", "\t")), "is separated by tabs"),
    "commas in a tsv": (table(GOOD, "bad.tsv"), "is separated by commas"),
    "no header": (table("1,10,1700000000\n2,20,1700000001\n"), "has no column 'user_id'"),
    "empty file": (table(""), "bad.csv: is empty"),
    "only line ends": (table("\n\n"), "bad.csv: is empty"),
    "empty json lines": (table("\n", "bad.jsonl"), "bad.jsonl: holds no events"),
    "empty gzip": (table(gzip.compress(b""), "bad.csv.gz"), "bad.csv.gz: is empty"),
    "empty parquet": (table("", "bad.parquet"), "bad.parquet: is not a readable Parquet file"),
    "header only": (table(HEADER), "bad.csv: has a header but no events"),
    "header without line end": (table(HEADER.strip()), "bad.csv: has a header but no events"),
    "truncated gzip": (table(GZIP[:-10], "bad.csv.gz"), "bad.csv.gz: is a gzip that ends in the middle"),
    "corrupt gzip": (table(GZIP[:20] + b"?" + GZIP[21:], "bad.csv.gz"), "bad.csv.gz: is a corrupt gzip"),
    "gzip by name only": (table(GOOD, "bad.csv.gz"), "is not gzip although its name says so"),
    "truncated zip": (cut_archive, "bad.zip: is not a whole zip archive"),
    "corrupt zip": (archive(b"PK\3\4" + b"?" * 99), "bad.zip: is not a whole zip archive"),
    "empty zip": (archive(b""), "bad.zip: is empty"),
    "web page for an archive": (archive(b"<html><body>404</body></html>"), "bad.zip: is a web page, not an archive"),
    "web page for a table": (table("\n<!doctype html>\n<p>"), "bad.csv: is a web page, not a table"),
    "zip for a table": (table(b"PK\3\4....", "bad.csv"), "bad.csv: is a zip archive"),
    "member outside": (archive({**ARCHIVES["ml-1m"], "../evil": b"x"}), "observed '../evil'"),
    "unknown archive": (archive({"a.txt": b"x"}), "has no layout that is known: observed a.txt"),
    "truncated parquet": (cut_parquet, "bad.parquet: is not a readable Parquet file"),
    "NaN id": (table(GOOD + "nan,1,1700000000,1\n"), "bad.csv, line 5, column user_id: is missing: observed 'nan'"),
    "empty id": (table(GOOD + "1,,1700000000,1\n"), "bad.csv, line 5, column item_id: is missing: observed ''"),
    "null json id": (
        table('{"user_id":1,"item_id":2,"timestamp":3}\n{"item_id":2,"timestamp":3}\n', "bad.jsonl"),
        "bad.jsonl, line 2, column user_id: is missing",
    ),
    "fractional id": (
        table('{"user_id":1.5,"item_id":2,"timestamp":3}\n', "bad.jsonl"),
        "line 1, column user_id: is not a whole number",
    ),
    "word for a time": (
        table(GOOD + "1,1,yesterday,1\n"),
        "bad.csv, line 5, column timestamp: is not a timestamp: observed 'yesterday'",
    ),
    "empty time": (table(GOOD + "1,1,,1\n"), "bad.csv, line 5, column timestamp: is missing"),
    "word for a rating": (
        table(GOOD + "1,1,5,good\n"),
        "bad.csv, line 5, column rating: is not a rating: observed 'good'",
    ),
    "comma in a number": (table(GOOD + '1,1,5,"3,5"\n'), "line 5, column rating: is not a rating: observed '3,5'"),
    "word far down": (table(MANY + "1,1,never,1\n"), "bad.csv, line 200002, column timestamp"),
    "bad day": (table("user_id,item_id,timestamp\n1,1,2024-02-30\n"), "line 2, column timestamp"),
    "nanoseconds": (table(HEADER + f"1,1,{10**18},1\n"), "column timestamp: is too large for a timestamp"),
    "NUL byte": (table(GOOD.encode() + b"1,\0,5,1\n"), "bad.csv, line 5: holds a NUL byte"),
    "NUL byte in json": (table(b'{"user_id":1,\n\0"item_id":2}', "bad.jsonl"), "bad.jsonl, line 2: holds a NUL byte"),
    "UTF-16": (table(GOOD.encode("utf-16")), "bad.csv: is UTF-16 text"),
    "UTF-16 without mark": (table(GOOD.encode("utf-16-le")), "bad.csv, line 1: holds a NUL byte"),
    "short row": (table(GOOD + "1,1,5\n"), "bad.csv, line 5: is a ragged row: observed 3 fields ('1,1,5'), expected 4"),
    "long row": (table(GOOD + "1,1,5,1,\n"), "bad.csv, line 5: is a ragged row: observed 5 fields"),
    "ragged far down": (table(MANY + "1,1\n"), "bad.csv, line 200002: is a ragged row"),
    "open quotation mark": (table(GOOD + '1,1,5,"1\n1,1,5,1\n'), "bad.csv, line 5: opens a quotation mark"),
    "not json": (
        table('{"user_id":1,"item_id":2,"timestamp":3}\n{"user_id":\n', "bad.jsonl"),
        "bad.jsonl, line 2: is not JSON",
    ),
    "json array": (
        table('[{"user_id":1,"item_id":2,"timestamp":3}]', "bad.json"),
        "bad.json, line 1: is not a JSON object",
    ),
    "json over lines": (
        table('{"user_id":1,\n"item_id":2,"timestamp":3}', "bad.json"),
        "bad.json, line 1: is not JSON",
    ),
    "two objects on a line": (
        table('{"user_id":1,"item_id":2,"timestamp":3}{"user_id":1,"item_id":2,"timestamp":3}', "bad.jsonl"),
        "line 1: is not JSON",
    ),
    "unknown kind": (table(GOOD, "bad.xlsx"), "bad.xlsx: is of no kind that is known by its name"),
    "no such file": (lambda _: ["--source", "table", "--path", "none.csv"], "none.csv: no such file"),
    "no file matches": (lambda _: ["--source", "table", "--path", "none-*.csv"], "none-*.csv: no file matches"),
    "bad item table": (with_items("item_id,title\n,x\n"), "items.csv, line 2, column item_id: is missing"),
    "genres that are objects": (
        with_genres([None, [{"name": "Drama"}], []]),
        "items.parquet, row 2, column genres: cannot be text: observed [{'name': 'Drama'}], expected text or a list",
    ),
    "json genres that are objects": (
        with_items('{"item_id":1,"genres":null}\n{"item_id":2,"genres":[{"name":"Drama"}]}\n', "items.jsonl"),
        "items.jsonl, line 2, column genres: cannot be text: observed [{'name': 'Drama'}], expected text or a list",
    ),
    "genres that are bytes": (
        with_genres([b"Drama", None, b"\xff"]),
        "items.parquet, row 3, column genres: cannot be text: observed b'\\xff'",
    ),
    "bad mapping": (table(GOOD, "bad.csv", "--columns", "user_id"), "--columns: cannot be read"),
    "unknown canonical name": (table(GOOD, "bad.csv", "--columns", "user=user_id"), "maps the unknown column 'user'"),
}


@pytest.mark.parametrize("case", BAD)
def test_input_that_cannot_be_parsed_is_one_line_exit_2_and_data_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
):
    write, expected = BAD[case]
    (here / "first.csv").write_text(GOOD)
    ingest(DEFAULT, {"source": "table", "path": "first.csv"}, data=Path("data"))
    arguments = write(here)
    before = snapshot(here)
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--replace") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    assert expected in printed.err
    assert snapshot(here) == before
    assert not [path for path in here.iterdir() if path.name.startswith(".data")]


def test_without_data_a_bad_file_leaves_none(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(monkeypatch, *table(HEADER)(here)) == 2
    assert sorted(snapshot(here)) == ["bad.csv", "params.yaml"]


def test_a_real_process_prints_the_line_and_nothing_else(here: Path):
    (here / "bad.csv").write_text(GOOD + "1,,5,1\n")
    command = [sys.executable, "-m", "components", "ingest", "--source", "table", "--path", "bad.csv"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: bad.csv, line 5, column item_id: is missing: observed '', expected an id. "
        "Leave out the rows that have none\n"
    )
    assert not (here / "data").exists()


def test_a_web_page_behind_a_url_is_one_line_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with serve() as site:
        site.pages = {"/log.csv": b"<html>sign in</html>"}
        assert run(monkeypatch, "--source", "table", "--path", f"{site.url}/log.csv") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (here / "data").exists()
