"""Reading a checkpoint back: what this code does not know, it does not guess."""

import pytest
from made_checkpoints import TINY_SETTINGS, write_checkpoint
from safetensors.torch import load_file, save_file

from components import checkpoint
from components.checkpoint import load_model
from components.errors import StateError
from components.files import read_json, write_json
from components.settings import TrainSettings

KEYS = [f"item-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("setting", "observed"),
    [
        ({"mixture_of_experts": 4}, "settings mixture_of_experts"),
        ({"attention": "linear"}, "settings attention: linear"),
        ({"bias": "position+time+place"}, "settings bias: position+time+place"),
        ({"head": "tree"}, "settings head: tree"),
    ],
)
def test_settings_of_another_version_are_refused_although_the_weights_would_fit(tmp_path, setting, observed):
    folder = write_checkpoint(tmp_path / "checkpoint", KEYS)
    facts = read_json(folder / "checkpoint.json")
    write_json(folder / "checkpoint.json", facts | {"settings": TINY_SETTINGS | setting})
    with pytest.raises(StateError, match=f"needs the code of another version: observed {observed}".replace("+", r"\+")):
        load_model(folder)


@pytest.mark.parametrize(
    ("facts", "observed"),
    [
        ({"settings": None}, "no settings .*max_len"),
        ({"settings": {key: value for key, value in TINY_SETTINGS.items() if key != "dim"}}, "no settings dim"),
        ({"num_items": None}, "num_items None"),
        ({"num_items": -1}, "num_items -1"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_of_its_shape_is_damaged(tmp_path, facts, observed):
    folder = write_checkpoint(tmp_path / "checkpoint", KEYS)
    write_json(folder / "checkpoint.json", read_json(folder / "checkpoint.json") | facts)
    with pytest.raises(StateError, match=f"is damaged: observed {observed}"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    folder = write_checkpoint(tmp_path / "checkpoint", KEYS)
    weights = load_file(folder / "weights.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(StateError, match=f"weights.safetensors: is damaged: observed NaN or infinity in {name}"):
        load_model(folder)


def test_what_can_be_read_is_what_can_be_set():
    fields = TrainSettings.model_json_schema()["properties"]
    assert set(fields) == checkpoint._KEYS
    choices = {name: tuple(field["enum"]) for name, field in fields.items() if name in checkpoint._CHOICES}
    assert choices == checkpoint._CHOICES
