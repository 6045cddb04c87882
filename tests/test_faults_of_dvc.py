"""kill -9 of dvc: what it leaves in .dvc/tmp is no obstacle, and its stage does not go on without it."""

import json
import subprocess
import time

import pytest
from made_processes import processes, the_one, wait_until_gone
from prefect.states import Failed

from flows.commands import CommandFailedError, run_command
from flows.stages import waits_for_lock

pytestmark = pytest.mark.slow

REPRO = ("dvc", "repro", "--single-item", "validate")


@pytest.fixture
def repository(finished, tmp_path):
    """A finished repository whose log is to be validated again."""
    repository = finished[0].copy(tmp_path)
    repository.use(validate={"max_bad_fraction": 0.02})
    yield repository
    for process in processes(repository):  # nothing outlives a failed test
        process.kill()


def held_by(repository):
    """The processes that .dvc/tmp/rwlock names."""
    held = json.loads((repository.root / ".dvc" / "tmp" / "rwlock").read_text())
    return {info["pid"] for info in held.get("write", {}).values()}


def test_a_killed_dvc_takes_its_stage_along_and_the_next_one_goes_on_by_itself(repository, tmp_path):
    dvc = repository.start(*REPRO, log=tmp_path / "killed.log")
    while not processes(repository, ("components", "validate")):
        assert dvc.poll() is None
        time.sleep(0.05)
    stage = the_one(repository, "components", "validate")
    while stage.num_threads() < 2:  # the thread that watches dvc
        time.sleep(0.01)
    the_one(repository, "repro", "validate").kill()
    dvc.wait()
    assert held_by(repository) == {dvc.pid}
    wait_until_gone([stage])
    assert not (repository.root / "artifacts" / "quarantine.parquet").exists()  # it had not come so far

    again = repository.run(*REPRO)
    assert again.returncode == 0, again.stdout
    assert f"(Pid {dvc.pid})" in again.stdout  # DVC's word that it has removed the entry
    assert repository.run("dvc", "status", "validate").stdout == "Data and pipelines are up to date.\n"


def test_another_program_with_a_killed_dvcs_number_is_told_from_a_dvc_at_work(repository, monkeypatch):
    monkeypatch.chdir(repository.root)
    out, lines = str(repository.root / "artifacts" / "quarantine.parquet"), []
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            entry = {"write": {out: {"pid": other.pid, "cmd": "dvc repro"}}}
            (repository.root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(entry))
            with pytest.raises(CommandFailedError) as failed:
                run_command(REPRO, name="validate", log=lines.append)
        finally:
            other.kill()
    assert waits_for_lock(None, None, Failed(data=failed.value)), lines
    assert str(failed.value) == (
        f"validate: DVC waits for process {other.pid}, `dvc repro`, which was killed: that number is another program's "
        "now (sleep 600). Remove .dvc/tmp/rwlock, then the same command"
    )
