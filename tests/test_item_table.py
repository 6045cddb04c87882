"""A quantized item table is packaged with what it costs: on validation, by weights that have not seen it."""

import json
import tarfile

import numpy as np
import pytest
import torch
from made_evaluations import make_root
from safetensors.torch import load_file, save_file

from components import packaging
from components.checkpoint import load_model
from components.dataset import load_sequences
from components.errors import StateError
from components.files import read_json, write_json
from components.item_table import write_quantized
from components.model.quantized import ITEM_TABLE, dequantize, quantize
from components.ranking.blocks import ModelScorer
from components.ranking.quantizing import measure_cost
from components.ranking.targets import find_targets
from components.settings import PackageSettings


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


def places(root):
    return root / "artifacts" / "checkpoints" / "time_split" / "hstu", root / "artifacts" / "sequences" / "time_split"


def best_ten(model, max_len, targets, t):
    """Items of target t by a full sort of its scores, what it had left out but the target itself."""
    one = targets.take(np.array([t]))
    scores = ModelScorer(model, max_len)(one)[0].double().numpy()
    seen = set(targets.known_items[targets.firsts[t] : targets.positions[t]].tolist()) - {int(targets.items[t])}
    return sorted((row for row in range(len(scores)) if row not in seen), key=lambda row: (-scores[row], row))[:10]


def ndcg_of_user(best, targets):
    """Mean over each user's targets, then a list over users."""
    by_user = {}
    for t, items in enumerate(best):
        place = items.index(targets.items[t]) if targets.items[t] in items else None
        by_user.setdefault(targets.users[t], []).append(0.0 if place is None else 1 / np.log2(place + 2))
    return np.array([np.mean(values) for values in by_user.values()])


def test_the_cost_is_what_ranking_each_target_by_hand_gives(root):
    checkpoint, sequences = places(root)
    model, facts = load_model(checkpoint)
    other, _ = load_model(checkpoint)
    with torch.no_grad():
        table = other.embedding.item.weight
        table.copy_(dequantize(quantize(table, 4, outlier_share=0.0), table.shape[1]))
    data, max_len = load_sequences(sequences), facts["settings"]["max_len"]

    cost = measure_cost({"float32": model, "quantized": other}, data, max_len)

    targets = find_targets(data, "valid")
    whole, small = ([best_ten(m, max_len, targets, t) for t in range(len(targets))] for m in (model, other))
    difference = (ndcg_of_user(small, targets) - ndcg_of_user(whole, targets)).mean()
    known = targets.items >= 0
    overlap = np.mean([len(set(a) & set(b)) / len(a) for a, b, k in zip(whole, small, known, strict=True) if k])
    assert cost["ndcg_difference"] == pytest.approx(difference, abs=1e-6)
    assert cost["low"] <= cost["ndcg_difference"] <= cost["high"]
    assert cost["top_10_overlap"] == pytest.approx(overlap, abs=1e-4) != 1
    assert (cost["num_targets"], cost["num_users"]) == (len(targets), len(set(targets.users)))
    assert cost["part"] == "valid"


def test_the_packaged_checkpoint_differs_in_its_table_only_and_says_what_it_saves(root, tmp_path):
    checkpoint, sequences = places(root)
    weights = load_file(checkpoint / "weights.safetensors")
    facts = write_quantized(checkpoint, tmp_path / "small", "int4", sequences)

    before, after = (load_model(folder)[0].state_dict() for folder in (checkpoint, tmp_path / "small"))
    different = [name for name in before if not torch.equal(before[name], after[name])]
    assert different == [ITEM_TABLE]
    assert (facts["values"], facts["float32_bytes"]) == ("int4", weights[ITEM_TABLE].nbytes)
    packed = load_file(tmp_path / "small" / "weights.safetensors")
    assert facts["bytes"] == sum(tensor.nbytes for name, tensor in packed.items() if name.startswith(ITEM_TABLE))
    others = {file.name for file in checkpoint.iterdir()} - {"weights.safetensors"}
    assert all((tmp_path / "small" / name).read_bytes() == (checkpoint / name).read_bytes() for name in others)


def test_after_a_refit_the_cost_is_that_of_the_weights_which_have_not_seen_validation(root, tmp_path):
    checkpoint, sequences = places(root)
    alone = write_quantized(checkpoint, tmp_path / "alone", "int4", sequences)["cost"]
    weights = load_file(checkpoint / "weights.safetensors")
    (checkpoint / "weights.safetensors").rename(checkpoint / "selected.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, checkpoint / "weights.safetensors")
    write_json(checkpoint / "checkpoint.json", read_json(checkpoint / "checkpoint.json") | {"refit_epochs": [1]})

    assert write_quantized(checkpoint, tmp_path / "refit", "int4", sequences)["cost"] == alone
    assert not (tmp_path / "refit" / "selected.safetensors").exists()
    assert not load_model(tmp_path / "refit")[0].embedding.item.weight.any()


def test_without_its_own_sequences_nothing_is_packaged(root, tmp_path):
    checkpoint, sequences = places(root)
    facts = read_json(checkpoint / "checkpoint.json")
    write_json(checkpoint / "checkpoint.json", facts | {"split": facts["split"] | {"num_users": 1}})
    with pytest.raises(StateError, match="was trained on other data"):
        write_quantized(checkpoint, tmp_path / "small", "int8", sequences)
    assert not (tmp_path / "small").exists()


def test_the_cost_travels_in_package_json_and_in_the_bento(root, tmp_path):
    write_json(root / "reports" / "gate.json", {"verdict": "accepted", "model": "hstu", "protocol": "time_split"})
    ndcg = {"value": 0.1, "low": 0.0, "high": 0.2}
    write_json(root / "reports" / "metrics.json", {"time_split": {"hstu": {"ndcg@10": ndcg}}})
    settings = PackageSettings(model="hstu", name="hstuflow", item_table="int8")

    packaged = packaging.package(settings, artifacts=root / "artifacts", reports=root / "reports")

    assert packaged["item_table"]["values"] == "int8"
    assert packaged["item_table"]["cost"]["part"] == "valid"
    assert packaged == json.loads((root / "artifacts" / "package.json").read_text())
    with tarfile.open(root / "artifacts" / "hstuflow.bento") as archive:
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 - our own; Python 3.11.2 knows no filter
    (entry,) = (tmp_path / "unpacked" / "models").rglob("model.yaml")
    assert "top_10_overlap" in entry.read_text()
    (weights,) = entry.parent.rglob("weights.safetensors")
    assert f"{ITEM_TABLE}.codes" in load_file(weights)
