"""MovieLens archives: every layout, titles as printed, checksums, and archives nobody should trust."""

import hashlib
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_sources import ARCHIVES, serve, shared_archive, write_zip

from components.errors import InputError, SettingsError, SourceUnreachableError
from components.settings import IngestSettings
from components.sources import fetch, grouplens
from components.sources.grouplens import read_grouplens
from components.sources.log import SourceLog


def read(path: object, folder: Path) -> SourceLog:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return read_grouplens(IngestSettings(source="grouplens", path=str(path)), scratch)


def titles(log: SourceLog) -> dict[str, tuple[str, str]]:
    keys = log.items.ids.texts().to_pylist()
    fields = log.items.fields.select(["title", "genres"]).to_pylist()
    return dict(zip(keys, [(row["title"], row["genres"]) for row in fields], strict=True))


EXPECTED = {
    "ml-100k": {"10": ("Misérables, Les (1995)", "Action|Sci-Fi"), "20": ("Naked Gun 33 1/3 (1994)", "")},
    "ml-1m": {
        "10": ("Misérables, Les (1995)", "Drama|Musical"),
        "20": ("Mission:: Impossible :: II (2000)", "Action"),
    },
    "ml-20m": {"10": ("American President, The (1995)", "Comedy|Drama"), "20": ("Solo (2006)", "Drama")},
    "movietweetings": {
        "0104257": ("Fantômas - À l'ombre (1913)", "Crime|Drama"),
        "1074638": ("Skyfall (2012)", ""),
    },
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_layout_is_recognised_and_titles_come_out_as_printed(tmp_path: Path, name: str):
    log = read(write_zip(tmp_path / f"{name}.zip", ARCHIVES[name]), tmp_path)
    assert titles(log) == EXPECTED[name]
    assert log.events.users.integers().to_pylist() == [1, 2, 1]
    assert log.events.items.texts().to_pylist() == [*EXPECTED[name], list(EXPECTED[name])[1]]
    assert log.events.times.unit == "s"
    assert log.events.actions.to_pylist() == ["rate"] * 3


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_unpacked_folder_gives_the_same_as_the_archive(tmp_path: Path, name: str):
    archive = write_zip(tmp_path / "one.zip", ARCHIVES[name])
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked")
    packed, unpacked = read(archive, tmp_path), read(tmp_path / "unpacked", tmp_path)
    assert titles(packed) == titles(unpacked)
    assert packed.events.times.seconds.tolist() == unpacked.events.times.seconds.tolist()


def test_windows_line_ends_inside_an_archive_are_read(tmp_path: Path):
    members = {name: content.replace(b"\n", b"\r\n") for name, content in ARCHIVES["ml-1m"].items()}
    assert titles(read(write_zip(tmp_path / "dos.zip", members), tmp_path)) == EXPECTED["ml-1m"]


def test_ratings_alone_are_a_log_without_titles(tmp_path: Path):
    (tmp_path / "ratings.dat").write_bytes(ARCHIVES["ml-1m"]["ml-1m/ratings.dat"])
    log = read(tmp_path / "ratings.dat", tmp_path)
    assert log.events.items.integers().to_pylist() == [10, 20, 20]
    assert len(log.items.ids) == 0


def test_a_local_archive_with_another_checksum_is_read_and_noted(tmp_path: Path):
    log = read(write_zip(tmp_path / "ml-1m.zip", ARCHIVES["ml-1m"]), tmp_path)
    assert any("is not that of the official archive (c4d9eecfca2ab87c1945afe126590906)" in note for note in log.notes)
    assert not any(str(tmp_path) in note for note in log.notes)


def test_a_known_checksum_binds_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = write_zip(tmp_path / "ml-1m.zip", ARCHIVES["ml-1m"]).read_bytes()
    with serve() as site:
        site.pages = {"/ml-1m.zip": content, "/ml-latest-small.zip": content}
        with pytest.raises(InputError, match="is not the archive that GroupLens published"):
            read(f"{site.url}/ml-1m.zip", tmp_path)
        observed = hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert any(observed in note for note in read(f"{site.url}/ml-latest-small.zip", tmp_path).notes)
        monkeypatch.setitem(grouplens.MD5, "ml-1m.zip", observed)
        assert read(f"{site.url}/ml-1m.zip", tmp_path).notes == []


def test_an_unreachable_host_is_answered_with_the_local_file_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "WAITS", (0.0, 0.0))
    with serve() as site:
        url = site.url
    with pytest.raises(SourceUnreachableError, match=r"--source grouplens --path ml-1m\.zip"):
        read(f"{url}/ml-1m.zip", tmp_path)


def test_a_web_page_under_the_address_of_an_archive_is_recognised(tmp_path: Path):
    with serve() as site:
        site.pages = {"/ml-latest.zip": b"\n<!DOCTYPE html><html>Please log in</html>"}
        with pytest.raises(InputError, match=r"ml-latest\.zip: is a web page, not an archive"):
            read(f"{site.url}/ml-latest.zip", tmp_path)


