"""A warm start: the champion's weights where both know the item, no event seen twice, nobody's who was forgotten."""

import shutil

import pytest
import torch
from made_logs import build, train_settings, walking_log, write_log
from safetensors.torch import load_file

from components import training
from components.errors import SettingsError, StateError
from components.files import read_json, write_json
from components.fitting.interruption import TrainingInterrupted
from components.fitting.runs import Run
from components.fitting.start import ITEM_TABLE, read_keys
from components.interactions import hash_log
from components.lineage import find_models
from components.person import Person
from components.settings import PARAMS, TrainSettings, change_settings, load_settings
from components.warm_start import choose_start, find_start

TAG = "hstuflow:8d9ebf9213d6d8eb"
FIRST_NIGHT = 32 * 86_400  # seconds: when the earlier model's log ends
EVENTS = walking_log()
SPLIT = "artifacts/sequences/time_split/split.json"
LATE_ITEM = 99  # no event of it before FIRST_NIGHT


def train(folder, out, *, start=None, model="hstu", **changes):
    """Train on a folder of sequences; return the checkpoint."""
    training.train(
        train_settings(**{"warm_start": start and TAG} | changes),
        model,
        folder.name,
        sequences=folder,
        checkpoint=out / "checkpoint",
        runs=out / "runs",
        start=start,
    )
    return out / "checkpoint"


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The sequences of a log up to the first night, and of all of it, with an item that is new in it."""
    new = [(user, LATE_ITEM, FIRST_NIGHT + 60 + user) for user in range(12)]
    logs = ([event for event in EVENTS if event[2] < FIRST_NIGHT], EVENTS + new)
    roots = [write_log(tmp_path_factory.mktemp("log"), log) for log in logs]
    return [build(root, "time_split") / "time_split" for root in roots]


@pytest.fixture(scope="module")
def earlier(nights, tmp_path_factory):
    """The model of the first night, trained to the end."""
    return train(nights[0], tmp_path_factory.mktemp("earlier"), epochs=12, patience=12)


def epochs_of(checkpoint):
    return read_json(checkpoint / "checkpoint.json")["epochs"]


def test_training_begins_with_the_earlier_weights_and_fresh_rows_for_new_items(nights, earlier, tmp_path):
    still = {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    warm = load_file(train(nights[1], tmp_path / "warm", start=earlier, **still) / "weights.safetensors")
    fresh = load_file(train(nights[1], tmp_path / "fresh", **still) / "weights.safetensors")
    before, (old, new) = load_file(earlier / "weights.safetensors"), map(read_keys, (earlier, nights[1]))
    assert str(LATE_ITEM) in set(new) - set(old)
    for row, key in enumerate(new):
        expected = before[ITEM_TABLE][old.index(key)] if key in old else fresh[ITEM_TABLE][row]
        torch.testing.assert_close(warm[ITEM_TABLE][row], expected, msg=key)
    for name in before.keys() - {ITEM_TABLE}:
        torch.testing.assert_close(warm[name], before[name], msg=name)


def test_it_is_ahead_of_a_model_from_scratch_after_one_epoch(nights, earlier, tmp_path):
    warm, scratch = (train(nights[1], tmp_path / str(start), start=start, epochs=1) for start in (earlier, None))
    assert epochs_of(warm)[0]["valid_ndcg@10"] > epochs_of(scratch)[0]["valid_ndcg@10"] + 0.1
    assert epochs_of(warm)[0]["loss"] < epochs_of(scratch)[0]["loss"]


def test_a_warm_training_that_was_stopped_resumes_to_the_same_weights(nights, earlier, tmp_path, monkeypatch):
    undisturbed = train(nights[1], tmp_path / "undisturbed", start=earlier)
    save = Run.save

    def interrupt(run, state):
        save(run, state)
        raise TrainingInterrupted(143)

    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(TrainingInterrupted):
        train(nights[1], tmp_path / "stopped", start=earlier)
    monkeypatch.undo()
    resumed = train(nights[1], tmp_path / "stopped", start=earlier)
    assert (resumed / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("facts", "changes", "why"),
    [
        ({}, {"model": "sasrec", "bias": "none"}, "it is a model hstu"),
        ({"refit_epochs": [{"epoch": 1}]}, {}, "it was refitted on its validation part"),
        ({}, {"dim": 16}, "it has dim 8"),
        ({"split": {"protocol": "leave_one_out"}}, {}, "it was trained on leave_one_out"),
        ({"split": {"train_end": 10**9}}, {}, "it was trained on events of today's validation or test part"),
    ],
)
def test_what_would_spoil_the_evaluation_or_does_not_fit_is_refused(nights, earlier, tmp_path, facts, changes, why):
    start = tmp_path / "start"
    shutil.copytree(earlier, start)
    known = read_json(start / "checkpoint.json")
    split = known["split"] | facts.get("split", {})
    write_json(start / "checkpoint.json", known | facts | {"split": split})
    with pytest.raises(StateError, match=rf"warm_start: training cannot start from start: {why}"):
        train(nights[1], tmp_path, start=start, **changes)


def test_a_model_that_knew_somebody_who_is_forgotten_now_is_no_start(nights, earlier, tmp_path):
    today = tmp_path / "sequences" / "time_split"
    shutil.copytree(nights[1], today)
    write_json(today / "split.json", read_json(today / "split.json") | {"forgotten": 2})
    with pytest.raises(StateError, match="it was trained before 2 of the 2 forgotten people were"):
        train(today, tmp_path, start=earlier)


def test_the_settings_say_that_a_refitted_model_could_be_no_start_and_that_latest_names_none():
    settings, known = TrainSettings, dict(load_settings().train["hstu"])
    assert settings.model_validate(known | {"warm_start": TAG, "refit": False}).warm_start == TAG
    for wrong in ({"warm_start": TAG, "refit": True}, {"warm_start": "hstuflow:latest", "refit": False}):
        with pytest.raises(ValueError, match="warm_start"):
            settings.model_validate(known | wrong)


class Night:
    """A workspace with today's sequences, a champion in a store of its own, and params.yaml."""

    def __init__(self, root, earlier, today, monkeypatch):
        self.root, self.params = root, root / "params.yaml"
        self.model, self.split = root / "bentoml" / "models" / "hstuflow" / "m1", root / SPLIT
        monkeypatch.setenv("BENTOML_HOME", str(root / "bentoml"))
        shutil.copytree(earlier, self.model)
        shutil.copytree(today, self.split.parent)
        bento = root / "bentoml" / "bentos" / "hstuflow" / "8d9ebf9213d6d8eb" / "bento.yaml"
        bento.parent.mkdir(parents=True)
        bento.write_text("models: [{tag: 'hstuflow:m1', alias: checkpoint}]\n")
        self.params.write_text(PARAMS.read_text().replace("refit: true", "refit: false"))

    def promote(self, data_hash="that of an earlier log"):
        champion = {"tag": TAG, "model_tag": "hstuflow:m1", "verdict": "accepted", "data_hash": data_hash}
        write_json(self.root / "registry" / "champion.json", champion | {"previous": None})

    def choose(self, **changes):
        """Return warm_start as params.yaml has it afterwards."""
        settings = load_settings(self.params)
        shape = {name: value for name, value in vars(train_settings(**changes)).items() if name != "warm_start"}
        settings.train["hstu"] = settings.train["hstu"].model_copy(update=shape)
        choose_start(settings, artifacts=self.root / "artifacts", registry=self.root / "registry", params=self.params)
        return self.read("hstu")

    def read(self, model):
        return load_settings(self.params).train[model].warm_start


