"""Your own table: every format says the same, oddities are read, and the item table comes along."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_sources import serve

from components.errors import InputError, SettingsError, SourceUnreachableError
from components.settings import IngestSettings
from components.sources import fetch
from components.sources.log import SourceLog
from components.sources.table import read_table

ROWS = [
    {"user_id": "ann", "item_id": "007", "timestamp": 1_700_000_300, "rating": 4.5, "action": "buy"},
    {"user_id": "böb", "item_id": "12", "timestamp": 1_700_000_100, "rating": None, "action": "view"},
    {"user_id": "ann", "item_id": "12", "timestamp": 1_700_000_200, "rating": 1.0, "action": "view"},
]
NAMES = list(ROWS[0])


def read(path: object, folder: Path, **options: object) -> SourceLog:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return read_table(IngestSettings(source="table", path=str(path), **options), scratch)


def rows_of(log: SourceLog) -> list[dict[str, object]]:
    events = log.events
    users, items = events.users.texts().to_pylist(), events.items.texts().to_pylist()
    columns = zip(
        users,
        items,
        events.times.seconds.tolist(),
        events.ratings.to_pylist(),
        events.actions.to_pylist(),
        strict=True,
    )
    return [dict(zip(NAMES, row, strict=True)) for row in columns]


def delimited(separator: str, names: list[str] = NAMES, end: str = "\n") -> str:
    lines = [names, *(["" if row[n] is None else str(row[n]) for n in names] for row in ROWS)]
    return end.join(separator.join(line) for line in lines) + end


def write_all(folder: Path) -> list[Path]:
    """Write ROWS in every format, return the files."""
    plain = delimited(",").encode()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    contents = {
        "a.csv": plain,
        "b.csv.gz": gzip.compress(plain),
        "c.tsv": delimited("\t").encode(),
        "d.jsonl": lines,
        "e.ndjson.gz": gzip.compress(lines),
        "f.json": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"),
    }
    files = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        files.append(folder / name)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "g.parquet")
    return [*files, folder / "g.parquet"]


def test_every_format_gives_the_same_events(tmp_path: Path):
    for file in write_all(tmp_path):
        assert rows_of(read(file, tmp_path)) == ROWS, file.name


ODD = {
    "windows line ends": delimited(",", end="\r\n").encode(),
    "old mac line ends": delimited(",", end="\r").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + delimited(",").encode(),
    "reordered columns": delimited(",", NAMES[::-1]).encode(),
    "blank lines": b"\n" + delimited(",", end="\n\n").encode(),
    "no line end at the end": delimited(",").rstrip().encode(),
    "latin-1 text": delimited(",").encode("latin-1"),
    "spaces after the commas of the header": delimited(",").replace(",", ", ", 4).encode(),
    "quoted fields": delimited(",").replace("ann", '"ann"').encode(),
    "spaces around values": delimited(",").replace("ann", " ann ").replace("1700000300", " 1700000300").encode(),
    "a gzip of two members": gzip.compress(delimited(",").encode()[:40]) + gzip.compress(delimited(",").encode()[40:]),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_oddities_of_real_files_are_read_correctly(tmp_path: Path, content: bytes):
    (tmp_path / "odd.csv").write_bytes(content)
    assert rows_of(read(tmp_path / "odd.csv", tmp_path)) == ROWS


def test_extra_columns_are_ignored_and_named(tmp_path: Path):
    text = 'note,user,"the item",timestamp\n"line\nbreak, and a ""quote""",1,5,1700000000\nx,2,6,1700000001\n'
    (tmp_path / "log.csv").write_text(text)
    log = read(tmp_path / "log.csv", tmp_path, columns={"user_id": "user", "item_id": "the item"})
    assert log.events.users.integers().to_pylist() == [1, 2]
    assert log.events.items.integers().to_pylist() == [5, 6]
    assert "columns not used: note" in log.notes


