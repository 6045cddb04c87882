"""`make nightly` with a real Prefect server and worker: runs to order, to come, and stopped in the middle."""

import contextlib
import datetime as dt
import json
import re
import signal
import sys
import time
import urllib.request
from itertools import pairwise

import psutil
import pytest
from made_ports import free_port
from made_processes import wait_until_gone

pytestmark = pytest.mark.slow


ORDER = ("prefect", "deployment", "run", "hstuflow/nightly")
HOUR = (time.gmtime().tm_hour + 12) % 24  # of the night, UTC: not while these tests run


@pytest.fixture(scope="module")
def nightly(finished, tmp_path_factory):
    """A finished repository with `python -m flows.nightly` running in it: repository, API URL, process, log."""
    folder = tmp_path_factory.mktemp("nightly")
    repository = finished[0].copy(folder)
    deployments = repository.root / "prefect.yaml"
    crons, changed = re.subn('cron: "0 [39] ', f'cron: "0 {HOUR} ', deployments.read_text())
    assert changed >= 2
    deployments.write_text(crons)
    with started(repository, folder / "nightly.log") as nightly:
        yield nightly


@contextlib.contextmanager
def started(repository, log):
    port = free_port()
    process = repository.start(sys.executable, "-m", "flows.nightly", "--port", str(port), log=log)
    try:
        while "stop             Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield repository, f"http://127.0.0.1:{port}/api", process, log
    finally:
        process.terminate()
        process.wait()


def ask(url, body):
    """POST to Prefect's API."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def runs_in_state(api, state):
    return ask(f"{api}/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": [state]}}}, "limit": 50})


def test_a_server_killed_during_a_run_is_started_again_and_the_run_completes_once(nightly, finished):
    repository, api, process, log = nightly
    repository.use(train={"hstu": {"seed": 7}})
    [server] = [child for child in psutil.Process(process.pid).children() if "server" in child.cmdline()]
    assert repository.run("env", f"PREFECT_API_URL={api}", *ORDER).returncode == 0
    while "python -m components train" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    server.kill()
    while "Prefect's server ended and is started again" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    while not (ended := ended_runs(api)):
        assert process.poll() is None, log.read_text()
        time.sleep(1)
    assert [run["state_type"] for run in ended] == ["COMPLETED"], log.read_text()
    await_tasks(api, ended[0], process)
    assert log.read_text().count("python -m components train") == 1
    before, after = (one.root / "registry" / "decisions.jsonl" for one in (finished[0], repository))
    assert after.read_bytes().splitlines()[:-1] == before.read_bytes().splitlines()  # one decision more
    assert repository.read("registry/champion.json")["tag"] == repository.read("artifacts/package.json")["tag"]


def ended_runs(api):
    """The deployment's runs that have ended; none while the server does not answer."""
    try:
        found = [run for state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in runs_in_state(api, state)]
    except OSError:
        return []
    return [run for run in found if run["deployment_id"]]


def await_tasks(api, run, process):
    """Return once the run's tasks have completed for the server, too: it is told of them later than of the run."""
    states = {}
    while not {"ingest", "version", "train@hstu-time_split", "promote"} <= set(states) or set(states.values()) != {
        "COMPLETED"
    }:
        assert process.poll() is None
        time.sleep(0.2)
        tasks = ask(f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        states = {task["name"]: task["state_type"] for task in tasks}
        assert not {"FAILED", "CRASHED", "CANCELLED"} & set(states.values())


def test_a_run_to_order_completes_in_the_repository(nightly):
    repository, api, process, log = nightly
    done = repository.run("env", f"PREFECT_API_URL={api}", *ORDER, "--watch")
    assert done.returncode == 0, done.stdout + log.read_text()
    [run] = [run for run in ended_runs(api) if run["name"] in done.stdout]
    assert run["state_type"] == "COMPLETED"
    await_tasks(api, run, process)
    assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"


def test_the_next_nights_are_scheduled(nightly):
    _, api, process, _ = nightly
    nightly_id = ask(f"{api}/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})[0]["id"]
    while not (scheduled := [r for r in runs_in_state(api, "SCHEDULED") if r["deployment_id"] == nightly_id]):
        assert process.poll() is None
        time.sleep(0.5)
    times = sorted(dt.datetime.fromisoformat(run["expected_start_time"]) for run in scheduled)
    assert all((time.hour, time.minute, time.utcoffset()) == (HOUR, 0, dt.timedelta()) for time in times)
    assert all(later - earlier == dt.timedelta(days=1) for earlier, later in pairwise(times))
    assert times[0] > dt.datetime.now(dt.UTC)


def test_a_second_one_on_the_same_port_is_refused_in_one_line(nightly):
    repository, api, _, _ = nightly
    port = api.split(":")[2].split("/")[0]
    refused = repository.run(sys.executable, "-m", "flows.nightly", "--port", port)
    assert refused.returncode == 2
    assert refused.stdout.startswith(f"error: port {port}: is in use. ")
    assert refused.stdout.count("\n") == 1


def test_ctrl_c_in_a_run_ends_all_of_it_and_the_next_run_is_not_cancelled_for_it(nightly, tmp_path):
    repository, api, process, log = nightly
    repository.use(train={"hstu": {"seed": 8}})
    before = log.read_text().count("python -m components train")
    assert repository.run("env", f"PREFECT_API_URL={api}", *ORDER).returncode == 0
    while log.read_text().count("python -m components train") == before:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    [stopped] = runs_in_state(api, "RUNNING")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0, log.read_text()
    wait_until_gone(children)
    with started(repository, tmp_path / "again.log") as (_, api, _, log):
        assert f"ended as crashed {stopped['name']}, which was running when this was stopped" in log.read_text()
        done = repository.run("env", f"PREFECT_API_URL={api}", *ORDER, "--watch")
        assert done.returncode == 0, done.stdout + log.read_text()
        assert [run["name"] for run in runs_in_state(api, "CRASHED")] == [stopped["name"]]
        assert runs_in_state(api, "CANCELLED") == []
        assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
