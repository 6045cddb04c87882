"""What validation writes: the same bytes for the same log, all of it or nothing, a page that needs no network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_validation import (
    MONTHS,
    NUM_ROWS,
    Run,
    changed,
    clean_columns,
)

from components import validation
from components.errors import StateError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_same_log_gives_the_same_bytes(tmp_path: Path):
    outputs = []
    for name in ("a", "b"):
        run = Run(tmp_path / name)
        run.write(changed(7, rating=9.0))
        run.validate()
        files = [run.paths["quarantine"], run.paths["report"], run.paths["docs"] / "index.html"]
        outputs.append([file.read_bytes().replace(str(run.root).encode(), b"") for file in files])
    assert outputs[0] == outputs[1]


class Resources(HTMLParser):
    """Collects what a page would load, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"script", "link", "iframe", "object", "embed", "base"}:
            self.loaded.append(tag)
        self.loaded += [str(values[name]) for name in ("src", "srcset", "href", "data", "background") if name in values]
        if values.get("id"):
            self.ids.append(str(values["id"]))


def test_the_data_docs_need_no_network(run: Run):
    run.write(changed(7, rating=9.0))
    run.validate()
    assert [path.name for path in run.paths["docs"].iterdir()] == ["index.html"]
    resources = Resources()
    resources.feed(run.page)
    assert resources.loaded == []
    assert re.findall(r"@import|url\(|https?://", run.page) == []
    assert len(resources.ids) == len(set(resources.ids)) > 0


def test_the_data_docs_show_every_claim_with_what_was_observed(run: Run):
    columns = changed(7, action="<script>alert(1)</script>", rating=9.0)
    run.write(columns)
    run.validate()
    page = run.page
    for expectation in run.report["expectations"]:
        assert expectation["claim"].replace("'", "&#39;") in page or expectation["claim"] in page
    assert "1 unexpected values found" in page
    assert ">--<" not in page  # what Great Expectations prints where it fails to render an observed value
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("num_ratings", [0, 240])
def test_shares_in_the_data_docs_are_of_all_rows_though_ratings_are_missing(run: Run, num_ratings: int):
    columns = clean_columns()
    columns["rating"][num_ratings:] = [None] * (NUM_ROWS - num_ratings)
    if num_ratings:
        columns["rating"][0] = 9.0
    run.write(columns)
    run.validate()
    assert ">--<" not in run.page
    assert ("1 unexpected values found. ≈0.3333% of 300 total rows" in run.page) == bool(num_ratings)


def test_when_one_output_cannot_be_written_all_stay_as_they_were(run: Run, monkeypatch: pytest.MonkeyPatch):
    run.write(clean_columns())
    run.validate()
    files = [run.paths["quarantine"], run.paths["report"], run.paths["docs"] / "index.html"]
    before = [file.read_bytes() for file in files]

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(validation, "write_json", fail)
    run.write(changed(7, rating=9.0))
    with pytest.raises(OSError, match="disk full"):
        run.validate()
    assert [file.read_bytes() for file in files] == before
    assert sorted(path.name for path in run.root.rglob("*") if path.name.startswith(".")) == []


def test_a_partition_that_is_no_parquet_file_is_named_and_nothing_is_written(run: Run):
    run.write(clean_columns())
    broken = run.paths["data"] / "interactions" / MONTHS[1] / "part-0.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(StateError, match=r"2001-10/part-0.parquet: is not a Parquet file"):
        run.validate()
    assert not (run.root / "reports").exists()
