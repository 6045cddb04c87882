import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import StateError
from components.files import hash_files, read_json, reading, replacing_file, replacing_folder, write_json

ROOT = Path(__file__).parent.parent
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from components.files import replacing_file, replacing_folder
with {context}(Path(sys.argv[1])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


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


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, record_syncs):
    synced = record_syncs((tmp_path / "a.json").exists)
    write_json(tmp_path / "a.json", {})
    assert synced == [((tmp_path / "a.json").stat().st_ino, False)]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_and_all_in_it_are_on_the_disk_before_it_has_its_name_and_the_name_thereafter(
    tmp_path: Path, record_syncs, replaced: bool
):
    target = tmp_path / "data"
    if replaced:
        target.mkdir()
    synced = record_syncs((target / "month").exists)
    with replacing_folder(target) as temporary:
        (temporary / "month" / "empty").mkdir(parents=True)
        (temporary / "month" / "part").write_text("rows")
        (temporary / "manifest").write_text("{}")
    places = {path.stat().st_ino: path for path in (tmp_path, target, *target.rglob("*"))}
    *inside, name = [(places[inode], has_its_name) for inode, has_its_name in synced]
    assert sorted(inside) == sorted((path, False) for path in (target, *target.rglob("*")))
    order = [path for path, _ in inside]
    assert all(order.index(path) < order.index(path.parent) for path in target.rglob("*"))
    assert name == (tmp_path, True)


@pytest.mark.parametrize("context", [replacing_file, replacing_folder])
def test_what_a_killed_writer_left_is_removed_by_the_next_write_of_the_same_target(tmp_path: Path, context):
    program = KILLED_WHILE_WRITING.format(context=context.__name__)
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.b")], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    with replacing_file(tmp_path / "a") as temporary:  # another target
        temporary.write_text("another")
    assert left.exists()
    with context(tmp_path / "a.b") as temporary:
        (temporary / "new" if temporary.is_dir() else temporary).write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.b"]


def test_a_living_writer_of_the_same_target_is_left_alone(tmp_path: Path):
    others = tmp_path / f".a.{os.getppid()}.01234567"
    others.touch()
    with replacing_file(tmp_path / "a") as mine:
        with replacing_file(tmp_path / "a") as second:
            second.write_text("second")
        mine.write_text("mine")
    assert (tmp_path / "a").read_text() == "mine"
    assert others.exists()


def test_a_dead_process_with_this_one_s_number_left_a_leftover_too(tmp_path: Path):
    (tmp_path / f".a.{os.getpid()}.01234567").mkdir()  # in a container every process may be number 1
    write_json(tmp_path / "a", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("content", "message"), [(None, "a.json: is missing"), ("{", "a.json: cannot be read")])
def test_a_missing_or_damaged_file_is_named_with_what_to_do(tmp_path: Path, content, message):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StateError, match=rf"{message}.*Make it anew"), reading(file, todo="Make it anew"):
        read_json(file)


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