def test_missing_optional_columns_give_null_ratings_and_one_action(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    log = read(tmp_path / "log.csv", tmp_path)
    assert log.events.ratings.to_pylist() == [None]
    assert log.events.actions.to_pylist() == ["event"]


def test_ratings_that_make_no_sense_parse_because_validation_judges_them(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n1,5,1,inf\n1,5,1,-1e9\n1,5,1,nan\n1,5,1,\n")
    ratings = read(tmp_path / "log.csv", tmp_path).events.ratings.to_pylist()
    assert ratings == [float("inf"), -1e9, None, None]


def test_sixty_four_bit_ids_keep_every_digit_in_every_format(tmp_path: Path):
    big = 2**63 - 1
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{big},{big - 1},1\n")
    (tmp_path / "log.jsonl").write_text(f'{{"user_id": {big}, "item_id": {big - 1}, "timestamp": 1}}\n')
    pq.write_table(pa.table({"user_id": [big], "item_id": [big - 1], "timestamp": [1]}), tmp_path / "log.parquet")
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        events = read(tmp_path / name, tmp_path).events
        assert (events.users.integers().to_pylist(), events.items.integers().to_pylist()) == ([big], [big - 1])


def test_json_ids_may_mix_numbers_and_text_and_exceed_64_bits(tmp_path: Path):
    rows = [{"user_id": user, "item_id": 1, "timestamp": 5} for user in (7, "a7", 2**70, 7)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read(tmp_path / "log.jsonl", tmp_path).events.users.texts().to_pylist() == ["7", "a7", str(2**70), "7"]


def test_a_folder_or_a_glob_is_read_in_the_order_of_its_names(tmp_path: Path):
    folder = tmp_path / "log"
    (folder / "2024-01").mkdir(parents=True)
    (folder / "2024-01" / "part-1.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    (folder / "2024-01" / "part-2.csv").write_text("timestamp,item_id,user_id\n1700000001,6,2\n")
    (folder / "2024-02.csv").write_text("user_id,item_id,timestamp\n")
    (folder / "_SUCCESS").write_text("")
    (folder / "README.md").write_text("not a table")
    assert read(folder, tmp_path).events.users.integers().to_pylist() == [1, 2]
    assert read(folder / "*" / "part-*.csv", tmp_path).events.items.integers().to_pylist() == [5, 6]
    assert read(folder / "**" / "*.csv", tmp_path).events.users.integers().to_pylist() == [1, 2]


def test_an_item_table_gives_titles_genres_and_what_else_is_mapped(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    (tmp_path / "items.csv").write_bytes("id,name,tags,year\n5,Amélie,Comedy|Romance,2001\n".encode("latin-1"))
    columns = {"item_id": "id", "title": "name", "genres": "tags", "year": "year"}
    items = read(tmp_path / "log.csv", tmp_path, items=str(tmp_path / "items.csv"), item_columns=columns).items
    assert items.fields.to_pylist() == [{"title": "Amélie", "genres": "Comedy|Romance", "year": "2001"}]


def test_lists_of_genres_are_joined(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    rows = [{"item_id": 5, "title": "Up", "genres": ["Comedy", "Drama"]}, {"item_id": 6, "title": 9, "genres": None}]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:1]))
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "items.parquet")
    for name in ("items.jsonl", "items.parquet"):
        items = read(tmp_path / "log.csv", tmp_path, items=str(tmp_path / name)).items
        assert items.fields.to_pylist() == [{"title": "Up", "genres": "Comedy|Drama"}]


@pytest.mark.parametrize(
    ("lists", "between"),
    [
        ([["Comedy", "Drama"], ["Drama"]], "\n"),
        ([["Comedy", "Drama"], ["Drama"]], "\n\n"),
        ([None] * 1000 + [["Comedy", "Drama"]], "\n"),
        ([["Comedy", None, "Drama"], [None], [], None, ["Drama", None]], "\n"),
        ([["Comedy", None, "Drama"], [None], [], None, ["Drama", None]], "\n\n"),
        ([[], []], "\n\n"),
        ([[1, 2], [3]], "\n"),
        ([["Drama", 2, None], "Comedy|Drama", None], "\n"),
    ],
    ids=["plain", "blank line", "late", "nulls", "nulls and blank line", "nothing in them", "numbers", "mixed"],
)
def test_lists_in_json_lines_are_joined_whichever_way_their_block_is_read(tmp_path: Path, lists, between):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    rows = [{"item_id": number, "genres": one} for number, one in enumerate(lists)]
    (tmp_path / "items.jsonl").write_text(between.join(map(json.dumps, rows)))
    items = read(tmp_path / "log.csv", tmp_path, items=str(tmp_path / "items.jsonl")).items
    assert items.fields["genres"].to_pylist() == [joined(one) for one in lists]


def joined(genres: list[object] | str | None) -> str | None:
    return "|".join(str(one) for one in genres if one is not None) if isinstance(genres, list) else genres


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_nulls_in_lists_of_a_parquet_file_are_left_out(tmp_path: Path, kind: pa.DataType):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,5,1700000000\n")
    lists = [["Comedy", None], None, ["Drama", "War"], [None, None], [None, "War"]]
    pq.write_table(pa.table({"item_id": range(5), "genres": pa.array(lists, kind)}), tmp_path / "items.parquet")
    items = read(tmp_path / "log.csv", tmp_path, items=str(tmp_path / "items.parquet")).items
    assert items.fields["genres"].to_pylist() == ["Comedy", None, "Drama|War", "", "War"]


def test_a_misspelt_column_is_answered_with_the_likely_one(tmp_path: Path):
    (tmp_path / "log.csv").write_text("userid,item_id,timestamp\n1,5,1700000000\n")
    with pytest.raises(InputError, match=r"line 1: has no column 'userId'.*--columns user_id=userid"):
        read(tmp_path / "log.csv", tmp_path, columns={"user_id": "userId"})
    with pytest.raises(SettingsError, match=r"--columns: maps the unknown column 'user'"):
        read(tmp_path / "log.csv", tmp_path, columns={"user": "userid"})


def test_a_line_number_counts_blank_lines_and_line_breaks_inside_quotes(tmp_path: Path):
    (tmp_path / "log.csv").write_text('user_id,item_id,timestamp,note\n\n1,5,1,"two\nlines"\n\n2,,1,x\n')
    with pytest.raises(InputError, match="line 6, column item_id: is missing"):
        read(tmp_path / "log.csv", tmp_path)


def test_a_url_is_read_like_a_file_and_a_passing_failure_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=waits.append))
    with serve() as site:
        site.pages = {
            "/log.csv.gz": gzip.compress(delimited(",").encode()),
            "/plain/log.csv.gz": delimited(",").encode(),
        }
        site.statuses = {"/log.csv.gz": [503, 503]}
        assert rows_of(read(f"{site.url}/log.csv.gz", tmp_path)) == ROWS
        assert waits == list(fetch.WAITS)
        unpacked_by_the_server = read(f"{site.url}/plain/log.csv.gz?version=2", tmp_path)
    assert rows_of(unpacked_by_the_server) == ROWS


