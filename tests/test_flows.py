"""The flow's parts by themselves: child processes, staleness, retries, what is logged. No Prefect server."""

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from made_ports import free_port
from prefect.logging import disable_run_logger
from prefect.states import Failed

import flows.commands
import flows.server
from components.errors import InputError, SourceUnreachableError, StateError
from components.fitting.lifeline import is_gone
from flows import ingestion, stages
from flows.artifacts import check_table, metric_rows
from flows.commands import CommandFailedError, child_environment, find_error_line, run_command
from flows.run_log import hide_expected_tracebacks
from flows.server import answers, require_free, running_server
from flows.training import ingest_options

ROOT = Path(__file__).parent.parent
TETHER = str(ROOT / "flows" / "tether.py")


def python(program):
    return [sys.executable, "-c", program]


# Child processes


def test_a_childs_lines_arrive_as_it_prints_them_and_in_order(tmp_path):
    seen, heard = [], tmp_path / "heard"
    program = f"""
import pathlib, sys, time
print("one")
while not pathlib.Path({str(heard)!r}).exists():  # for ever, where all lines come at the end
    time.sleep(0.01)
sys.stderr.write("12:00:01   two\\n")
print("\\x1b[1mthree\\r")
"""

    def log(line):
        seen.append(line)
        heard.touch()

    run_command(python(program), name="speaker", log=log)
    assert seen == ["one", "  two", "three"]


def test_dvcs_small_talk_is_left_out():
    seen = []
    program = "print('Running stage x:\\n> python y\\nUpdating lock file z\\n\\tgit add dvc.lock\\nwork')"
    run_command(python(program), name="dvc", log=seen.append)
    assert seen == ["> python y", "work"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", "error: no log. Run ingest", "ERROR: failed to reproduce 'x': exited with 2"], "no log. Run ingest"),
        (["Traceback", "ValueError: b", "ERROR: failed to reproduce 'x': exited with 1"], "ValueError: b"),
        (["ERROR: Unable to acquire lock."], "ERROR: Unable to acquire lock."),
        (["", "ERROR: failed to reproduce 'x'"], None),
        ([], None),
    ],
)
def test_the_error_line_is_the_one_that_says_why(lines, expected):
    assert find_error_line(lines) == expected


def test_a_failed_command_is_one_sentence_with_its_own_error_line():
    with pytest.raises(CommandFailedError) as caught:
        run_command(python("import sys; print('error: it broke'); sys.exit(3)"), name="train", log=str)
    assert (str(caught.value), caught.value.status) == ("train: it broke", 3)
    with pytest.raises(CommandFailedError, match=r"^train: ended with status 4 and without a word$"):
        run_command(python("raise SystemExit(4)"), name="train", log=str)
    with pytest.raises(CommandFailedError, match=r"^train: killed by SIGKILL$"):
        run_command(python("import os; os.kill(os.getpid(), 9)"), name="train", log=str)


def test_a_child_finds_this_python_first_and_its_flow_by_pid(monkeypatch):
    monkeypatch.setenv("PATH", "/elsewhere")
    environment = child_environment()
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/elsewhere"
    assert environment["HSTUFLOW_PARENT_PID"] == str(os.getpid())
    assert {environment[name] for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "OMP_NUM_THREADS")} == {"1"}


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TimeoutError])
def test_an_interruption_reaches_the_child_which_may_say_goodbye(raised):
    """Ctrl-C is handed on as SIGINT, so that the trainer saves; a timeout as SIGTERM."""
    program = """
import signal, sys, time
def leave(number, frame):
    print("saved after", signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, leave)
print("ready", flush=True)
time.sleep(600)
"""
    seen = []

    def log(line):
        seen.append(line)
        if line == "ready":
            raise raised

    with pytest.raises(raised):
        run_command(python(program), name="trainer", log=log)
    assert seen == ["ready", f"saved after {'SIGINT' if raised is KeyboardInterrupt else 'SIGTERM'}"]


def test_a_child_that_will_not_end_is_killed_with_its_own_children(monkeypatch):
    monkeypatch.setattr(flows.commands, "GRACE_SECONDS", 0.5)
    program = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
    pids = []

    def log(line):
        pids.append(int(line))
        raise TimeoutError

    with pytest.raises(TimeoutError):
        run_command(python(program), name="deaf", log=log)
    with contextlib.suppress(psutil.NoSuchProcess):
        while not is_gone(psutil.Process(pids[0])):
            time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux'")
