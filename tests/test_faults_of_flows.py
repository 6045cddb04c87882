"""Runs that meet: two flows and an ingestion at once in one repository leave what a single run leaves."""

import sys
import time

import pytest
from made_processes import processes
from made_repository import FLOW
from test_pipeline import outcomes

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(finished, tmp_path):
    """A finished repository whose HSTU has to be trained again, to other weights."""
    repository = finished[0].copy(tmp_path)
    repository.use(train={"hstu": {"seed": 7}})
    yield repository
    for process in processes(repository):
        process.kill()


def test_of_two_flows_and_an_ingestion_at_once_each_waits_for_the_one_at_work(repository, finished, tmp_path):
    before = (finished[0].root / "registry" / "decisions.jsonl").read_bytes().splitlines()
    logs = [tmp_path / f"{name}.log" for name in ("first", "second", "ingestion")]
    flows = [repository.start(*FLOW, log=log) for log in logs[:2]]
    while not (repository.root / "artifacts" / ".run.json").exists():
        assert all(flow.poll() is None for flow in flows)
        time.sleep(0.05)
    ingestion = repository.start(sys.executable, "-m", "components", "ingest", log=logs[2])
    started = [*flows, ingestion]
    assert [process.wait() for process in started] == [0, 0, 0], "\n".join(log.read_text() for log in logs)

    first, second, ingested = (log.read_text() for log in logs)
    if "waiting for the flow run" in first:
        first, second = second, first
    assert "waiting for" not in first
    assert "waiting for the flow run" in second
    assert ", which works in this repository" in second
    assert "waiting for the flow run" in ingested
    assert "ran in" in outcomes(first)["train@hstu-time_split"]
    assert set(outcomes(second).values()) == {"up to date"}
    decisions = (repository.root / "registry" / "decisions.jsonl").read_bytes().splitlines()
    assert decisions[:-1] == before
    assert repository.read("registry/champion.json")["tag"] == repository.read("artifacts/package.json")["tag"]
    assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert not (repository.root / "artifacts" / ".run.json").exists()


def test_a_server_that_is_not_there_is_one_sentence(repository):
    done = repository.run("env", "PREFECT_API_URL=http://127.0.0.1:9/api", *FLOW)
    assert done.returncode == 2
    assert done.stdout.startswith("error: PREFECT_API_URL=http://127.0.0.1:9/api: no Prefect server answers: observed ")
    assert "unset PREFECT_API_URL" in done.stdout
    assert done.stdout.count("\n") == 1
