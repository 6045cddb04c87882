"""Real trainers, killed in every way: the same command resumes, alone, and ends in the very same weights."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from made_logs import build, train_settings, walking_log, write_log
from ruamel.yaml import YAML

from components.runs import Run

ROOT = Path(__file__).parent.parent
TRAIN = [sys.executable, "-m", "components", "train"]
EPOCHS = 40  # of about 0.1 s: long enough to be killed in between, short enough for a test


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A working folder with params.yaml and the sequences of a made log."""
    root = write_log(tmp_path_factory.mktemp("resume"), walking_log(num_users=120, num_events=60))
    build(root, "time_split")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["train"]["hstu"] = vars(train_settings(epochs=EPOCHS, patience=EPOCHS, max_len=60, dim=16))
    with (root / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    return root


@pytest.fixture(scope="module")
def undisturbed(workspace):
    """The weights of a run that nobody disturbs, in runs of its own."""
    trainer = Trainer(workspace)
    assert trainer.process.wait() == 0, trainer.log()
    return take_result(workspace)


class Trainer:
    """A trainer in a process of its own; its log goes to a file."""

    count = 0

    def __init__(self, workspace, command=TRAIN):
        Trainer.count += 1
        self.workspace, self.file = workspace, workspace / f"log{Trainer.count}.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=workspace, env=environment, stdout=log, stderr=log)

    def log(self):
        return self.file.read_text()

    def wait_for(self, text):
        """Return once the log says `text`; fail where the process ends without."""
        while text not in self.log():
            assert self.process.poll() is None or text in self.log(), self.log()
            time.sleep(0.02)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait()


def take_result(workspace):
    """Return the weights' bytes, and forget the run."""
    weights = (workspace / "artifacts/checkpoints/time_split/hstu/weights.safetensors").read_bytes()
    for path in sorted((workspace / "artifacts/runs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return weights


def saved_epochs(workspace):
    runs = workspace / "artifacts/runs"
    [folder] = [path for path in runs.iterdir() if path.is_dir()]
    return len(Run(runs, folder.name).saved_epochs())


def wait_until(condition):
    while not condition():
        time.sleep(0.05)


def test_killed_and_interrupted_runs_resume_and_end_in_the_weights_of_an_undisturbed_one(workspace, undisturbed):
    killed = Trainer(workspace)
    killed.wait_for("epoch   1/")
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    first = saved_epochs(workspace)
    assert 0 < first < EPOCHS

    interrupted = Trainer(workspace)
    interrupted.wait_for(f"resuming at epoch {first + 1} of {EPOCHS} from artifacts/runs/")
    interrupted.wait_for(f"epoch {first + 1:3d}/")
    assert interrupted.end(signal.SIGINT) == 130
    second = saved_epochs(workspace)
    assert first < second < EPOCHS
    assert f"{second} epochs are saved in artifacts/runs/" in interrupted.log()
    assert "resume with: python -m components train --model hstu --protocol time_split" in interrupted.log()
    assert "Traceback" not in interrupted.log()

    terminated = Trainer(workspace)
    terminated.wait_for(f"resuming at epoch {second + 1} of {EPOCHS}")
    assert terminated.end(signal.SIGTERM) == 143
    third = saved_epochs(workspace)

    last = Trainer(workspace)
    assert last.process.wait() == 0, last.log()
    assert f"resuming at epoch {third + 1} of {EPOCHS}" in last.log()
    assert take_result(workspace) == undisturbed


def test_of_two_trainers_of_one_run_the_second_waits_and_both_end_well(workspace, undisturbed):
    trainers = [Trainer(workspace), Trainer(workspace)]
    assert [trainer.process.wait() for trainer in trainers] == [0, 0]
    [waited] = [trainer for trainer in trainers if "waiting for process" in trainer.log()]
    [worked] = [trainer for trainer in trainers if trainer is not waited]
    assert f"waiting for process {worked.process.pid}, which trains this very run" in waited.log()
    assert "this very run is finished: copying" in waited.log()
    assert take_result(workspace) == undisturbed


@pytest.mark.parametrize("shell", ["exec", "keep"])
def test_a_trainer_ends_when_whoever_started_its_shell_is_killed(workspace, shell):
    command = " ".join(TRAIN) + ("; true" if shell == "keep" else "")  # `; true`: the shell stays between them
    parent = f"import subprocess; subprocess.run(['sh', '-c', {command!r}])"
    starter = Trainer(workspace, [sys.executable, "-c", parent])
    try:
        starter.wait_for("epoch   1/")
        descendants = psutil.Process(starter.process.pid).children(recursive=True)
        [trainer] = [process for process in descendants if "components" in process.cmdline()]
        starter.end(signal.SIGKILL)
        wait_until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)
        assert "which started this one, is gone" in starter.log()
        assert 0 < saved_epochs(workspace) < EPOCHS
    finally:
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
