"""The trainer learns, repeats itself bit for bit, resumes anywhere, and stops where it must."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_logs import build, train_settings, walking_log, write_log
from made_models import HSTU_LEVERS, SASREC_LEVERS
from ruamel.yaml import YAML
from safetensors.torch import load_file

from components import training
from components.dataset import load_sequences
from components.errors import SettingsError, StateError
from components.fitting.checkpoint import describe_environment, find_popular
from components.fitting.loop import Trainer, best_epoch, derive_seed, determinism, learning_rate_at
from components.fitting.runs import Run, hash_run, prune_runs
from components.training import CODE

TRAINING_LEVERS = {
    "cycles": {"cycles": 2},
    "stochastic length": {"stochastic_length": 1.3},
    "request time dropout": {"request_time_dropout": 0.5},
    "no request time": {"request_time_dropout": 1.0},
    "random windows": {"windows": "random"},
}
ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sequences of a small log whose order can be learnt."""
    return build(write_log(tmp_path_factory.mktemp("log"), walking_log()), "time_split") / "time_split"


@pytest.fixture(scope="module")
def sequences(folder):
    return load_sequences(folder)


def fit(sequences, *, state=None, name="hstu", **changes):
    """Train, and return the states after every epoch."""
    states = []
    Trainer(train_settings(**changes), name, sequences, CPU).fit(state, states.append)
    return states


def bits(weights):
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def run_train(folder, out, **changes):
    training.train(
        train_settings(**changes),
        "hstu",
        "time_split",
        sequences=folder,
        checkpoint=out / "checkpoint",
        runs=out / "runs",
    )
    return out / "checkpoint"


# learning


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
@pytest.mark.parametrize("loss", ["full", "sampled", "shared"])
def test_loss_falls_and_validation_rises_where_order_can_be_learnt(sequences, name, loss):
    epochs = fit(sequences, name=name, loss=loss, epochs=24, patience=24, dropout=0.0)[-1].epochs
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert epochs[-1]["valid_ndcg@10"] > epochs[0]["valid_ndcg@10"]


@pytest.mark.parametrize("lever", HSTU_LEVERS.values(), ids=HSTU_LEVERS)
def test_hstu_learns_with_each_of_its_levers(sequences, lever):
    assert_learns(sequences, "hstu", lever)


@pytest.mark.parametrize("lever", SASREC_LEVERS.values(), ids=SASREC_LEVERS)
def test_sasrec_learns_with_each_of_its_levers(sequences, lever):
    assert_learns(sequences, "sasrec", lever)


@pytest.mark.parametrize("lever", TRAINING_LEVERS.values(), ids=TRAINING_LEVERS)
def test_training_learns_with_each_of_its_levers(sequences, lever):
    assert_learns(sequences, "hstu", lever)


def assert_learns(sequences, name, lever):
    two_heads = {"num_heads": 2, "head_dim_qk": 4, "head_dim_v": 4}
    epochs = fit(sequences, name=name, **(two_heads | lever))[-1].epochs
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(sequences):
    first, again, other = (fit(sequences, seed=seed, epochs=2)[-1].weights for seed in (1, 1, 2))
    assert bits(first) == bits(again)
    assert bits(first) != bits(other)


@pytest.mark.parametrize(
    ("device", "num_threads", "expected"), [("cpu", 1, False), ("cpu", 2, True), ("cuda", 2, False)]
)
def test_only_several_threads_on_a_cpu_need_deterministic_algorithms(device, num_threads, expected):
    before = torch.get_num_threads()
    with determinism(torch.device(device), num_threads):
        assert torch.get_num_threads() == num_threads
        assert torch.are_deterministic_algorithms_enabled() is expected
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("loss", ["full", "sampled", "shared"])
@pytest.mark.parametrize("saved", [1, 3])
def test_resuming_after_any_epoch_ends_in_the_same_bits(sequences, tmp_path, loss, saved):
    assert_resumes(sequences, tmp_path, saved, loss=loss)