@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_tethered_child_ends_with_its_starter_even_by_kill_9(thread):
    start = f"child = subprocess.Popen([sys.executable, {TETHER!r}, str(os.getpid()), 'sleep', '600'])"
    work = f"{start}; print(child.pid, flush=True); child.wait()"
    if thread == "other":
        work = f"t = threading.Thread(target=exec, args=({work!r}, globals())); t.start(); t.join()"
    program = f"import os, subprocess, sys, threading; {work}"
    starter = subprocess.Popen(python(program), stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(starter.stdout.readline()))
    while child.name() != "sleep":  # the tether has not yet become the command
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    while not is_gone(child):  # pytest's timeout ends a test that hangs
        time.sleep(0.05)


def test_a_tether_whose_starter_has_ended_starts_nothing():
    done = subprocess.run(
        [sys.executable, TETHER, "1", "echo", "started"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 1
    assert done.stdout == "error: the process that started this one (1) has ended\n"


def test_a_background_flows_children_can_still_be_interrupted():
    program = "import os, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`
    try:
        assert run_command(python(program), name="child", log=str) == ["True"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_port_in_use_is_refused_with_what_to_do():
    import socket

    port = free_port()
    require_free(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(StateError, match=rf"port {port}: is in use\. .* PORT={port + 1}"):
            require_free(port)


@pytest.fixture
def answer():
    """Start a web server that answers every request with a status; return its address."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "reason"), [(200, None), (401, None), (403, None), (404, "status 404"), (502, "status 502")]
)
def test_a_server_is_there_where_it_answers_or_wants_a_password(answer, status, reason):
    assert answers(answer(status)) == reason


def test_a_server_of_ours_is_asked_past_the_proxy(answer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flows.server, "PREFECT", python("import time; time.sleep(600)"))
    monkeypatch.setattr(urllib.request, "_opener", None)  # which knows the proxies of its first use
    there = answer(200)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("PREFECT_API_URL", "none yet")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    assert answers(there) is not None
    with running_server(free_port()):
        assert os.environ["no_proxy"] == "example.org,127.0.0.1"
        assert answers(there) is None


def test_a_server_that_never_answers_is_given_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flows.server, "PREFECT", python("import time; time.sleep(600)"))
    monkeypatch.setattr(flows.server, "SECONDS_TO_START", 0.1)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with running_server(free_port()) as server, pytest.raises(StateError, match="Prefect's server does not answer"):
        server.wait_until_healthy()


def test_one_servers_log_stays_when_another_one_starts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flows.server, "PREFECT", python("print('started', flush=True); import time; time.sleep(600)"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with running_server(free_port()), running_server(free_port()):
        while (log := flows.server.LOG.read_text()).count("started") < 2:
            time.sleep(0.02)
    assert log == "started\nstarted\n"


def test_a_log_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".prefect").write_text("a file where the folder should be")
    with pytest.raises(StateError, match=r"^\.prefect/server\.log: cannot be written"), running_server(free_port()):
        pytest.fail("started")


@pytest.mark.parametrize(("status", "expected"), [(75, 75), (2, 2), (1, 2), (-9, 2)])
def test_a_source_out_of_reach_is_told_by_the_exit_status_of_the_flow_too(status, expected):
    assert CommandFailedError("ingest", status, ["error: x"]).exit_status == expected


# Stages


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A small DVC repository with a matrix, written in an order that is not the one to run in."""
    (tmp_path / "dvc.yaml").write_text(
        """
stages:
  report: {cmd: cat a.txt b.txt > report.txt, deps: [a.txt, b.txt], outs: [report.txt]}
  make:
    matrix: {name: [a, b]}
    cmd: cp log.txt ${item.name}.txt; echo made ${item.name}
    deps: [log.txt]
    outs: ["${item.name}.txt"]
  refuse: {cmd: "echo error: the log is bad; exit 2", deps: [report.txt]}
"""
    )
    (tmp_path / "log.txt").write_text("an event\n")
    monkeypatch.chdir(tmp_path)
    subprocess.run([Path(sys.executable).with_name("dvc"), "init", "--no-scm", "--quiet"], check=True)
    return tmp_path


@pytest.fixture
def published(monkeypatch):
    """The stages whose reports would go to Prefect."""
    published = []
    monkeypatch.setattr(stages, "publish", published.append)
    return published


def run_stage(stage):
    with disable_run_logger():
        return stages.run_stage.fn(stage)


def test_stages_come_in_the_order_in_which_dvc_runs_them(workspace):
    order = stages.list_stages()
    assert set(order[:2]) == {"make@a", "make@b"}
    assert order[2:] == ["report", "refuse"]


def test_a_stage_runs_once_and_is_then_up_to_date_until_its_input_changes(workspace, published):
    assert stages.is_stale("make@a")
    assert re.fullmatch(r"ran in \d+ s", run_stage("make@a"))
    assert not stages.is_stale("make@a")
    assert stages.is_stale("make@b")
    assert run_stage("make@a") == "up to date"
    (workspace / "log.txt").write_text("another event\n")
    assert stages.is_stale("make@a")
    assert published == ["make@a", "make@a"]


def test_a_failed_stage_raises_its_error_line_and_still_publishes_its_report(workspace, published):
    (workspace / "report.txt").write_text("a report")
    with pytest.raises(CommandFailedError, match=r"^refuse: the log is bad$"):
        run_stage("refuse")
    assert published == ["refuse"]


def test_only_a_locked_workspace_is_tried_again(workspace):
    from dvc.lock import LockError
    from dvc.repo import Repo

    lines = []
    with Repo() as repo, repo.lock, pytest.raises(CommandFailedError) as locked:
        run_command(["dvc", "repro", "--single-item", "make@a"], name="make@a", log=lines.append)
    assert retried(stages.waits_for_lock, locked.value), lines
    assert retried(stages.waits_for_lock, LockError("x"))
    assert not retried(stages.waits_for_lock, CommandFailedError("validate", 2, ["error: too few users"]))
    assert not retried(stages.waits_for_lock, ValueError("x"))


def test_only_an_unreachable_source_is_tried_again():
    unreachable = SourceUnreachableError.exit_status
    assert unreachable != InputError.exit_status
    assert retried(ingestion.is_unreachable, CommandFailedError("ingest", unreachable, ["error: no answer"]))
    assert not retried(ingestion.is_unreachable, CommandFailedError("ingest", InputError.exit_status, ["error: x"]))


def retried(condition, error):
    return condition(None, None, Failed(data=error))


def test_the_retry_conditions_belong_to_the_tasks_that_need_them():
    assert stages.run_stage.retry_condition_fn is stages.waits_for_lock
    assert ingestion.version_data.retry_condition_fn is stages.waits_for_lock
    assert ingestion.ingest.retry_condition_fn is ingestion.is_unreachable


# What a person sees


def test_flow_parameters_become_the_options_of_the_command_line():
    assert ingest_options({"source": None, "path": None}, replace=False) == []
    given = {
        "source": "table",
        "path": "my log.csv",
        "timestamp-unit": "ms",
        "items": None,
        "item-columns": "item_id=i",
    }
    options = ["--source", "table", "--path", "my log.csv", "--timestamp-unit", "ms", "--item-columns", "item_id=i"]
    assert ingest_options(given, replace=True) == [*options, "--replace"]


def test_metrics_become_one_row_for_each_condition_and_model():
    value = {"value": 0.1, "low": 0.05, "high": 0.15}
    rows = metric_rows({"time_split": {"hstu": {"ndcg@10": value}, "popularity": {"ndcg@10": value}}})
    assert [row["model"] for row in rows] == ["hstu", "popularity"]
    assert json.loads(json.dumps(rows))[0]["ndcg@10"] == "0.1000 [0.0500, 0.1500]"


def test_the_checks_of_a_decision_become_a_table_and_a_decision_without_any_none():
    check = {"name": "users", "about": "unseen", "observed": 12, "sense": "at least", "limit": 30, "passed": False}
    assert check_table([check]).splitlines()[-1] == "| users, unseen | 12 | at least 30 | FAILED |"
    assert check_table([]) == ""


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
@pytest.mark.parametrize(("error", "kept"), [(InputError("a bad log"), False), (ValueError("our mistake"), True)])
def test_an_expected_error_is_logged_without_its_stack_and_a_mistake_with_it(name, error, kept):
    hide_expected_tracebacks()
    logger = logging.getLogger(name)
    record = logger.makeRecord(name, logging.ERROR, __file__, 1, "failed", (), (type(error), error, None))
    assert logger.filter(record)
    assert bool(record.exc_info) is kept


def test_the_makefile_passes_what_a_person_gives_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # a shell's window, not a mapping
    assert planned_run().endswith("-m flows")
    log = "a person's log.csv"
    planned = planned_run("SOURCE=table", f"LOG={log}", "COLUMNS=user_id=u,item_id=i", "REPLACE=1")
    given = shlex.split(planned[planned.index("-m flows") :])
    assert given[2:] == ["--source", "table", "--path", log, "--columns", "user_id=u,item_id=i", "--replace"]


def planned_run(*variables):
    """The last command that `make run` would run."""
    command = ["make", "--dry-run", "--no-print-directory", "run", *variables]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1].strip()
