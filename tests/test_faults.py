"""kill -9 in mid-training, with the real DVC and the real flow: the same command resumes, to the same weights."""

import signal
import time

import pytest
from made_processes import processes, pythons, the_one, wait_until_gone
from made_repository import FLOW

pytestmark = pytest.mark.slow

STAGE = "train@hstu-time_split"
REPRO = ("dvc", "repro", "--single-item", STAGE)
EPOCHS = 150  # of about 0.1 s: long enough to be killed in between
WEIGHTS = "artifacts/checkpoints/time_split/hstu/weights.safetensors"


@pytest.fixture(scope="module")
def retraining(finished, tmp_path_factory):
    """A finished repository whose HSTU has to be trained again, for longer."""
    repository = finished[0].copy(tmp_path_factory.mktemp("faults"))
    repository.use(train={"hstu": {"epochs": EPOCHS}})
    return repository


@pytest.fixture(scope="module")
def undisturbed(retraining, tmp_path_factory):
    """The weights of a run that nobody disturbs."""
    repository = retraining.copy(tmp_path_factory.mktemp("undisturbed"))
    done = repository.run(*REPRO)
    assert done.returncode == 0, done.stdout
    return (repository.root / WEIGHTS).read_bytes()


@pytest.fixture
def repository(retraining, tmp_path):
    repository = retraining.copy(tmp_path)
    yield repository
    for process in processes(repository):  # nothing outlives a failed test
        process.kill()


def trainers(repository):
    return pythons(repository, "components", "train")


def start_training(repository, command, name):
    """Start a command and return it, with its log, once it has finished a few epochs."""
    log = repository.root.parent / name
    started = repository.start(*command, log=log)
    while "epoch   3/" not in log.read_text() and "resuming after epoch" not in log.read_text():
        assert started.poll() is None, log.read_text()
        time.sleep(0.05)
    return started, log


def epoch_resumed_after(printed):
    [line] = [line for line in printed.splitlines() if "resuming after epoch" in line]
    return int(line.split("resuming after epoch ")[1].split()[0])


@pytest.mark.parametrize("victim", [("components", "train"), ("repro", STAGE)], ids=["trainer", "dvc"])
def test_killing_trainer_or_dvc_and_repeating_the_command_resumes(repository, undisturbed, victim):
    dvc, _ = start_training(repository, REPRO, "killed.log")
    trainer = the_one(repository, "components", "train")
    the_one(repository, *victim).kill()
    assert dvc.wait() != 0
    second = repository.start(*REPRO, log=repository.root.parent / "second.log")
    alone = most_trainers(repository, second)
    wait_until_gone([trainer])
    printed = (repository.root.parent / "second.log").read_text()
    assert second.returncode == 0, printed
    assert alone == 1
    assert epoch_resumed_after(printed) > 0
    assert (repository.root / WEIGHTS).read_bytes() == undisturbed


def most_trainers(repository, started):
    """Wait for a command; return the largest number of trainers that were alive at once, from its first epoch on."""
    counts = []
    log = repository.root.parent / "second.log"
    while started.poll() is None:
        if "resuming after epoch" in log.read_text():
            counts.append(len(trainers(repository)))
        time.sleep(0.1)
    return max(counts)


def test_an_interrupted_and_a_killed_flow_leave_nothing_running_and_the_next_one_resumes(repository, undisturbed):
    flow, log = start_training(repository, FLOW, "interrupted.log")
    flow.send_signal(signal.SIGINT)
    assert flow.wait() == 130
    assert "resume with: " in log.read_text()
    assert log.read_text().splitlines()[-1].startswith("interrupted")
    wait_until_gone(processes(repository))

    flow, _ = start_training(repository, FLOW, "killed.log")
    running = [the_one(repository, "repro", STAGE), the_one(repository, "components", "train"), *processes(repository)]
    flow.kill()
    flow.wait()
    wait_until_gone(running)  # dvc, the trainer and Prefect's server too

    flow, log = start_training(repository, FLOW, "third.log")
    assert len(trainers(repository)) == 1
    assert flow.wait() == 0, log.read_text()
    assert epoch_resumed_after(log.read_text()) > 2
    assert (repository.root / WEIGHTS).read_bytes() == undisturbed
    assert repository.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