@pytest.mark.parametrize("lever", TRAINING_LEVERS.values(), ids=TRAINING_LEVERS)
def test_resuming_with_a_lever_on_ends_in_the_same_bits(sequences, tmp_path, lever):
    assert_resumes(sequences, tmp_path, 2, **lever)


def assert_resumes(sequences, tmp_path, saved, **changes):
    undisturbed = fit(sequences, **changes)
    run = Run(tmp_path, "run")
    run.folder.mkdir()
    run.save(undisturbed[saved - 1])
    torch.rand(17)  # whatever the process did with its random numbers meanwhile
    resumed = fit(sequences, state=run.load(), **changes)
    assert [state.epochs[-1]["epoch"] for state in resumed] == list(range(saved + 1, 5))
    assert bits(resumed[-1].weights) == bits(undisturbed[-1].weights)
    assert bits(resumed[-1].best_weights) == bits(undisturbed[-1].best_weights)
    assert [facts["loss"] for facts in resumed[-1].epochs] == [facts["loss"] for facts in undisturbed[-1].epochs]


def test_the_test_part_is_never_read(sequences):
    changed = sequences.items.copy()
    for first, end in zip(sequences.test_starts, sequences.ends, strict=True):
        changed[first:end] = 0
    blinded = type(sequences)(**(vars(sequences) | {"items": changed}))
    assert (changed != sequences.items).any()
    assert bits(fit(blinded)[-1].best_weights) == bits(fit(sequences)[-1].best_weights)


# stopping


def test_training_stops_once_validation_has_not_improved_for_patience_epochs(sequences):
    trainer, states = Trainer(train_settings(epochs=20, patience=3), "hstu", sequences, CPU), []
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    trainer.validation.measure_ndcg = lambda model: next(scores)
    final = trainer.fit(None, states.append)
    assert len(final.epochs) == 5
    assert best_epoch(final.epochs) == 2  # the first of equals
    assert bits(final.best_weights) == bits(states[1].weights)


def test_a_run_that_had_already_stopped_early_is_not_trained_further(sequences):
    trainer = Trainer(train_settings(epochs=20, patience=1), "hstu", sequences, CPU)
    scores = iter([0.3, 0.2])
    trainer.validation.measure_ndcg = lambda model: next(scores)
    stopped = trainer.fit(None, lambda state: None)
    assert len(stopped.epochs) == 2
    assert fit(sequences, state=stopped, epochs=20, patience=1) == []


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_last_good_state(folder, tmp_path, monkeypatch):
    calls = []
    real = Trainer._train_batch

    def fail_in_third_epoch(self, *arguments):
        calls.append(1)
        return float("nan") if len(calls) == 2 * self.num_batches + 2 else real(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_batch", fail_in_third_epoch)
    with pytest.raises(SettingsError, match=r"train\.hstu, epoch 3, batch 2 of \d+: loss is not finite.*observed nan"):
        run_train(folder, tmp_path)
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(Run(run.parent, run.name).load().epochs) == 2
    assert not (tmp_path / "checkpoint").exists()


def test_infinite_weights_after_a_finite_loss_are_never_saved(sequences):
    trainer, states = Trainer(train_settings(), "hstu", sequences, CPU), []
    trainer._train_batch = lambda *_: (trainer.model.embedding.position.data.fill_(torch.inf), 1.0)[1]
    with pytest.raises(SettingsError, match=r"weight embedding\.position is not finite"):
        trainer.fit(None, states.append)
    assert states == []


def test_a_log_without_a_pair_of_events_cannot_be_trained_on(tmp_path):
    events = [(user, user % 5, user) for user in range(40)] + [(0, 1, 50), (0, 2, 60), (0, 3, 70)]
    sequences = load_sequences(build(write_log(tmp_path, events), "time_split") / "time_split")
    with pytest.raises(StateError, match="no user with two events"):
        Trainer(train_settings(), "hstu", sequences, CPU)


def test_a_log_whose_validation_has_no_history_cannot_choose_an_epoch(tmp_path):
    events = [(user, event, 10 * event) for user in range(10) for event in range(4)]
    events += [(100 + n, 1, 1000 + n) for n in range(5)] + [(200 + n, 1, 2000 + n) for n in range(5)]
    sequences = load_sequences(build(write_log(tmp_path, events), "time_split") / "time_split")
    with pytest.raises(StateError, match="no validation event has a history"):
        Trainer(train_settings(), "hstu", sequences, CPU)


def test_a_backend_that_does_not_run_here_is_a_wrong_setting(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"train\.hstu\.backend: .*nonsense"):
        run_train(folder, tmp_path, backend="nonsense")


# schedule and seeds


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = SimpleNamespace(learning_rate=1.0, warmup_steps=4, schedule="cosine", cycles=1)
    rates = [learning_rate_at(settings, step, 14) for step in (0, 3, 4, 9, 13, 14)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0245, 0.0], abs=1e-4)