@pytest.mark.parametrize("name", ["../../evil.dat", "/etc/evil.dat", "C:\\evil.dat", "a\\..\\..\\evil.dat"])
def test_members_that_point_outside_are_refused(tmp_path: Path, name: str):
    archive = write_zip(tmp_path / "evil.zip", {**ARCHIVES["ml-1m"], name: b"x"})
    with pytest.raises(InputError, match="points outside its folder"):
        read(archive, tmp_path)
    assert not (tmp_path / "evil.dat").exists()


def test_a_symbolic_link_in_an_archive_is_refused(tmp_path: Path):
    link = zipfile.ZipInfo("ml-1m/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = write_zip(tmp_path / "evil.zip", ARCHIVES["ml-1m"])
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="points outside its folder"):
        read(archive, tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 200, -30])
def test_a_truncated_archive_is_one_clear_error(tmp_path: Path, keep: int):
    archive = write_zip(tmp_path / "cut.zip", ARCHIVES["ml-1m"])
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut\.zip: is (empty|not a whole zip archive)"):
        read(archive, tmp_path)


def test_a_flipped_byte_inside_a_member_is_found(tmp_path: Path):
    archive = tmp_path / "flipped.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for name, content in ARCHIVES["ml-1m"].items():
            opened.writestr(name, content)
    archive.write_bytes(archive.read_bytes().replace(b"2::20::3", b"2::20::4"))
    with pytest.raises(InputError, match=r"flipped\.zip/ml-1m/ratings\.dat: is corrupt"):
        read(archive, tmp_path)


@pytest.mark.parametrize(
    ("name", "member", "old", "new", "what"),
    [
        ("ml-1m", "ml-1m/ratings.dat", b"2::20::3::978302109", b"2::20::3", "line 2: is a ragged row: observed 3"),
        ("ml-1m", "ml-1m/ratings.dat", b"978302109", b"later", "line 2, column timestamp"),
        ("ml-1m", "ml-1m/movies.dat", b"20::Mission:: Impossible :: II (2000)::Action", b"20", "line 2: is a ragged"),
        ("ml-100k", "ml-100k/u.data", b"2\t20\t3", b"2\t20\tgood", "line 2, column rating: is not a rating"),
        ("ml-100k", "ml-100k/u.item", b"|0|1|0|1", b"|0|1|0", "line 1: is a ragged row"),
        ("ml-20m", "ml-20m/ratings.csv", b"movieId", b"movie", "has no column"),
        ("ml-20m", "ml-20m/ratings.csv", b"2,20,4.0", b"2,,4.0", "line 3, column movieId: is missing"),
    ],
)
def test_a_bad_line_is_named_with_its_archive_member(
    tmp_path: Path, name: str, member: str, old: bytes, new: bytes, what: str
):
    content = ARCHIVES[name][member]
    assert old in content
    archive = write_zip(tmp_path / "bad.zip", {**ARCHIVES[name], member: content.replace(old, new)})
    with pytest.raises(InputError, match=rf"bad\.zip/{member}.*{what}"):
        read(archive, tmp_path)


def test_an_archive_of_something_else_lists_what_was_expected(tmp_path: Path):
    archive = write_zip(tmp_path / "other.zip", {"photos/1.jpg": b"x"})
    with pytest.raises(InputError, match=r"observed photos/1\.jpg, expected u\.data or ratings\.dat or ratings\.csv"):
        read(archive, tmp_path)


def test_a_path_is_needed(tmp_path: Path):
    with pytest.raises(SettingsError, match="--path: is missing"):
        read_grouplens(IngestSettings(source="grouplens"), tmp_path)


REAL = {
    "ml-100k.zip": (943, 1_682, {1: 6_110, 2: 11_370, 3: 27_145, 4: 34_174, 5: 21_201}),
    "ml-1m.zip": (6_040, 3_706, {1: 56_174, 2: 107_557, 3: 261_197, 4: 348_971, 5: 226_310}),
    "movietweetings-100k.zip": (16_554, 10_506, None),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_archives_have_their_published_counts(tmp_path: Path, name: str):
    users, items, counts = REAL[name]
    log = read(shared_archive(name), tmp_path)
    assert len(log.events.users.texts().unique()) == users
    assert len(log.events.items.texts().unique()) == items
    values, sizes = np.unique(log.events.ratings.to_numpy(), return_counts=True)
    assert counts is None or dict(zip(values.astype(int).tolist(), sizes.tolist(), strict=True)) == counts
    assert log.events.items.is_text == (counts is None)
    rated, titled = set(log.events.items.texts().unique().to_pylist()), set(titles(log))
    assert rated <= titled