def test_a_url_that_stays_unreachable_says_which_file_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "WAITS", (0.0, 0.0))
    with serve() as site:
        site.pages = {"/cut.csv": delimited(",").encode()}
        site.cut_short = {"/cut.csv"}
        site.statuses = {"/down.csv": [503] * 9}
        with pytest.raises(SourceUnreachableError, match=r"cannot be reached.*--path down\.csv"):
            read(f"{site.url}/down.csv", tmp_path)
        assert len(site.asked) == 3
        with pytest.raises(SourceUnreachableError, match=r"cannot be reached.*--path cut\.csv"):
            read(f"{site.url}/cut.csv", tmp_path)
    with pytest.raises(SourceUnreachableError, match=r"cannot be reached.*--path log\.csv"):
        read(f"{site.url}/log.csv", tmp_path)  # nobody listens there any more


@pytest.mark.parametrize(("status", "what"), [(404, "no such file"), (403, "refused by its host: observed status 403")])
def test_a_host_that_says_no_is_asked_once(tmp_path: Path, status: int, what: str):
    with serve() as site:
        site.statuses = {"/log.csv": [status] * 3}
        with pytest.raises(InputError, match=what):
            read(f"{site.url}/log.csv", tmp_path)
        assert site.asked == ["/log.csv"]


def test_an_unknown_protocol_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be fetched"):
        read("gopher://made/log.csv", tmp_path)


def test_a_folder_of_another_file_system_is_listed_by_fsspec(tmp_path: Path):
    (tmp_path / "log").mkdir()
    for name, user in (("b.csv", 2), ("a.csv", 1)):
        (tmp_path / "log" / name).write_text(f"user_id,item_id,timestamp\n{user},5,1700000000\n")
    assert read(f"file://{tmp_path}/log", tmp_path).events.users.integers().to_pylist() == [1, 2]
    assert read(f"file://{tmp_path}/log/*.csv", tmp_path).events.users.integers().to_pylist() == [1, 2]