def test_each_cycle_is_half_a_cosine_and_only_the_first_has_a_warm_up():
    settings = SimpleNamespace(learning_rate=1.0, warmup_steps=4, schedule="cosine", cycles=3)
    rates = [learning_rate_at(settings, step, 34) for step in range(35)]
    half_cosine = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0] + 3 * half_cosine + [0.0], abs=1e-12)


def test_a_constant_schedule_stays_at_the_learning_rate():
    settings = SimpleNamespace(learning_rate=0.5, warmup_steps=0, schedule="constant")
    assert {learning_rate_at(settings, step, 10) for step in range(10)} == {0.5}


def test_seeds_of_epochs_and_streams_are_all_different():
    seeds = {derive_seed(seed, epoch, stream) for seed in range(5) for epoch in range(20) for stream in range(2)}
    assert len(seeds) == 200


# what is left on disk


def test_the_checkpoint_holds_all_that_serving_needs(folder, tmp_path):
    checkpoint = run_train(folder, tmp_path)
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "catalogue.parquet",
        "checkpoint.json",
        "weights.safetensors",
    ]
    assert (checkpoint / "catalogue.parquet").read_bytes() == (folder / "catalogue.parquet").read_bytes()
    assert facts["settings"] == vars(train_settings())
    assert facts["split"] == json.loads((folder / "split.json").read_text())
    assert facts["data_hash"] == facts["split"]["data_hash"]
    assert [entry["epoch"] for entry in facts["epochs"]] == [1, 2, 3, 4]
    assert set(facts["epochs"][0]) == {"epoch", "loss", "valid_ndcg@10", "seconds"}
    assert facts["best_epoch"] == best_epoch(facts["epochs"])


def test_the_weights_are_those_of_the_best_epoch(folder, sequences, tmp_path):
    best = fit(sequences)[-1].best_weights
    assert bits(load_file(run_train(folder, tmp_path) / "weights.safetensors")) == bits(best)


def test_an_identical_run_only_copies(folder, tmp_path, monkeypatch):
    checkpoint = run_train(folder, tmp_path)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    for path in checkpoint.iterdir():
        path.unlink()
    monkeypatch.setattr(training, "Trainer", lambda *_: pytest.fail("trained again"))
    run_train(folder, tmp_path)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_another_parameter_is_another_run(folder, tmp_path):
    run_train(folder, tmp_path, epochs=1)
    run_train(folder, tmp_path, epochs=1, dropout=0.1)
    assert len([path for path in (tmp_path / "runs").iterdir() if path.is_dir()]) == 2


def test_popular_items_are_those_of_the_last_days_of_train(tmp_path):
    day = 86_400
    events = [(1, 1, n) for n in range(50)] + [(2, 2, 100 * day), (2, 3, 101 * day), (2, 3, 102 * day)]
    events += [(3, 4, 200 * day), (3, 4, 300 * day), (3, 4, 400 * day)]
    loaded = load_sequences(build(write_log(tmp_path, events), "leave_one_out") / "leave_one_out")
    assert loaded.num_items == 3  # items 1, 2 (of user 2) and 4
    assert find_popular(loaded, days=150) == [1, 2]
    assert find_popular(loaded, days=1000) == [0, 1, 2]
    assert find_popular(loaded, days=1000, limit=2) == [0, 1]


