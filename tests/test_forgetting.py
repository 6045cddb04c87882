"""forget-user: nothing below the repository names the person afterwards, all other events stay, models are listed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from made_logs import FRACTIONS
from safetensors.numpy import save_file

from components import forgetting
from components.console import log
from components.dvc_objects import Stores, find_objects
from components.errors import InputError, StateError
from components.files import hash_files, write_json
from components.forgetting import forget_user
from components.ingestion import ingest
from components.interactions import read_interactions, read_keys, read_manifest
from components.lineage import lineage_of_user
from components.person import Person, find_person, holds
from components.sequences import build_sequences
from components.settings import IngestSettings

DAY, START = 86_400, 1_698_796_800  # 2023-11-01
OTHERS = 12


def git_and_dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "--quiet"], check=True)


def names_of(kind: str) -> tuple[str, list[str]]:
    """Return the person's id in the source, and everybody else's."""
    if kind == "text":
        return "ann-of-the-hills", [f"user-{number}" for number in range(OTHERS)]
    return "7000000019", [str(100 + number) for number in range(OTHERS)]


def write_night(folder: Path, number: int, users: list[str]) -> None:
    rows = [
        f"{user},{10 + (step + place) % 5},{START + (40 * number + step) * DAY + place}"
        for place, user in enumerate(users)
        for step in range(6)
    ]
    (folder / f"{number}.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")


def take(source: Path) -> None:
    options = {"source": "table", "mode": "append", "path": str(source)}
    ingest(IngestSettings(source="movielens-100k"), options, data=Path("data"))


def derive() -> None:
    """Make of the log what the pipeline makes of it and names people in."""
    artifacts, person = Path("artifacts"), read_interactions()["user_id"].to_pylist()
    artifacts.mkdir(exist_ok=True)
    nothing = {"partition": pa.array([], pa.string()), "row": pa.array([], pa.int64())}
    pq.write_table(pa.table(nothing), artifacts / "quarantine.parquet")
    for folder in ("validated", "evaluation/time_split/hstu", "runs/0123", "checkpoints/time_split/hstu"):
        (artifacts / folder).mkdir(parents=True, exist_ok=True)
    build_sequences(
        FRACTIONS,
        ["time_split"],
        data=Path("data"),
        quarantine=artifacts / "quarantine.parquet",
        out=artifacts / "sequences",
    )
    users = np.unique(person)
    save_file({"users": users}, artifacts / "validated" / "a.safetensors")
    judged = artifacts / "evaluation" / "time_split" / "hstu"
    pq.write_table(pa.table({"user_id": users, "ndcg@10": users * 0.1}), judged / "per_user.parquet")
    write_json(judged / "examples.json", [{"user": int(user), "history": []} for user in users])
    write_json(artifacts / "checkpoints" / "time_split" / "hstu" / "checkpoint.json", {"num_items": 5})
    docs = Path("reports/data_docs")
    docs.mkdir(parents=True, exist_ok=True)
    cells = "".join(f"<td>{user}</td>" for user in users)
    (docs / "index.html").write_text(f"<!DOCTYPE html>\n<table><tr>{cells}</tr></table>\n")


@pytest.fixture(scope="module", params=["text"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository, a remote and a source, in which two versions of the log and what is made of them are kept.

    The person is in the first night's file, from November on, and everybody else in both.
    """
    folder = tmp_path_factory.mktemp(request.param)
    person, others = names_of(request.param)
    for name in ("repository", "source", "remote", "bentoml"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "repository")
        git_and_dvc("init", "--no-scm")
        Path(".dvc/config").write_text(
            "['remote \"backup\"']\n    url = ../../remote\n[core]\n    no_scm = True\n    remote = backup\n"
        )
        for number, users in enumerate(([*others, person], others)):
            write_night(folder / "source", number, users)
            take(folder / "source")
            derive()
            made_of_it = ("artifacts/sequences", "artifacts/evaluation", "artifacts/checkpoints", "reports/data_docs")
            git_and_dvc("add", "data", *made_of_it)
        shutil.copytree(".dvc/cache/files", folder / "remote" / "files")  # what `dvc push` of every version leaves
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fresh copy of `made`, whose repository is the working directory."""
    folder = tmp_path / made.name
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder / "repository")
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    return folder


@pytest.fixture
def known_stores(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Spare the processes that ask DVC where its stores are, and let it add what is new."""
    local = [Path(".dvc/cache/files/md5"), here / "remote" / "files" / "md5"]
    monkeypatch.setattr(forgetting, "find_stores", lambda: Stores(local, []))
    monkeypatch.setattr(forgetting, "run_dvc", lambda *_: "")


