"""Real trainers, killed in every way: the same command resumes, alone, and ends in the very same weights."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from made_logs import build, train_settings, walking_log, write_log
from ruamel.yaml import YAML

from components.fitting.runs import Run

ROOT = Path(__file__).parent.parent
TRAIN = [sys.executable, "-m", "components", "train"]
EPOCHS = 60  # of about 0.1 s: long enough to be killed in between, short enough for a test
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A working folder with params.yaml and the sequences of a made log."""
    root = write_log(tmp_path_factory.mktemp("resume"), walking_log(num_users=120, num_events=60))
    build(root, "time_split")
    return root


@pytest.fixture(autouse=True)
def _start_anew(workspace):
    """No test resumes what another one left."""
    write_params(workspace, EPOCHS)
    shutil.rmtree(workspace / "artifacts/runs", ignore_errors=True)
    yield
    Trainer.end_all()


@pytest.fixture(scope="module")
def undisturbed(workspace):
    """The weights of a run that nobody disturbs."""
    write_params(workspace, EPOCHS)
    trainer = Trainer(workspace)
    assert trainer.process.wait() == 0, trainer.log()
    return weights_of(workspace)


def write_params(workspace, epochs):
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["train"]["hstu"] = vars(train_settings(epochs=epochs, patience=epochs, max_len=60, dim=16))
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(params, file)


class Trainer:
    """A trainer in a process of its own; its log goes to a file."""

    started: ClassVar = []

    def __init__(self, workspace, command=TRAIN):
        Trainer.started.append(self)
        self.file = workspace / f"log{len(Trainer.started)}.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=workspace, env=environment, stdout=log, stderr=log)

    @classmethod
    def end_all(cls):
        """Leave nothing running after a failed test; a starter's trainer ends with it."""
        for trainer in cls.started:
            trainer.process.kill()
            trainer.process.wait()

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


def weights_of(workspace):
    return (workspace / "artifacts/checkpoints/time_split/hstu/weights.safetensors").read_bytes()


def saved_epochs(workspace):
    runs = workspace / "artifacts/runs"
    [folder] = [path for path in runs.iterdir() if path.is_dir()]
    return len(Run(runs, folder.name).saved_epochs())


def test_killed_and_interrupted_runs_resume_and_end_in_the_weights_of_an_undisturbed_one(workspace, undisturbed):
    killed = Trainer(workspace)
    killed.wait_for("epoch   1/")
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    first = saved_epochs(workspace)
    assert 0 < first < EPOCHS

    interrupted = Trainer(workspace)
    interrupted.wait_for(f"resuming after epoch {first} of {EPOCHS} from artifacts/runs/")
    interrupted.wait_for(f"epoch {first + 1:3d}/")
    assert interrupted.end(signal.SIGINT) == 130
    second = saved_epochs(workspace)
    assert first < second < EPOCHS
    assert f"{second} epochs are saved in artifacts/runs/" in interrupted.log()
    assert "resume with: python -m components train --model hstu --protocol time_split" in interrupted.log()
    assert "Traceback" not in interrupted.log()

    terminated = Trainer(workspace)
    terminated.wait_for(f"resuming after epoch {second} of {EPOCHS}")
    assert terminated.end(signal.SIGTERM) == 143
    third = saved_epochs(workspace)

    last = Trainer(workspace)
    assert last.process.wait() == 0, last.log()
    assert f"resuming after epoch {third} of {EPOCHS}" in last.log()
    assert weights_of(workspace) == undisturbed


def test_of_two_trainers_of_one_run_the_second_waits_and_both_end_well(workspace, undisturbed):
    first = Trainer(workspace)
    first.wait_for("epoch   1/")
    first.process.send_signal(signal.SIGSTOP)  # it holds the run however long the second takes to start
    second = Trainer(workspace)
    second.wait_for(f"waiting for process {first.process.pid}, which trains this very run")
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait() == 0, first.log()
    assert second.process.wait() == 0, second.log()
    assert "this very run is finished: copying" in second.log()
    assert weights_of(workspace) == undisturbed


@pytest.mark.parametrize("shell", ["replaced by the trainer", "between"])
def test_a_trainer_ends_when_whoever_started_its_shell_is_killed(workspace, shell):
    write_params(workspace, ENDLESS)
    trainer = " ".join(TRAIN)
    command = f"{trainer}; true" if shell == "between" else f"exec {trainer}"
    starter = Trainer(
        workspace, [sys.executable, "-c", f"import subprocess; subprocess.run(['sh', '-c', {command!r}])"]
    )
    starter.wait_for("epoch   1/")
    children = psutil.Process(starter.process.pid).children(recursive=True)
    assert len(children) == (2 if shell == "between" else 1)
    starter.end(signal.SIGKILL)
    psutil.wait_procs(children)
    assert f"process {starter.process.pid}, which started this one, is gone" in starter.log()
    assert 0 < saved_epochs(workspace) < ENDLESS
