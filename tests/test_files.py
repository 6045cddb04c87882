from pathlib import Path

import pytest

from components.files import hash_files, read_json, replacing_file, replacing_folder, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    target = tmp_path / "a.json"
    write_json(target, {"b": 1})
    with pytest.raises(RuntimeError, match="half way"), replacing_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert read_json(target) == {"b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    target = tmp_path / "data"
    with replacing_folder(target) as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(RuntimeError, match="half way"), replacing_folder(target) as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError("half way")
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path):
    target = tmp_path / "data"
    for name in ("old", "new"):
        with replacing_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["new"]


def test_json_refuses_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_hash_changes_with_names_and_bytes_and_not_with_caches(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    first = hash_files([tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("cache")
    assert hash_files([tmp_path]) == first
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = hash_files([tmp_path])
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, hash_files([tmp_path])}) == 3