@pytest.fixture
def key(made: Path) -> str:
    return names_of("text" if made.name.startswith("text") else "integer")[0]


def forget(key: str, **options: object):
    return forget_user(key, root=Path(), registry=Path("registry"), **options)


def names_person(file: Path, person: Person, *, by_number: bool) -> bool:
    """Search one file: its bytes and a table's decoded values for the key, and for the number where users are named."""
    content = file.read_bytes()
    if person.key.encode() in content or (person.id > 10**9 and person.id.to_bytes(8, "little") in content):
        return True
    if content.startswith(b"PAR1"):
        table = pq.read_table(pa.BufferReader(content))
    elif content.startswith(b"ARROW1"):
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    else:
        return False
    values = {name: {str(value) for value in table[name].to_pylist()} for name in table.column_names}
    return any(person.key in found for found in values.values()) or (
        by_number and str(person.id) in values.get("user_id", set())
    )


def files_naming(person: Person, *places: Path) -> list[Path]:
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
    return [file for file in files if names_person(file, person, by_number=True)]


def snapshot(*places: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for place in places for file in sorted(place.rglob("*")) if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("made", ["text", "integer"], indirect=True)
def test_no_file_names_the_person_afterwards_and_everybody_else_is_as_before(here: Path, key: str):
    person = find_person(key, Path("data"))
    before = [row for row in read_interactions().drop_columns("row").to_pylist() if row["user_id"] != person.id]
    found = files_naming(person, Path(), here / "remote")
    assert {"sequences", "evaluation", "data", ".dvc"} <= {part for file in found for part in file.parts}
    forgotten = forget(key)
    assert (forgotten.person.rows, len(forgotten.objects) > 10) == (6, True)
    assert files_naming(person, Path(), here / "remote") == []
    assert read_interactions().drop_columns("row").to_pylist() == before
    git_and_dvc("checkout", "data.dvc")  # the pinned version is whole, in the cache
    assert read_manifest()["counts"]["events"] == len(before)


@pytest.mark.slow
def test_what_holds_nobody_stays_in_cache_and_remote(here: Path, key: str):
    kept = hash_files([Path("artifacts/checkpoints")])
    forget(key)
    shutil.rmtree("artifacts/checkpoints")
    git_and_dvc("checkout", "artifacts/checkpoints.dvc")
    assert hash_files([Path("artifacts/checkpoints")]) == kept
    for store in (Path(".dvc/cache/files/md5"), here / "remote" / "files" / "md5"):
        for listing in store.glob("??/*.dir"):
            listed = [entry["md5"] for entry in json.loads(listing.read_text())]
            assert [name for name in listed if not (store / name[:2] / name[2:]).exists()] == []


@pytest.mark.slow
@pytest.mark.usefixtures("known_stores")
def test_a_dry_run_says_what_would_go_and_changes_nothing(here: Path, key: str, capsys: pytest.CaptureFixture[str]):
    before = snapshot(Path("data"), Path("artifacts"), Path("reports"), Path(".dvc/cache"), here / "remote")
    forgotten = forget(key, dry_run=True)
    assert snapshot(Path("data"), Path("artifacts"), Path("reports"), Path(".dvc/cache"), here / "remote") == before
    assert "would go" in capsys.readouterr().out
    assert len(forgotten.objects) > 10
    assert Path("artifacts/sequences") in forgotten.paths


@pytest.mark.slow
def test_stopped_before_dvc_has_the_new_log_the_same_command_gives_it_to_dvc(
    here: Path, key: str, monkeypatch: pytest.MonkeyPatch
):
    person = find_person(key, Path("data"))

    def killed(*words: str) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("components.forgetting.run_dvc", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(key)
    assert len(read_manifest()["forgotten"]) == 1  # the log has changed already
    forgotten = forget(key)
    assert {model["saw"] for model in forgotten.models} <= {"maybe"}  # nobody can say any more who saw the person
    assert files_naming(person, Path(), here / "remote") == []
    git_and_dvc("checkout", "data.dvc")
    assert files_naming(person, Path("data")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("known_stores")
def test_a_second_call_goes_on_where_a_kill_stopped_the_first(here: Path, key: str, monkeypatch: pytest.MonkeyPatch):
    person = find_person(key, Path("data"))

    def killed(*_: object, **__: object) -> list[Path]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("components.forgetting.find_objects", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(key)
    assert find_person(key, Path("data")).rows == 6
    forget(key)
    assert files_naming(person, Path(), here / "remote") == []


# --- without DVC -----------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a log of text ids in two files, and no DVC."""
    for name in ("repository", "source"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    person, others = names_of("text")
    write_night(tmp_path / "source", 0, [*others, person])
    write_night(tmp_path / "source", 1, others)
    take(tmp_path / "source")
    return tmp_path


def test_the_log_is_as_if_the_person_had_never_been_in_it_but_for_the_number(plain: Path):
    person, others = names_of("text")
    forget(person)
    forgotten = {entry["name"]: entry for entry in read_manifest()["files"]}
    parts = hash_files([Path("data/interactions")])
    write_night(plain / "source", 0, others)
    shutil.rmtree("data")
    take(plain / "source")
    assert hash_files([Path("data/interactions")]) == parts
    for entry in read_manifest()["files"]:
        assert {**forgotten[entry["name"]], "sha256": entry["sha256"]} == entry


def test_nobody_is_meant_by_an_empty_id_not_even_who_was_forgotten(plain: Path):
    forget(names_of("text")[0])
    before = snapshot(plain / "data")
    with pytest.raises(InputError, match="--user: is no user of this log: observed ''"):
        forget("")
    assert snapshot(plain / "data") == before


def test_the_number_is_never_given_to_anybody_else(plain: Path):
    person, others = names_of("text")
    number = find_person(person, Path("data")).id
    assert number == max(read_keys(Path("data"), "user"))
    forget(person)
    write_night(plain / "source", 2, ["zoe"])
    take(plain / "source")
    keys = read_keys(Path("data"), "user")
    assert (keys[number], keys[number + 1]) == ("", "zoe")
    assert [keys[other] for other in sorted(keys) if other < number] == others


def test_a_night_after_it_does_not_bring_the_person_back_while_the_files_are_as_they_were(plain: Path):
    person, _ = names_of("text")
    forget(person)
    state = hash_files([Path("data")])
    take(plain / "source")
    assert hash_files([Path("data")]) == state


def users_of_log() -> set[str]:
    keys = read_keys(Path("data"), "user")
    return {keys[number] for number in read_interactions()["user_id"].to_pylist()}


def test_files_read_again_or_new_ones_do_not_bring_the_person_back(plain: Path, caplog: pytest.LogCaptureFixture):
    person, others = names_of("text")
    forget(person)
    (plain / "source" / "0.csv").write_text((plain / "source" / "0.csv").read_text() + f"zoe,10,{START}\n")
    write_night(plain / "source", 2, [person, "user-1"])
    with caplog.at_level("INFO", logger=log.name):
        take(plain / "source")
    assert users_of_log() == {*others, "zoe"}
    assert caplog.text.count("6 events of forgotten users left out") == 2
    assert person not in (read_keys(Path("data"), "user") or {}).values()
    assert len(read_manifest()["forgotten"]) == 1


def test_a_log_read_at_once_does_not_bring_the_person_back(plain: Path):
    person, others = names_of("text")
    forget(person)
    forget("user-3")
    options = {"source": "table", "path": str(plain / "source")}
    for _ in range(2):
        ingest(IngestSettings(source="movielens-100k"), options, data=Path("data"), replace=True)
        assert users_of_log() == set(others) - {"user-3"}
        assert len(read_manifest()["forgotten"]) == 2


def take_at_once(source: str, **options: object) -> None:
    ingest(IngestSettings(source="movielens-100k"), {"source": source, **options}, data=Path("data"), replace=True)


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_log_read_in_another_way_does_not_bring_the_person_back(
    plain: Path, mode: str, caplog: pytest.LogCaptureFixture
):
    person, others = names_of("text")
    forget(person)
    forgotten = read_manifest()["forgotten"]
    for file in (plain / "source").iterdir():
        head, *rows = file.read_text().splitlines()
        file.write_text("\n".join([f"{head},stars", *(f"{row},3" for row in rows)]) + "\n")
    with caplog.at_level("INFO", logger=log.name):
        take_at_once("table", path=str(plain / "source"), mode=mode, columns={"rating": "stars"})
    assert users_of_log() == set(others)
    assert read_manifest()["forgotten"] == forgotten
    assert "people who stay forgotten: 1" in caplog.text


def test_another_log_in_between_and_one_without_its_files_keep_the_list(plain: Path):
    person, others = names_of("text")
    forget(person)
    forgotten = read_manifest()["forgotten"]
    take_at_once("synthetic", synthetic={"users": 20, "items": 20, "categories": 5, "months": 2})
    assert read_manifest()["forgotten"] == forgotten
    shutil.rmtree("data/interactions")
    take_at_once("table", path=str(plain / "source"))
    assert users_of_log() == set(others)


def test_a_made_log_leaves_the_forgotten_out_too(plain: Path):
    shutil.rmtree("data")
    options = {"synthetic": {"users": 20, "items": 20, "categories": 5, "months": 2}}
    take_at_once("synthetic", **options)
    before = read_interactions()["user_id"].unique().to_pylist()
    forget("7")
    state = hash_files([Path("data")])
    take_at_once("synthetic", **options)
    assert hash_files([Path("data")]) == state
    assert sorted(read_interactions()["user_id"].unique().to_pylist()) == sorted(set(before) - {7})


@pytest.mark.parametrize("others", [("7000000021", "user-x"), ("user-x", "7000000021")])
def test_the_person_stays_away_when_ids_turn_from_numbers_to_text_or_back(plain: Path, others: tuple[str, str]):
    shutil.rmtree("data")
    (plain / "source" / "1.csv").unlink()
    kinds = []
    for other, item in zip(others, ("item_id", "what"), strict=True):
        write_night(plain / "source", 0, ["7000000020", other])
        file = plain / "source" / "0.csv"
        file.write_text(file.read_text().replace("item_id", item))
        take_at_once("table", path=str(plain / "source"), columns={"item_id": item})
        kinds.append(read_keys(Path("data"), "user") is None)
        if other == others[0]:
            forget("7000000020")
        assert read_manifest()["counts"]["users"] == 1
    assert set(kinds) == {True, False}


def test_a_log_of_forgotten_people_only_is_refused(plain: Path):
    person, _ = names_of("text")
    forget(person)
    state = hash_files([Path("data")])
    (plain / "source" / "1.csv").unlink()
    write_night(plain / "source", 0, [person])
    with pytest.raises(InputError, match="has events of forgotten people only"):
        take_at_once("table", path=str(plain / "source"))
    assert hash_files([Path("data")]) == state


def test_the_finer_order_of_the_source_stays_without_the_forgotten(plain: Path):
    person, _ = names_of("text")
    forget(person)
    rows = [f"user-1,{item},2024-05-01T00:00:00.{9 - item}" for item in range(4)]
    rows.insert(2, f"{person},7,2024-05-01T00:00:00.5")
    (plain / "source" / "2.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    take(plain / "source")
    assert read_interactions()["item_id"].to_pylist()[-4:] == [3, 2, 1, 0]


def test_somebody_who_is_not_there_is_named_and_nothing_changes(plain: Path):
    state = hash_files([Path("data")])
    with pytest.raises(InputError, match="--user: is no user of this log: observed 'nobody'"):
        forget("nobody")
    assert hash_files([Path("data")]) == state


@pytest.fixture
def whole_numbers(plain: Path) -> Path:
    """The same, of int64 ids, 123 among them."""
    shutil.rmtree("data")
    for night in range(2):
        write_night(plain / "source", night, ["123", "-5", "124"])
    take(plain / "source")
    return plain


@pytest.mark.parametrize(
    "key", ["0123", "+123", "1_23", " 123", "123\n", "\u0661\u0662\u0663", "1.0", "-0", "9" * 19, ""]
)
@pytest.mark.parametrize("ask", ["forget-user", "lineage"])
def test_a_number_that_is_written_otherwise_is_refused_and_nothing_changes(whole_numbers: Path, key: str, ask: str):
    state = hash_files([whole_numbers])
    with pytest.raises(InputError, match=r"--user: is no user of this log: observed .* expected a whole number, as in"):
        forget(key) if ask == "forget-user" else lineage_of_user(key, root=Path(), registry=Path("registry"))
    assert hash_files([whole_numbers]) == state


@pytest.mark.parametrize("key", ["123", "-5"])
def test_a_number_as_the_source_has_it_is_forgotten_and_stays_away(whole_numbers: Path, key: str):
    assert forget(key).person.rows == 12
    assert forget(key).person == Person(key, int(key), {}, 0)  # once more: nothing is left
    write_night(whole_numbers / "source", 2, ["123", "-5", "124"])
    take(whole_numbers / "source")
    assert sorted(set(read_interactions()["user_id"].to_pylist())) == sorted({123, -5, 124} - {int(key)})


@pytest.mark.parametrize("key", ["0123", "ann"])
def test_a_hash_of_what_is_no_number_in_the_list_finds_nobody_of_a_log_of_numbers(whole_numbers: Path, key: str):
    manifest = read_manifest()
    write_json(Path("data/manifest.json"), manifest | {"forgotten": [forgetting.hash_key(key)]})
    state = hash_files([whole_numbers])
    with pytest.raises(InputError, match="is no user of this log"):
        forget(key)
    assert hash_files([whole_numbers]) == state


def test_the_last_person_is_not_forgotten_into_an_empty_log(plain: Path):
    shutil.rmtree("data")
    for file in (plain / "source").iterdir():
        file.unlink()
    write_night(plain / "source", 0, ["zoe"])
    take(plain / "source")
    state = hash_files([Path("data")])
    with pytest.raises(InputError, match="has nobody else's events"):
        forget("zoe")
    assert hash_files([Path("data")]) == state


def test_while_a_training_is_in_progress_nothing_is_removed(plain: Path):
    derive()
    state = hash_files([Path("data"), Path("artifacts")])
    with FileLock("artifacts/runs/0123.lock"), pytest.raises(StateError, match="a training is in progress"):
        forget(names_of("text")[0])
    Path("artifacts/runs/0123.lock").unlink(missing_ok=True)
    assert hash_files([Path("data"), Path("artifacts")]) == state


def test_the_service_forgets_too_where_its_store_is_named(plain: Path):
    from components.serving.history_store import StoredEvent, open_store

    url, person = f"sqlite:///{plain}/histories.db", names_of("text")[0]
    store = open_store(url)
    store.append(person, [StoredEvent("e1", 10, START), StoredEvent("e2", 11, START)])
    store.append("user-1", [StoredEvent("e3", 10, START)])
    store.close()
    assert forget(person, store=url).stored == 2
    store = open_store(url)
    assert [len(store.read(user, 9).events) for user in (person, "user-1")] == [0, 1]
    store.close()


def test_the_log_of_requests_and_scores_forget_too(plain: Path):
    person = names_of("text")[0]
    rows = [json.dumps({"user_id": user, "k": 3}, separators=(",", ":")) for user in (person, "user-1", person)]
    logged = Path("requests/2026-01-01/1.jsonl")
    logged.parent.mkdir(parents=True)
    logged.write_text("".join(f"{row}\n" for row in rows))
    write_json(Path("artifacts/scores/part-00000.json"), {"user_id": person})
    assert forget(person, requests=Path("requests")).requests == 2
    assert logged.read_text() == f"{rows[1]}\n"
    assert not Path("artifacts/scores").exists()


def test_a_file_that_still_names_the_person_is_an_error(plain: Path):
    person = names_of("text")[0]
    write_json(Path("registry/notes.json"), [{"user": person}])
    with pytest.raises(StateError, match=r"registry/notes\.json: holds the person still"):
        forget(person)


# --- which models saw the person -------------------------------------------------------------------------------------


_OF_A_MODEL = {"settings": {}, "refit_epochs": [], "data_hash": "0" * 64}


def store_model(home: Path, version: str, **facts: object) -> None:
    folder = home / "models" / "hstuflow" / version
    folder.mkdir(parents=True)
    split = {"train_end": facts.pop("train_end"), "valid_end": facts.pop("valid_end")}
    write_json(
        folder / "checkpoint.json", {"settings": {}, "split": split, "refit_epochs": [], "data_hash": "0" * 64, **facts}
    )


def test_models_are_told_apart_by_their_log_and_by_the_time_they_were_trained_until(plain: Path, tmp_path: Path):
    derive()
    today = hash_files([Path("data"), Path("artifacts/quarantine.parquet")])
    home, late = plain / "bentoml", START + 9 * DAY
    store_model(home, "a-today", train_end=late, valid_end=late, data_hash=today)
    store_model(home, "b-before", train_end=START - 1, valid_end=START - 1)
    store_model(home, "c-before", train_end=START - 1, valid_end=late)
    store_model(home, "d-refit", train_end=START - 1, valid_end=late, refit_epochs=[1])
    store_model(home, "e-after", train_end=late, valid_end=late)
    store_model(home, "f-always", train_end=None, valid_end=None)
    out = tmp_path / "models.json"
    models = lineage_of_user(names_of("text")[0], root=Path(), registry=Path("registry"), out=out)
    assert [one["saw"] for one in models] == ["yes", "no", "no", "maybe", "maybe", "maybe"]
    assert json.loads(out.read_text())["models"] == models
    assert forget(names_of("text")[0]).models == models


# --- what a file holds -----------------------------------------------------------------------------------------------

ANN = Person("ann", 17, {}, None)


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"user_id": [16, 17]}, True),
        ({"user_id": [16, 18], "item_id": [17, 17]}, False),
        ({"user_id": ["bob", "ann"]}, True),
        ({"id": [16, 17], "key": ["bob", "ann"]}, True),
        ({"id": [17, 16], "key": ["bob", "ann"]}, False),  # an item of the same name
        ({"item_id": [17], "key": ["ann"]}, False),
        ({"value": [17]}, False),
    ],
)
def test_tables_are_searched_where_they_name_users(tmp_path: Path, table: dict[str, list[object]], found: bool):
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    with (
        pa.OSFile(str(tmp_path / "table.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.table(table).schema) as writer,
    ):
        writer.write_table(pa.table(table))
    assert holds(tmp_path / "table.parquet", ANN) is found
    assert holds(tmp_path / "table.arrow", ANN) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"user": 17, "history": []}]', True),
        ('{"a": {"user_id": "ann"}}', True),
        ('{"user": 170, "count": 17}', False),
        ("{ not json", False),
        ("<!doctype html><td>17</td>", True),
        ("<!DOCTYPE html><p>for user 17, who had</p>", True),
        ("<!DOCTYPE html><td>170</td><b>at 17 o'clock</b>", False),
        ("17", False),
    ],
)
def test_records_and_pages_are_searched_where_they_name_users(tmp_path: Path, text: str, found: bool):
    (tmp_path / "file").write_text(text)
    assert holds(tmp_path / "file", ANN) is found


def test_a_file_that_another_folder_lists_stays(tmp_path: Path):
    def put(name: str, content: bytes) -> str:
        target = tmp_path / name[:2] / name[2:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return name

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"user_id": [17]}), buffer)
    put("aa01", buffer.getvalue().to_pybytes())
    for name in ("bb01", "cc01", "dd01", "ee01"):
        put(name, name.encode())

    def listing(*names: str) -> bytes:
        return json.dumps([{"md5": name, "relpath": name} for name in names]).encode()

    put("ff01.dir", listing("aa01", "bb01", "cc01", "dd01"))
    put("ff02.dir", listing("cc01", "ee01"))
    gone = [file.parent.name + file.name for file in find_objects(tmp_path, ANN, {"dd01"})]
    assert gone == ["aa01", "bb01", "ff01.dir"]
