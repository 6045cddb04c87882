"""The whole pipeline through the real Prefect, DVC, Great Expectations, torch and BentoML, on a made log."""

import sqlite3
import sys

import pytest
from made_repository import FLOW, ingest_options, write_table

from components.baselines import BASELINES

pytestmark = pytest.mark.slow

STAGES = [
    "validate",
    "sequences",
    "train@hstu-time_split",
    "train@sasrec-time_split",
    "evaluate@hstu-time_split",
    "evaluate@sasrec-time_split",
    "report",
    "package",
]


def stages_that_ran(printed):
    """The stages whose command dvc started, in order."""
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage '")]


def outcomes(printed):
    """Task -> what the flow said last about it, of the lines `time  task  message`."""
    lines = [line.split(maxsplit=2) for line in printed.splitlines()]
    return {line[1]: line[2] for line in lines if len(line) == 3 and line[2].startswith(("up to date", "ran in "))}


def test_one_command_goes_from_a_log_to_a_promoted_bento(finished):
    repository, printed = finished
    ran = outcomes(printed)
    assert list(ran) == STAGES
    assert all(outcome.startswith("ran in ") for outcome in ran.values())
    assert printed.count("best epoch: ") == 2  # each child's line is seen once, not twice
    for file in (
        "data.dvc",
        "dvc.lock",
        "reports/validation.json",
        "reports/data_docs/index.html",
        "reports/report.html",
        "artifacts/hstuflow.bento",
    ):
        assert (repository.root / file).stat().st_size > 0, file
    metrics = repository.read("reports/metrics.json")["time_split"]
    assert set(metrics) == {"hstu", "sasrec", *BASELINES}
    assert metrics["hstu"]["ndcg@10"]["value"] > metrics["popularity"]["ndcg@10"]["high"]
    assert repository.read("reports/gate.json")["verdict"] == "accepted"
    assert repository.read("registry/champion.json")["tag"] == repository.read("artifacts/package.json")["tag"]


def test_the_closing_words_are_the_table_the_paths_and_the_next_command(finished):
    _, printed = finished
    closing = printed[printed.rindex("Finished in state Completed()") :]
    for word in (
        "popularity_recent",
        "reports/report.html",
        "reports/data_docs/index.html",
        "artifacts/hstuflow.bento",
    ):
        assert word in closing
    assert closing.count("The ") >= 3  # recommendations by title
    assert closing.rstrip().endswith("make serve")


def test_prefect_has_the_run_its_tasks_and_its_artifacts_and_no_pickle(finished):
    repository, _ = finished
    with sqlite3.connect(repository.root / ".prefect" / "prefect.db") as database:
        assert database.execute("select distinct state_type from flow_run").fetchall() == [("COMPLETED",)]
        tasks = dict(database.execute("select name, state_type from task_run"))
        artifacts = {key for (key,) in database.execute("select key from artifact where key is not null")}
    assert tasks == dict.fromkeys(["ingest", "version", *STAGES, "challenge", "promote"], "COMPLETED")
    assert artifacts == {
        "log",
        "validation",
        "data-docs",
        "metrics",
        "gate",
        "report",
        "package",
        "challenge",
        "decision",
    }
    assert not (repository.root / ".prefect" / "storage").exists()


def test_after_a_flow_run_dvc_has_nothing_to_do(finished):
    repository, _ = finished
    assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
    again = repository.run("dvc", "repro")
    assert again.returncode == 0
    assert stages_that_ran(again.stdout) == []


def test_a_second_run_finds_everything_up_to_date(finished, tmp_path):
    repository = finished[0].copy(tmp_path)
    again = repository.run(*FLOW)
    assert again.returncode == 0, again.stdout
    assert outcomes(again.stdout) == dict.fromkeys(["version", *STAGES], "up to date")
    assert repository.run("git", "diff", "--stat", "--", "data.dvc", "dvc.lock").stdout == ""


@pytest.mark.parametrize("model", ["hstu", "sasrec"])
def test_a_changed_training_parameter_runs_that_models_stages_and_what_follows(finished, tmp_path, model):
    repository = finished[0].copy(tmp_path)
    repository.use(train={model: {"seed": 7}})
    done = repository.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    assert stages_that_ran(done.stdout) == [
        f"train@{model}-time_split",
        f"evaluate@{model}-time_split",
        "report",
        "package",
    ]


def test_a_log_that_validation_refuses_ends_the_flow_in_one_line(finished, tmp_path):
    repository = finished[0].copy(tmp_path)
    few, _ = write_table(tmp_path, users=5, events=10)
    done = repository.run(*FLOW, *ingest_options(few), "--replace")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    assert "Retry" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("error: validate: "), last
    assert "users" in last
    assert "sequences" not in outcomes(done.stdout)
    assert repository.read("reports/validation.json")["success"] is False
    with sqlite3.connect(repository.root / ".prefect" / "prefect.db") as database:
        [(state, message)] = database.execute(
            "select s.type, s.message from flow_run r join flow_run_state s on s.id = r.state_id "
            "order by r.start_time desc limit 1"
        )
    assert state == "FAILED"
    assert last.removeprefix("error: ") in message


def test_a_log_that_cannot_be_read_leaves_everything_as_it_was(finished, tmp_path):
    repository = finished[0].copy(tmp_path)
    broken = tmp_path / "broken.csv"
    broken.write_text("who,what\nu1,i1\n")
    before = (repository.root / "data.dvc").read_bytes()
    done = repository.run(*FLOW, *ingest_options(broken), "--replace")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("error: ingest: "), done.stdout
    assert (repository.root / "data.dvc").read_bytes() == before
    assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"


def test_the_flows_help_does_not_wait_for_prefect(finished):
    repository, _ = finished
    imported = repository.run(
        sys.executable, "-c", "import sys, flows.__main__; print('prefect' in sys.modules, 'torch' in sys.modules)"
    )
    assert imported.stdout == "False False\n"