@pytest.fixture
def night(nights, earlier, tmp_path, monkeypatch):
    return Night(tmp_path, earlier, nights[1], monkeypatch)


def test_the_next_training_starts_from_the_champion_once_the_log_has_moved_on(night):
    assert night.choose() is None  # there is no champion yet
    night.promote()
    comments = night.params.read_text().count("#")
    assert night.choose() == TAG
    assert find_start(TAG, "time_split") == night.model
    assert find_start(TAG, "leave_one_out") is None
    assert night.params.read_text().count("#") == comments
    night.promote(read_json(night.split)["data_hash"])
    before = night.params.read_text()
    assert night.choose() == TAG  # trained on this very log: nothing moves, and nothing is trained again
    assert night.params.read_text() == before


def test_a_model_without_a_champion_starts_from_nothing(night):
    night.promote()
    change_settings({"train": {"sasrec": {"warm_start": TAG}}}, night.params, where="made")
    assert (night.choose(), night.read("sasrec")) == (TAG, None)


@pytest.mark.parametrize(
    ("facts", "changes", "split"),
    [
        ({"refit_epochs": [{}]}, {}, {}),
        ({}, {"dim": 16}, {}),
        ({}, {}, {"train_end": 0}),  # T1 has moved back: events came in late
        ({}, {}, {"forgotten": 1}),
    ],
)
def test_the_next_training_starts_from_scratch_where_the_champion_can_be_no_start(night, facts, changes, split):
    night.promote()
    assert night.choose() == TAG
    checkpoint = night.model / "checkpoint.json"
    write_json(checkpoint, read_json(checkpoint) | facts)
    write_json(night.split, read_json(night.split) | split)
    assert night.choose(**changes) is None


def test_a_champion_that_the_store_lost_is_no_start_and_no_error(night):
    night.promote()
    shutil.rmtree(night.model)
    assert night.choose() is None


def test_where_the_new_model_would_be_refitted_none_could_ever_start_from_it(night):
    night.promote()
    with pytest.raises(SettingsError, match=r"train\.hstu\.refit: a refitted model can be no start"):
        night.choose(refit=True)


def test_a_checkpoint_of_an_earlier_version_is_read_with_what_it_meant(night):
    night.promote()
    checkpoint = night.model / "checkpoint.json"
    facts = read_json(checkpoint)
    del facts["settings"]["gated_residual"], facts["settings"]["head"]
    write_json(checkpoint, facts)
    assert night.choose() == TAG


def test_a_model_hands_on_whom_it_saw_to_those_that_start_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    write_log(tmp_path, EVENTS)
    today = hash_log(tmp_path / "data", tmp_path / "artifacts" / "quarantine.parquet")
    # The person comes at 100: b and c were trained on earlier events alone, b starts from a, c from nothing stored.
    starts = {"a": (None, 200, today), "b": ("hstuflow:a", 50, "other"), "c": ("hstuflow:0", 50, "other")}
    for name, (start, until, data_hash) in {**starts, "d": (None, 50, "other")}.items():
        facts = {"settings": {"warm_start": start}, "split": {"train_end": until}, "data_hash": data_hash}
        write_json(tmp_path / "bentoml" / "models" / "hstuflow" / name / "checkpoint.json", facts)
    models = find_models(Person("ann", 1, {}, 100), root=tmp_path, registry=tmp_path / "registry")
    assert {one["model_tag"][-1]: one["saw"] for one in models} == {"a": "yes", "b": "yes", "c": "maybe", "d": "no"}
