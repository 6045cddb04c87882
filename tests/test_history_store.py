import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_histories import (
    Model,
    bytes_in,
    event,
    free_port,
    ids,
    needs_redis,
    numbered,
    running_server,
    start_program,
)
from redis.crc import key_slot

from components.errors import InputError
from components.serving import history_redis, history_sqlite
from components.serving.history_store import NO_VERSION, StoredEvent, StoreError, open_store

EVERY_STORE = ["sqlite", pytest.param("redis", marks=needs_redis)]
USERS_OF_PART_0 = [name for name in (f"user{i}." for i in range(10_000)) if zlib.crc32(name.encode()) % 256 == 0]
APPENDS_AT_ONCE = """
import sys
from components.serving.history_store import StoredEvent, open_store
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, new = open_store(url, timeout=30), 0
for i in range(count):
    for user in ("shared", name):
        # Every process sends s<i> to the shared user, and one event of its own.
        new += store.append(user, [StoredEvent(f"s{i}", 1, i), StoredEvent(f"{name}{i}", name, i)]).new
print(new)
"""
APPENDS_UNTIL_KILLED = """
import sys
from components.serving.history_store import StoredEvent, open_store
store = open_store(sys.argv[1])
for i in range(10**9):
    assert store.append("killed", [StoredEvent(f"{i}-{j}", i, i) for j in range(3)]).new == 3
    print(i, flush=True)
"""
ON_A_FULL_DISK = """
import resource, sys
from components.serving.history_store import StoredEvent, StoreError, open_store
store = open_store(sys.argv[1])
store.append("ann", [StoredEvent("first", 1, 1)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
try:
    store.append("ann", [StoredEvent(f"e{i}", "x" * 1000, i) for i in range(5000)])
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([e.event_id for e in store.read("ann", 10).events], store.append("ann", [StoredEvent("next", 1, 1)]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=EVERY_STORE)
def url(request, tmp_path_factory):
    """Of one store for the whole file: every test has users of its own."""
    if request.param == "redis":
        return request.getfixturevalue("server").url
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/histories.db"


@pytest.fixture(scope="module")
def store(url):
    with closing(open_store(url)) as store:
        yield store


@pytest.fixture
def user(request):
    return request.node.name


@pytest.fixture
def file(tmp_path):
    return tmp_path / "histories.db"


@pytest.fixture
def sqlite(file):
    with closing(open_store(f"sqlite:///{file}", timeout=0.05)) as store:
        yield store


# What every store does


def test_an_event_comes_back_as_the_client_sent_it(store, user):
    items = [50, "50", 0, -1, 10**40, "", "i50", "s50", "été", "a\0b", "{}", "\n", "😀"]
    sent = [event(f"é{i}:\0}}", item, -5 + i) for i, item in enumerate(items)]
    store.append(user, sent)
    got = store.read(user, 100).events
    assert list(got) == sent
    assert [type(e.item_id) for e in got] == [type(item) for item in items]
    assert store.seen(user) == set(items)


def test_an_unknown_user_has_an_empty_history(store, user):
    history = store.read(user, 10)
    assert (history.events, history.total, history.version) == ((), 0, NO_VERSION)
    assert (store.read(user, 1).version, store.seen(user), store.forget(user)) == (NO_VERSION, set(), 0)


def test_events_are_ordered_by_their_time_and_then_by_arrival(store, user):
    store.append(user, [event("late", timestamp=9), event("b", timestamp=5)])
    store.append(user, [event("a", timestamp=5), event("early", timestamp=1)])
    assert ids(store.read(user, 10).events) == ["early", "b", "a", "late"]
    assert ids(store.read(user, 3).events) == ["b", "a", "late"]
    assert store.read(user, 3).total == 4


def test_an_event_id_counts_once_and_the_first_one_wins(store, user):
    assert store.append(user, [event("a", 1, 1), event("a", 2, 2), event("b", 3, 3)]) == (2, 1)
    version = store.read(user, 1).version
    assert store.append(user, [event("a", 9, 9)]) == (0, 1)
    assert store.read(user, 10).events == (event("a", 1, 1), event("b", 3, 3))
    assert store.read(user, 1).version == version


def test_an_event_id_counts_for_its_user_only(store, user):
    assert store.append(user + "1", [event("a")]).new == store.append(user + "2", [event("a")]).new == 1


def test_nothing_appended_changes_nothing(store, user):
    assert store.append(user, []) == (0, 0)
    assert store.read(user, 1).version == NO_VERSION


def test_users_whose_ids_look_alike_are_kept_apart(store):
    names = ["a", "A", "a ", "a}", "{a", "a:items", "á", "a%7D", "%", "a\0", "a\0b"]
    for i, name in enumerate(names):
        store.append(name, [event("e", i)])
    assert [store.seen(name) for name in names] == [{i} for i in range(len(names))]


def test_a_version_never_comes_again(store, user):
    seen = [store.read(user, 1).version]
    for step in range(3):
        for events in ([event("a", timestamp=5)], [event("b", timestamp=7)], [event("c", timestamp=1)]):
            store.append(user, events)
            seen.append(store.read(user, 1).version)
            assert store.read(user, 1).version == seen[-1]
        assert store.forget(user) == 3, step
        assert store.read(user, 1).version == NO_VERSION
    assert len(set(seen)) == len(seen)


def test_after_a_version_only_the_rest_is_read_where_that_is_all_that_changed(store, user):
    store.append(user, numbered(0, 4))
    version = store.read(user, 10).version

    def read_rest(after=version, limit=10):
        history = store.read(user, limit, after=after)
        return history.is_rest, ids(history.events), history.total

    assert read_rest() == (True, ["e3"], 4)
    store.append(user, numbered(4, 6))
    assert read_rest() == (True, ["e3", "e4", "e5"], 6)
    assert read_rest(limit=3) == (True, ["e3", "e4", "e5"], 6)
    assert read_rest(limit=2) == (False, ["e4", "e5"], 6)  # more came in than that
    newer = store.read(user, 10).version
    assert read_rest(after=newer) == (True, ["e5"], 6)
    assert read_rest(after=f"{newer}0") == (False, [f"e{n}" for n in range(6)], 6)  # one that is still to come
    store.append(user, [event("late", timestamp=-1)])
    assert read_rest() == (False, ["late", *(f"e{n}" for n in range(6))], 7)
    store.forget(user)
    assert read_rest() == (False, [], 0)
    store.append(user, numbered(0, 4))
    assert read_rest() == (False, [f"e{n}" for n in range(4)], 4)


def test_a_forgotten_user_leaves_nothing_and_may_begin_anew(store, user):
    store.append(user, numbered(0, 3))
    store.append(user + "2", numbered(0, 3))
    assert store.forget(user) == 3
    assert store.read(user, 10).events == ()
    assert store.seen(user) == set()
    assert store.append(user, numbered(0, 3)).new == 3
    assert store.read(user + "2", 10).total == 3


def test_the_latest_events_are_kept_and_dropped_ones_stay_away(url, user):
    with closing(open_store(url, keep=3)) as store:
        assert store.append(user, numbered(0, 5)).new == 5
        assert store.append(user, numbered(0, 2)).new == 2  # their ids went with them
        history = store.read(user, 10)
        assert (ids(history.events), history.total, history.arrived) == (["e2", "e3", "e4"], 3, 7)
        assert store.seen(user) == {2, 3, 4}
        store.append(user, numbered(5, 7))
        assert store.read(user, 10).arrived == 9


@pytest.mark.parametrize(
    "bad",
    [event("", 1), event("\ud800", 1), event("x", "\udfff"), event("x", 10**5000), event("x", 1, 2**53 + 1)],
    ids=["empty id", "half a pair", "half a pair in an item", "5000 digits", "beyond doubles"],
)
def test_one_event_that_cannot_be_kept_refuses_all(store, user, bad):
    with pytest.raises(InputError):
        store.append(user, [event("good"), bad])
    assert store.read(user, 10).total == 0


@pytest.mark.parametrize("call", [lambda s: s.read("a", 0), lambda s: s.seen(""), lambda s: s.append("\ud800", [])])
def test_a_call_that_makes_no_sense_is_refused(store, call):
    with pytest.raises(InputError):
        call(store)


def test_a_closed_store_says_so(url, user):
    store = open_store(url)
    store.append(user, [event("a")])
    store.close()
    store.close()
    for call in (lambda: store.append(user, [event("b")]), lambda: store.read(user, 1)):
        with pytest.raises(StoreError, match="is closed"):
            call()


EVENTS = st.builds(
    StoredEvent,
    event_id=st.sampled_from("abcdefghij"),
    item_id=st.sampled_from([1, 2, 50, "50", "x"]),
    timestamp=st.integers(0, 4) | st.sampled_from([-(2**53), 2**53, 2**53 - 1]),
)
STEPS = st.lists(st.lists(EVENTS, min_size=1, max_size=6) | st.just("forget"), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, keep=st.sampled_from([1, 3, 5, 100]), limit=st.integers(1, 7))
def test_any_sequence_of_calls_gives_what_a_list_gives(url, steps, keep, limit):
    user, model, versions = f"any {random.SystemRandom().random()}", Model(keep), set()
    with closing(open_store(url, keep=keep)) as store:
        for step in steps:
            before, known = store.read(user, 1).version, model.events
            if step == "forget":
                assert store.forget(user) == model.forget()
            else:
                new = model.append(step)
                assert store.append(user, step) == (new, len(step) - new)
                assert (store.read(user, 1).version != before) == (new > 0)
                assert store.read(user, 1).version == before or store.read(user, 1).version not in versions
            history = store.read(user, limit)
            assert (history.events, history.total) == (model.events[-limit:], len(model.events))
            rest = store.read(user, limit, after=before)
            assert (rest.total, rest.version) == (history.total, history.version)
            if not rest.is_rest:
                assert rest.events == history.events
            elif rest.events[:1] == known[-1:]:  # else so much came in that the last known one was dropped
                assert (*known, *rest.events[1:])[-min(limit, rest.total) :] == history.events
            assert store.seen(user) == {e.item_id for e in model.events}
            versions.add(history.version)


@pytest.fixture(params=EVERY_STORE)
def new_url(request, tmp_path):
    """Of a store that no process has opened yet."""
    return request.getfixturevalue("server").url if request.param == "redis" else f"sqlite:///{tmp_path}/new.db"


def test_processes_that_append_at_once_lose_nothing_and_double_nothing(new_url):
    names, count = ["p", "q", "r"] if new_url.startswith("sqlite") else ["p", "q"], 15  # import redis takes a second
    processes = [start_program(APPENDS_AT_ONCE, new_url, name, count) for name in names]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(names), outputs
    with closing(open_store(new_url)) as store:
        totals = [store.read(user, 1000).total for user in ("shared", *names)]
        assert totals == [count * (len(names) + 1)] + [count * 2] * len(names)
        assert len(set(ids(store.read("shared", 1000).events))) == totals[0]
        assert sum(map(int, outputs)) == sum(totals)


def test_threads_that_append_at_once_lose_nothing(store, user):
    def work(thread):
        return sum(store.append(user, [event(f"s{i}"), event(f"{thread}-{i}", timestamp=i)]).new for i in range(10))

    with ThreadPoolExecutor(8) as pool:
        new = sum(pool.map(work, range(8)))
    assert new == store.read(user, 1000).total == 10 + 8 * 10


def test_a_history_read_while_others_append_belongs_to_its_version(store, user):
    def read(_):
        history = store.read(user, 1000)
        assert len(history.events) == history.total
        return history.version, history.events

    with ThreadPoolExecutor(4) as pool:
        appends = [pool.submit(store.append, user, [e]) for e in numbered(0, 60)]
        seen = list(pool.map(read, range(300)))
        assert sum(append.result().new for append in appends) == 60
    assert len(set(seen)) == len({version for version, _ in seen})


def test_what_was_acknowledged_before_kill_9_is_there(url):
    process = start_program(APPENDS_UNTIL_KILLED, url)
    acknowledged = [int(process.stdout.readline()) for _ in range(15)]
    process.kill()
    acknowledged += map(int, process.communicate()[0].split())
    assert process.returncode == -signal.SIGKILL
    with closing(open_store(url)) as store:
        history = store.read("killed", 10_000)
        calls = history.total // 3
        assert calls in (len(acknowledged), len(acknowledged) + 1)  # the last one may not have been printed any more
        assert ids(history.events) == [f"{i}-{j}" for i in range(calls) for j in range(3)]


# Which store


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "histories.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/a.db",
        "mysql://u:s3cret@h/d",
        "redis://:s3cret@h:port/0",
        "redis://:s3cret@h/zero",
        "redis://:s3/cret@h",
        "redis://u:s3cret@h/0?no_such=1",
        "redis://u:s3cret@h/0?socket_timeout=s3cret",
    ],
)
def test_a_url_that_names_no_store_is_refused_without_its_password(bad):
    with pytest.raises(InputError, match=r"URL of the history store .* expected sqlite:///relative.db") as caught:
        open_store(bad)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_store_has_to_keep_something(file):
    with pytest.raises(InputError, match="keep is out of range"):
        open_store(f"sqlite:///{file}", keep=0)


def test_a_relative_file_lies_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///here.db").close()
    assert (tmp_path / "here.db").is_file()


def test_sqlite_needs_no_redis_client_and_redis_says_that_it_does(file):
    program = """