def test_the_hash_of_a_run_depends_on_every_fact():
    assert hash_run(a=1, b={"c": 2}) == hash_run(b={"c": 2}, a=1)
    assert len({hash_run(a=1), hash_run(a=2), hash_run(b=1)}) == 3


def test_only_the_latest_runs_are_kept_and_none_that_is_in_use(tmp_path):
    for number in range(6):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (tmp_path / f"run{number}.lock").touch()
        os.utime(folder, (1000 + number, 1000 + number))
    with Run(tmp_path, "run0").locked():
        os.utime(tmp_path / "run0", (1000, 1000))
        prune_runs(tmp_path, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run0", "run3", "run4", "run5"]
    assert not (tmp_path / "run1.lock").exists()


def test_unfinished_runs_outlive_any_number_of_finished_ones(tmp_path, caplog):
    for number in range(8):
        folder = tmp_path / f"run{number}"
        (folder / "checkpoint" if number >= 3 else folder).mkdir(parents=True)
        os.utime(folder, (1000 + number, 1000 + number))
    with caplog.at_level("INFO"):
        prune_runs(tmp_path, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["run1", "run2", "run6", "run7"]
    removed = sorted(message.split(":")[0] for message in caplog.messages)
    kinds = {"run0": "unfinished"} | dict.fromkeys(("run3", "run4", "run5"), "finished")
    assert removed == sorted(f"removed the {kind} run {tmp_path / name}" for name, kind in kinds.items())


def test_several_processes_may_prune_at_once(tmp_path):
    for number in range(300):
        (tmp_path / f"run{number}" / "checkpoint").mkdir(parents=True)
    code = "import sys; from pathlib import Path; from components.fitting.runs import prune_runs; sys.stdin.read();"
    command = [sys.executable, "-c", code + "prune_runs(Path(sys.argv[1]), keep=1)", str(tmp_path)]
    pruners = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for pruner in pruners:
        pruner.stdin.close()  # together
        pruner.stdin = None
    errors = [pruner.communicate()[1] for pruner in pruners]
    assert [pruner.returncode for pruner in pruners] == [0, 0, 0], errors
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_the_state_is_dropped_only_when_the_checkpoint_and_its_name_are_on_the_disk(tmp_path, record_syncs):
    run = Run(tmp_path, "run")
    run.folder.mkdir()
    state, checkpoint = run.folder / "state.safetensors", run.folder / "checkpoint"
    state.touch()
    synced = record_syncs(lambda: (state.exists(), checkpoint.exists()))
    with run.finishing() as folder:
        (folder / "weights.safetensors").touch()
    inodes = [path.stat().st_ino for path in (checkpoint / "weights.safetensors", checkpoint, run.folder)]
    assert synced == list(zip(inodes, [(True, False), (True, False), (True, True)], strict=True))
    assert not state.exists()


def test_what_a_killed_trainer_left_half_written_is_removed(tmp_path):
    run = Run(tmp_path, "run")
    (run.folder / ".checkpoint.x").mkdir(parents=True)
    (run.folder / ".state.safetensors.y").touch()
    with run.locked():
        assert [path.name for path in run.folder.iterdir()] == ["pid"]
        assert (run.folder / "pid").read_text() == f"{os.getpid()}\n"


# contracts


def test_a_run_is_another_one_with_other_vector_instructions_or_another_numpy(monkeypatch):
    here = describe_environment(CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert describe_environment(CPU) == here | {"vectors": "another"}
    monkeypatch.setattr(np, "__version__", "0.0")
    assert describe_environment(CPU) == here | {"vectors": "another", "numpy": "0.0"}


def test_the_run_hash_covers_exactly_the_code_that_dvc_watches():
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    assert [dep for dep in stage["deps"] if not dep.startswith("artifacts/")] == list(CODE)
    assert all((ROOT / path).exists() for path in CODE)


def test_training_can_be_imported_where_only_torch_and_numpy_are_installed():
    missing = ["pydantic", "pyarrow", "rich", "psutil", "filelock", "safetensors", "prefect", "dvc", "typer", "ruamel"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import components.training"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
