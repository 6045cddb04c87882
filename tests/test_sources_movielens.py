"""The default source, from a made wheel in a folder of its own: no network is touched."""

import hashlib
from pathlib import Path

import pytest
from made_sources import U_DATA, write_zip

from components.errors import InputError, SourceUnreachableError
from components.sources import movielens
from components.sources.log import SourceLog
from components.sources.movielens import read_movielens_100k

FOLDER = "recbole/dataset_example/ml-100k"
EVENTS = U_DATA.encode()
ITEMS = "10\tMisérables, Les\t1995\tDrama Musical\n20\tunkonwn\tunkonwn\tunknown\n".encode()
MEMBERS = {
    f"{FOLDER}/ml-100k.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + EVENTS,
    f"{FOLDER}/ml-100k.item": b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + ITEMS,
    "recbole-1.2.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
    "recbole-1.2.1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "recbole-1.2.1.dist-info/RECORD": b"",
}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip look into one empty folder and nowhere else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def read(tmp_path: Path) -> SourceLog:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return read_movielens_100k(scratch)


def test_the_two_members_of_the_wheel_are_read(tmp_path: Path, only_here: Path, monkeypatch: pytest.MonkeyPatch):
    write_zip(only_here / "recbole-1.2.1-py3-none-any.whl", MEMBERS)
    monkeypatch.setattr(movielens, "MD5_EVENTS", md5(EVENTS))
    monkeypatch.setattr(movielens, "MD5_ITEMS", md5(MEMBERS[f"{FOLDER}/ml-100k.item"]))
    log = read(tmp_path)
    assert log.events.users.integers().to_pylist() == [1, 2, 1]
    assert log.events.times.seconds.tolist() == [881250949, 891717742, 881250949]
    assert log.items.ids.integers().to_pylist() == [10, 20]
    assert log.items.fields.select(["title", "genres"]).to_pylist() == [
        {"title": "Misérables, Les (1995)", "genres": "Drama|Musical"},
        {"title": "unkonwn", "genres": "unknown"},
    ]
    assert log.terms is not None
    assert "research only" in log.terms
    assert log.notes == []


def test_a_wheel_with_other_bytes_is_refused(tmp_path: Path, only_here: Path):
    write_zip(only_here / "recbole-1.2.1-py3-none-any.whl", MEMBERS)
    with pytest.raises(InputError, match=r"does not hold the known bytes.*6e47046882bad158b0efbb84cd5cb987"):
        read(tmp_path)


def test_a_wheel_without_the_data_is_refused(tmp_path: Path, only_here: Path):
    members = {name: content for name, content in MEMBERS.items() if not name.endswith(".item")}
    write_zip(only_here / "recbole-1.2.1-py3-none-any.whl", members)
    with pytest.raises(InputError, match=r"ml-100k\.item: has no such member"):
        read(tmp_path)


def test_without_an_index_the_error_names_the_local_file_that_would_do(tmp_path: Path, only_here: Path):
    assert not list(only_here.iterdir())
    with pytest.raises(SourceUnreachableError, match=r"--source grouplens --path ml-100k\.zip"):
        read(tmp_path)