import sys
sys.modules["redis"] = None
from components.serving.history_store import open_store
open_store(sys.argv[1]).close()
open_store("redis://localhost")
"""
    output = start_program(program, f"sqlite:///{file}").communicate()[0]
    assert file.exists()
    assert "InputError: histories are to be kept in Redis, whose client is not installed. Run `pip install" in output


# SQLite


def test_no_byte_of_a_forgotten_user_remains_in_the_files(tmp_path, sqlite):
    """Several users in one part and times in any order, so that SQLite moves rows between pages all the time."""
    draw = random.Random(0)
    users = USERS_OF_PART_0[:12]
    for step in range(300):
        user = draw.choice(users)
        name = user * draw.choice([1, 6, 40])
        sqlite.append(user, [event(f"{name}{step}-{i}", f"{user}{i}", draw.randrange(99)) for i in range(3)])
    for forgotten in draw.sample(users, 6):
        others = {user: sqlite.read(user, 1000) for user in users if user != forgotten}
        assert forgotten.encode() in bytes_in(tmp_path)
        assert sqlite.forget(forgotten) > 0
        assert forgotten.encode() not in bytes_in(tmp_path)
        assert {user: sqlite.read(user, 1000) for user in others} == others


def test_forgetting_says_when_a_reader_keeps_bytes_alive(tmp_path, file, sqlite):
    sqlite.append("ann", [event("a", "<secret>")])
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_master").fetchall()
        with pytest.raises(
            StoreError, match=r"bytes of the forgotten user remain in its log. Forget the user once more"
        ):
            sqlite.forget("ann")
        assert sqlite.read("ann", 1).total == 0
        assert b"<secret>" in bytes_in(tmp_path)
    assert sqlite.forget("ann") == 0
    assert b"<secret>" not in bytes_in(tmp_path)


def test_a_locked_file_is_reported_and_can_still_be_read(file, sqlite):
    sqlite.append("ann", [event("a")])
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"histories.db: is locked: observed .*Try again") as caught:
            sqlite.append("ann", [event("b")])
        assert caught.value.http_status == 503
        assert ids(sqlite.read("ann", 9).events) == ["a"]
    assert sqlite.append("ann", [event("b")]).new == 1


def test_an_append_in_the_middle_of_a_read_is_not_seen_by_half(file, sqlite, monkeypatch):
    sqlite.append("ann", numbered(0, 2))
    before, find = sqlite.read("ann", 10), history_sqlite._find
    with closing(open_store(f"sqlite:///{file}")) as other:

        def find_and_be_overtaken(part, user):
            found = find(part, user)
            monkeypatch.undo()
            other.append("ann", numbered(2, 3))
            return found

        monkeypatch.setattr(history_sqlite, "_find", find_and_be_overtaken)
        assert sqlite.read("ann", 10) == before
    assert sqlite.read("ann", 10).arrived == before.arrived + 1


def test_a_new_file_is_shared_by_those_who_wait_for_it(file):
    """While somebody holds a lock, SQLite refuses to turn the write-ahead log on at once, whatever its busy timeout."""
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_store, f"sqlite:///{file}", timeout=60)
            time.sleep(0.2)  # too short only lets a wrong implementation pass
            other.execute("ROLLBACK")
            opening.result().close()


def test_a_full_disk_is_reported_and_nothing_is_half_written(file):
    output = start_program(ON_A_FULL_DISK, f"sqlite:///{file}").communicate()[0].splitlines()
    assert "histories.db: " in output[0]
    assert "SQLITE_IOERR" in output[0] or "SQLITE_FULL" in output[0]
    assert output[1] == "['first'] Appended(new=1, duplicates=0)"


def test_a_file_that_is_no_database_is_reported_and_left_alone(file):
    file.write_text("userId,movieId\n" * 1000)
    with pytest.raises(StoreError, match="is damaged, or no SQLite database"):
        open_store(f"sqlite:///{file}")
    assert file.read_text() == "userId,movieId\n" * 1000


def test_a_damaged_file_is_reported(file, sqlite):
    sqlite.append("ann", numbered(0, 300))
    sqlite.close()
    pages = file.read_bytes()
    file.write_bytes(pages[:8192] + b"\xa5" * (len(pages) - 8192))
    with pytest.raises(StoreError, match="is damaged"), closing(open_store(f"sqlite:///{file}")) as store:
        store.read("ann", 10)


def test_an_item_id_that_hstuflow_did_not_write_is_reported(file, sqlite):
    user = USERS_OF_PART_0[0]
    sqlite.append(user, [event("a", 50)])
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("UPDATE events_000 SET item = 'ioops'")
    for call in (lambda: sqlite.read(user, 1), lambda: sqlite.seen(user)) * 2:
        with pytest.raises(StoreError, match="an item id in the store is damaged"):
            call()


def test_another_program_s_database_is_left_alone(file):
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE theirs (a)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="is another program's database"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_newer_schema_is_refused(file, sqlite):
    sqlite.close()
    with closing(sqlite3.connect(file)) as later:
        later.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match=r"another version of hstuflow: observed schema 2, expected schema 1"):
        open_store(f"sqlite:///{file}")


@pytest.mark.parametrize("name", ["no_such_folder/a.db", "", "/proc/a.db"])
def test_a_place_where_no_file_can_be_is_reported(tmp_path, name):
    with pytest.raises(StoreError, match=r"cannot be used: observed .* Its folder has to exist"):
        open_store(f"sqlite:///{tmp_path / name}")


def test_every_connection_syncs_each_commit(sqlite):
    """A power cut cannot be tested here; what SQLite promises with these settings can be looked up."""
    with sqlite._connection() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Redis


def test_a_server_that_is_not_there_is_reported_without_its_password():
    port = free_port()
    store = open_store(f"valkey://ann:s3cret@127.0.0.1:{port}/3")
    with pytest.raises(StoreError, match=rf"^redis://127.0.0.1:{port}/3: cannot be reached: .*Start it") as caught:
        store.append("ann", [event("a")])
    assert "s3cret" not in repr(caught.value)
    assert caught.value.http_status == 503


def test_a_server_that_does_not_answer_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = open_store(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.05)
        with pytest.raises(StoreError, match=r"did not answer within 0\.05 s"):
            store.read("ann", 1)


@needs_redis
def test_a_wrong_password_is_reported_and_not_shown(tmp_path):
    with running_server(tmp_path, "--requirepass", "right") as server:
        with pytest.raises(StoreError, match="refuses the user name or the password") as caught:
            open_store(server.url.replace("//", "//:wr0ng@")).seen("ann")
        assert "wr0ng" not in str(caught.value)
        with closing(open_store(server.url.replace("//", "//:right@"))) as store:
            assert store.seen("ann") == set()


def test_a_refusal_that_quotes_the_password_is_shown_without_it():
    with socket.socket() as proxy, ThreadPoolExecutor(1) as pool:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        pool.submit(refuse_whatever_is_sent, proxy)
        store = open_store(f"redis://:s3cret@127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"beginning with: '\*\*\*'") as caught:
            store.seen("ann")
    assert caught.value.__cause__ is None


def refuse_whatever_is_sent(listener):
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n")
        connection.recv(1000)


@needs_redis
def test_a_server_that_was_killed_has_what_it_acknowledged_where_it_syncs_always(tmp_path):
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with running_server(tmp_path, *options) as server, closing(open_store(server.url)) as store:
        for e in numbered(0, 20):
            store.append("ann", [e])
        before = store.read("ann", 100)
        server.kill()
        server.start()
        assert store.read("ann", 100) == before  # by the same client, which connects again
        assert store.append("ann", numbered(19, 21)) == (1, 1)


@needs_redis
def test_a_server_without_memory_is_reported_and_nothing_is_half_written(tmp_path):
    with running_server(tmp_path, "--maxmemory", "1") as server, closing(open_store(server.url)) as store:
        with pytest.raises(StoreError, match="is out of memory"):
            store.append("ann", numbered(0, 10))
        assert store.read("ann", 10).total == 0


@needs_redis
def test_a_history_of_which_the_server_threw_a_part_away_is_reported(server):
    import redis

    with closing(open_store(server.url)) as store, closing(redis.Redis.from_url(server.url)) as client:
        for part in ("items", "version"):
            store.append("thrown", [event("a"), event("b")])
            assert client.delete(f"hstuflow:{{thrown}}:{part}") == 1
            with pytest.raises(StoreError, match=r"has lost a part of a history\. Set its maxmemory-policy"):
                store.read("thrown", 10)
            store.forget("thrown")


@pytest.mark.parametrize("user", ["ann", "a}", "{a", "}", "{}", "a}{b"])
def test_the_keys_of_a_user_lie_on_one_node_of_a_cluster(user):
    assert len({key_slot(key.encode()) for key in history_redis._keys(user)}) == 1


@needs_redis
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_histories_travel_encrypted(tmp_path, scheme):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = ["openssl", "req", "-x509", *curve, *name, "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run(request, check=True, capture_output=True)
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    options = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no", *files]
    with running_server(tmp_path, *options) as server:
        url = f"{scheme}://127.0.0.1:{server.port}/0"
        with closing(open_store(f"{url}?ssl_ca_certs={certificate}")) as store:
            assert store.append("ann", [event("a")]).new == 1
        with closing(open_store(url)) as store, pytest.raises(StoreError, match="cannot be reached"):
            store.read("ann", 1)  # a certificate that nobody vouches for
