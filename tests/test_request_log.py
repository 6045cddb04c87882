"""The log of requests: what a row holds, what a kill leaves, what is dropped, and that the forgotten are gone."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing

import pytest
from made_checkpoints import write_checkpoint
from starlette.testclient import TestClient

from components.recommender import Recommender
from components.serving import request_log
from components.serving.answers import ModelFacts
from components.serving.app import Served, build_app
from components.serving.engine import Engine
from components.serving.request_log import RequestLog, read_rows
from components.serving.watching import LOGGED

KEYS = [f"item-{number}" for number in range(40)]
FACTS = dict.fromkeys(("bento", "name", "protocol", "verdict", "data_hash", "git_commit"), "x") | {"tag": "m:1"}
DAY = 86_400


@pytest.fixture
def log(tmp_path):
    with closing(RequestLog(tmp_path / "requests")) as log:
        yield log


def rows_of(folder):
    return [row for file in sorted(folder.glob("*/*.jsonl")) for row in read_rows(file)]


def add(log, user_id="ann", generation=None, when=1_000.0, **more):
    log.add({"time": when, "user_id": user_id, **more}, log.generation if generation is None else generation)


def await_rows(folder, number):
    while len(found := rows_of(folder)) < number:
        time.sleep(0.01)
    return found


def count(result):
    return LOGGED.labels(result)._value.get()


def test_a_row_says_what_the_service_saw_and_answered(tmp_path, log):
    recommender = Recommender.load(write_checkpoint(tmp_path / "checkpoint", KEYS))
    engine = Engine(recommender, store_url=f"sqlite:///{tmp_path / 'h.db'}")
    served = Served(engine, ModelFacts(**FACTS), {}, requests=log)
    client = TestClient(build_app(lambda: served))
    events = [{"event_id": str(n), "item_id": f"item-{n}", "timestamp": n} for n in range(9)]
    events.append({"event_id": "x", "item_id": "elsewhere", "timestamp": 9})
    client.post("/events", json={"user_id": "ann", "events": events})
    answer = client.post("/recommend", json={"user_id": "ann", "k": 3, "request_time": 50}).json()
    history = [{"item_id": "item-3", "timestamp": 7}, {"item_id": "elsewhere", "timestamp": 8}]
    client.post("/recommend_batch", json={"requests": [{"history": history, "k": 2}, {"history": [], "k": 1}]})
    stored, given, empty = await_rows(log.folder, 3)
    assert abs(stored.pop("time") - time.time()) < 600
    assert stored == {
        "request_id": None,
        "route": "/recommend",
        "user_id": "ann",
        "request_time": 50,
        "num_events": 10,
        "num_read": 6,  # max_len
        "num_unknown": 1,
        "last_item": "item-8",
        "source": "model",
        "k": 3,
        "items": [item["item_id"] for item in answer["items"]],
        "scores": [round(item["score"], 5) for item in answer["items"]],
        "model": "m:1",
    }
    assert (given["route"], given["user_id"], given["last_item"]) == ("/recommend_batch", None, "item-3")
    assert (given["num_events"], given["num_read"], given["num_unknown"]) == (2, 2, 1)
    assert (empty["source"], empty["scores"], empty["last_item"]) == ("popular", [None], None)
    assert client.delete("/users/ann").json() == {"deleted": 10}
    assert [row["user_id"] for row in rows_of(log.folder)] == [None, None]
    engine.close()


def test_rows_lie_in_files_by_day_that_only_their_owner_may_read(log):
    for when in (0.0, 10.0, DAY + 5.0):
        add(log, when=when)
        await_rows(log.folder, 1)
        while log._rows.qsize():
            time.sleep(0.01)
    log.close()
    assert sorted(file.parent.name for file in log.folder.glob("*/*")) == ["1970-01-01", "1970-01-02"]
    assert {file.stat().st_mode & 0o777 for file in log.folder.glob("*/*")} == {0o600}


def test_a_full_file_is_followed_by_another(log, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_FILE_BYTES", 1)
    for number in range(3):
        add(log)
        await_rows(log.folder, number + 1)
    assert len(list(log.folder.glob("*/*.jsonl"))) == 3


def test_a_person_who_is_forgotten_is_in_no_file_and_the_others_are(log):
    for number in range(30):
        add(log, user_id=("ann", 'a"n,n', "annabel", None, "é\n")[number % 5], when=DAY * (number % 3), n=number)
    assert log.forget("ann") == 6
    kept = rows_of(log.folder)
    assert (len(kept), {row["user_id"] for row in kept}) == (24, {'a"n,n', "annabel", None, "é\n"})
    assert (log.forget('a"n,n'), log.forget("é\n"), log.forget("ann"), log.forget("nobody")) == (6, 6, 0, 0)
    add(log, user_id="annabel")
    assert len(await_rows(log.folder, 13)) == 13
    assert b'"ann"' not in b"".join(file.read_bytes() for file in log.folder.glob("*/*"))


def test_a_request_in_flight_while_its_user_is_forgotten_leaves_a_row_without_the_user(log):
    before = log.generation
    log.forget("ann")
    add(log, user_id="ann", generation=before)
    assert [row["user_id"] for row in await_rows(log.folder, 1)] == [None]


def test_forgetting_reaches_the_files_of_another_writer_which_goes_on_in_a_new_one(log):
    with closing(RequestLog(log.folder)) as other:
        for writer in (log, other):
            add(writer, user_id="ann")
            add(writer, user_id="bob")
        await_rows(log.folder, 4)
        assert log.forget("ann") == 2
        for writer in (log, other):
            add(writer, user_id="cid")
        assert sorted(row["user_id"] for row in await_rows(log.folder, 4)) == ["bob", "bob", "cid", "cid"]


def test_rows_that_wait_in_another_process_are_written_without_a_user_who_is_forgotten_meanwhile(log):
    with closing(RequestLog(log.folder)) as other:
        add(other, user_id="bob")
        await_rows(log.folder, 1)
        before = other.generation
        with other._writing:  # its disk is slow
            add(other, user_id="ann", items=["what ann was shown"])
            add(other, user_id="bob")
            assert log.forget("ann") == 0
        add(other, user_id="ann", generation=before)  # was in flight
        add(other, user_id="bob", generation=before)
        add(other, user_id="ann", back=True)
        rows = await_rows(log.folder, 6)
    assert sorted(str(row["user_id"]) for row in rows) == ["None", "None", "ann", "bob", "bob", "bob"]
    assert [row for row in rows if row["user_id"] == "ann"] == [{"time": 1_000.0, "user_id": "ann", "back": True}]


@pytest.mark.parametrize("moment", ["before its lock", "after its file was rewritten"])
def test_no_moment_of_another_writer_is_missed(log, monkeypatch, moment):
    """Forgetting comes between two steps of a writer, and a writer between two steps of forgetting."""
    with closing(RequestLog(log.folder)) as other:
        flock, rewrite, began, done = fcntl.flock, request_log._rewrite, other.generation, []
        for name in ("ann", "bob"):
            add(other, user_id=name)
        await_rows(log.folder, 2)

        def forget_first(descriptor, operation):
            if threading.current_thread() is other._thread:
                monkeypatch.setattr(request_log.fcntl, "flock", flock)
                done.append(log.forget("ann"))
            flock(descriptor, operation)

        def write_afterwards(path, user_id):
            done.append(rewrite(path, user_id))
            add(other, user_id="ann", generation=began)
            await_rows(log.folder, 2)
            return done[0]

        if moment == "before its lock":
            monkeypatch.setattr(request_log.fcntl, "flock", forget_first)
            add(other, user_id="ann")
        else:
            monkeypatch.setattr(request_log, "_rewrite", write_afterwards)
            log.forget("ann")
        while not done:
            time.sleep(0.01)
        rows = await_rows(log.folder, 2)
    assert (done, {row["user_id"] for row in rows}) == ([1], {"bob", None})


def test_each_of_several_forgotten_users_is_left_out_by_a_writer_who_looks_later_and_one_who_looks_in_between(log):
    with closing(RequestLog(log.folder)) as other:
        before = other.generation
        for number, name in enumerate(("ann", "é\n", 'a"n,n')):
            log.forget(name)
            add(other, user_id=name, generation=before)
            await_rows(log.folder, number + 1)
        for name in ("ann", "é\n", 'a"n,n'):
            add(log, user_id=name, generation=before)
        assert {row["user_id"] for row in await_rows(log.folder, 6)} == {None}


def test_a_mark_names_nobody_is_its_owners_alone_and_goes_after_an_hour(log, monkeypatch):
    for name in ("ann", "bob"):
        log.forget(name)
    (path,) = (file for file in log.folder.iterdir() if file.is_file())
    assert (path.stat().st_mode & 0o777, len(path.read_bytes().splitlines())) == (0o600, 2)
    assert b"ann" not in path.read_bytes()
    later = time.monotonic_ns() + 3_600 * 10**9
    monkeypatch.setattr(request_log.time, "monotonic_ns", lambda: later)
    log.forget("cid")
    assert len(path.read_bytes().splitlines()) == 1


def test_marks_of_before_a_restart_of_the_host_and_a_damaged_file_of_them_stop_nothing(log, monkeypatch):
    before = log.generation
    monkeypatch.setattr(request_log.time, "monotonic_ns", lambda: before + 10**15)
    log.forget("ann")
    monkeypatch.undo()  # started again: the clock is back
    add(log, user_id="ann")
    assert [row["user_id"] for row in await_rows(log.folder, 1)] == ["ann"]
    (path,) = (file for file in log.folder.iterdir() if file.is_file())
    path.write_bytes(b"\xff" + b"9" * 5_000 + b" " + b"0" * 64 + b"\n\0")
    add(log, user_id="bob")
    assert len(await_rows(log.folder, 2)) == 2
    assert log.forget("ann") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_who_forgets_as_root_leaves_files_that_the_owner_of_the_folder_can_read(log):
    for name in ("ann", "bob"):
        add(log, user_id=name)
    await_rows(log.folder, 2)
    for path in (log.folder, *log.folder.iterdir()):
        os.chown(path, 4_711, 4_712)
    log.forget("ann")
    paths = [path for path in log.folder.rglob("*") if path.is_file()]
    assert [(path.stat().st_uid, path.stat().st_gid) for path in paths] == [(4_711, 4_712)] * 2


def keep_serving(folder, ended):
    """Log requests of two users as fast as it goes, each with the moment when it began."""
    with closing(RequestLog(folder)) as log:
        while not ended.is_set():
            began = [log.generation for _ in range(50)]
            time.sleep(0.0005)
            for number, moment in enumerate(began):
                add(log, user_id=("ann", "bob")[number % 2], generation=moment, began=moment)


def test_once_forgetting_has_returned_no_process_writes_a_request_of_before(tmp_path):
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    writers = [context.Process(target=keep_serving, args=(tmp_path, ended)) for _ in range(2)]
    for writer in writers:
        writer.start()
    with closing(RequestLog(tmp_path)) as log:
        for _ in range(5):
            await_rows(tmp_path, len(rows_of(tmp_path)) + 500)
            before = log.generation
            log.forget("ann")
    ended.set()
    for writer in writers:
        writer.join()
    began = {name: [row["began"] for row in rows_of(tmp_path) if row["user_id"] == name] for name in ("ann", "bob")}
    assert min(began["ann"], default=before) >= before
    assert min(began["bob"]) < before


def test_two_writers_who_write_and_forget_at_once_lose_nothing_and_keep_nothing(log):
    ended = threading.Event()

    def keep_adding(writer, name):
        number = 0
        while not ended.is_set() or number < 50:
            add(writer, user_id=name, n=number)
            number += 1
            time.sleep(0.001)
        added[name] = number

    added = {}
    with closing(RequestLog(log.folder)) as other:
        pairs = [(log, "bob"), (other, "cid")]
        threads = [threading.Thread(target=keep_adding, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for number in range(6):
            add(log, user_id="ann")
            (log, other)[number % 2].forget("ann")
        ended.set()
        for thread in threads:
            thread.join()
    log.close()
    numbers = Counter(row["n"] for row in rows_of(log.folder) if "n" in row)
    assert numbers == Counter(number for most in added.values() for number in range(most))
    assert "ann" not in {row["user_id"] for row in rows_of(log.folder)}


def test_a_day_that_was_deleted_as_a_whole_stops_nothing(log):
    add(log)
    await_rows(log.folder, 1)
    for file in log.folder.glob("*/*"):
        file.unlink()
        file.parent.rmdir()
    add(log, user_id="bob")
    assert [row["user_id"] for row in await_rows(log.folder, 1)] == ["bob"]


def test_what_comes_faster_than_it_is_written_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_WAITING", 10)
    with closing(RequestLog(tmp_path)) as log:
        dropped, written = count("dropped"), count("written")
        with log._writing:  # a disk that stands still
            for _ in range(25):
                add(log)
            assert log._rows.qsize() == 10
        await_rows(tmp_path, 10)
    assert (count("dropped") - dropped, count("written") - written) == (15, 10)


def test_a_full_disk_stops_nobody_and_is_counted_and_writing_goes_on_afterwards(log, monkeypatch, caplog):
    failed = count("failed")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(request_log.os, "write", full)
        for _ in range(3):
            add(log)
        while count("failed") < failed + 3:
            time.sleep(0.01)
    add(log, user_id="later")
    assert [row["user_id"] for row in await_rows(log.folder, 1)] == ["later"]
    assert len([record for record in caplog.records if "not logged" in record.message]) == 1


@pytest.mark.parametrize("where", ["after a failure", "at the end of a day"])
def test_a_file_that_cannot_be_closed_stops_nobody(log, monkeypatch, where):
    add(log)
    await_rows(log.folder, 1)
    file = log._file.descriptor
    close, closed = os.close, []

    def fail(descriptor):
        close(descriptor)
        if descriptor == file and not closed:
            closed.append(descriptor)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def full(*_):
        monkeypatch.setattr(request_log.os, "write", write)
        raise OSError(errno.ENOSPC, "No space left on device")

    write = os.write
    monkeypatch.setattr(request_log.os, "close", fail)
    if where == "after a failure":
        failed = count("failed")
        monkeypatch.setattr(request_log.os, "write", full)
        add(log)
        while count("failed") == failed and log._thread.is_alive():
            time.sleep(0.01)
    add(log, user_id="later", when=DAY + 5.0)
    while len(rows := rows_of(log.folder)) < 2 and log._thread.is_alive():
        time.sleep(0.01)
    assert [row["user_id"] for row in rows] == ["ann", "later"]
    assert closed == [file]


def test_a_torn_last_line_is_left_out_and_goes_when_somebody_is_forgotten(log):
    for name in ("ann", "bob"):
        add(log, user_id=name)
    await_rows(log.folder, 2)
    (file,) = log.folder.glob("*/*.jsonl")
    with file.open("ab") as torn:
        torn.write(b'{"time":5.0,"user_id":"an')
    assert len(rows_of(log.folder)) == 2
    log.forget("ann")
    assert file.read_bytes().count(b"\n") == 1
    assert file.read_bytes().endswith(b"\n")


def keep_logging(folder, started):
    log = RequestLog(folder)
    started.set()
    while True:
        add(log, text="x" * 5_000)
        time.sleep(0.0005)


def test_a_kill_leaves_readable_files(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    for number in range(3):
        started.clear()
        writer = context.Process(target=keep_logging, args=(tmp_path, started))
        writer.start()
        started.wait()
        await_rows(tmp_path, 50 * (number + 1))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    for file in tmp_path.glob("*/*.jsonl"):
        lines = file.read_bytes().splitlines()
        assert len(list(read_rows(file))) >= len(lines) - 1
        for line in lines[:-1]:
            json.loads(line)
