"""A refit: what is served has learnt from validation too, what validation judges has not, and the test stays unseen."""

import json

import numpy as np
import pytest
from made_evaluations import evaluate_settings
from made_logs import build, train_settings, walking_log, write_log
from safetensors.torch import load_file

from components import training
from components.dataset import Sequences, find_training_windows, join_validation, load_sequences
from components.evaluation import evaluate
from components.fitting.interruption import TrainingInterrupted
from components.fitting.loop import Trainer
from components.fitting.runs import Run


@pytest.fixture(scope="module", params=["time_split", "leave_one_out"])
def folder(request, tmp_path_factory):
    """The sequences of a small log whose order can be learnt."""
    log = write_log(tmp_path_factory.mktemp("log"), walking_log())
    return build(log, request.param) / request.param


def run_train(folder, out, *, refit=True):
    training.train(
        train_settings(refit=refit),
        "hstu",
        folder.name,
        sequences=folder,
        checkpoint=out / "checkpoint",
        runs=out / "runs",
    )
    return out / "checkpoint"


@pytest.fixture(scope="module")
def checkpoints(folder, tmp_path_factory):
    """The same training without and with a refit."""
    return [run_train(folder, tmp_path_factory.mktemp("run"), refit=refit) for refit in (False, True)]


def tensors_of(file):
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def facts_of(checkpoint):
    return json.loads((checkpoint / "checkpoint.json").read_text())


def test_a_refit_keeps_what_validation_chose_beside_what_is_served(checkpoints):
    plain, refit = checkpoints
    assert tensors_of(refit / "selected.safetensors") == tensors_of(plain / "weights.safetensors")
    assert tensors_of(refit / "weights.safetensors") != tensors_of(plain / "weights.safetensors")
    assert not (plain / "selected.safetensors").exists()
    facts = facts_of(refit)
    assert [epoch["epoch"] for epoch in facts["refit_epochs"]] == list(range(1, facts["best_epoch"] + 1))
    assert facts_of(plain)["refit_epochs"] == []


def test_validation_judges_the_model_before_the_refit_and_the_test_the_one_after(folder, checkpoints, tmp_path):
    results = []
    for number, checkpoint in enumerate(checkpoints):
        out = tmp_path / str(number)
        evaluate(evaluate_settings(), "hstu", folder.name, sequences=folder, checkpoint=checkpoint, out=out)
        results.append([json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "gate")])
    (plain, plain_gate), (refit, refit_gate) = results
    assert refit[f"{folder.name}.valid"] == plain[f"{folder.name}.valid"]
    assert refit_gate == plain_gate
    assert refit[folder.name]["hstu"] != plain[folder.name]["hstu"]
    assert refit[folder.name]["item_item"] == plain[folder.name]["item_item"]


def test_a_refit_never_reads_the_test_part(folder):
    sequences = load_sequences(folder)
    items, timestamps = sequences.items.copy(), sequences.timestamps.copy()
    for first, end in zip(sequences.test_starts, sequences.ends, strict=True):
        items[first:end], timestamps[first:end] = 0, 2**40
    assert (items != sequences.items).any()
    blinded = Sequences(**(vars(sequences) | {"items": items, "timestamps": timestamps}))
    weights = [
        Trainer(train_settings(), "hstu", join_validation(log), training.choose_device(), num_epochs=2)
        .fit(None, lambda _: None)
        .weights
        for log in (sequences, blinded)
    ]
    for name, tensor in weights[0].items():
        assert (tensor == weights[1][name]).all(), name


def test_an_interrupted_refit_resumes_where_it_was(folder, checkpoints, tmp_path, monkeypatch):
    save, saved = Run.save, []

    def interrupt(run, state):
        save(run, state)
        saved.append(run.folder.name)
        if saved.count("refit") == 1:
            raise TrainingInterrupted(143)

    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(TrainingInterrupted):
        run_train(folder, tmp_path)
    monkeypatch.setattr(Run, "save", lambda run, state: (saved.append(run.folder.name), save(run, state)))
    checkpoint = run_train(folder, tmp_path)
    assert saved.count("refit") == facts_of(checkpoint)["best_epoch"]  # none twice
    for file in ("weights.safetensors", "selected.safetensors"):
        assert tensors_of(checkpoint / file) == tensors_of(checkpoints[1] / file)
    assert not list((tmp_path / "runs").glob("*/refit"))


def test_joining_validation_to_train_keeps_every_known_event_and_its_order():
    """Two users; -1 is an item that train never saw."""
    sequences = Sequences(
        items=np.array([0, 1, -1, 2, 0, 1, 1, -1], dtype=np.int32),
        timestamps=np.arange(8),
        user_ids=np.array([7, 9]),
        starts=np.array([0, 4]),
        valid_starts=np.array([2, 5]),
        test_starts=np.array([4, 6]),
        ends=np.array([4, 8]),
        split={"num_items": 3},
    )
    joined = join_validation(sequences)
    assert joined.items.tolist() == [0, 1, 2, 0, 1, 1]
    assert joined.timestamps.tolist() == [0, 1, 3, 4, 5, 6]
    assert (joined.starts.tolist(), joined.ends.tolist()) == ([0, 3], [3, 6])
    assert joined.valid_starts.tolist() == joined.test_starts.tolist() == [3, 5]
    assert find_training_windows(joined, 10).tolist() == [[0, 2], [3, 4]]
