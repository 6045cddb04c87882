"""What the service answers is what the model says: same order, known items only, the request's time respected."""

import json

import numpy as np
import pytest
import torch
from made_checkpoints import write_checkpoint

from components.checkpoint import load_model
from components.errors import InputError, StateError
from components.model import build_model
from components.recommender import Recommender

HISTORY = [("a", 100), ("b", 160), ("c", 90), ("d", 500)]


@pytest.fixture
def checkpoint(tmp_path):
    """The items a ... l; c and a were popular lately."""
    return write_checkpoint(tmp_path / "checkpoint", list("abcdefghijkl"))


@pytest.fixture
def recommender(checkpoint):
    return Recommender.load(checkpoint)


def item_ids(answer):
    return [item.item_id for item in answer.items]


def offline_scores(checkpoint, rows, times, request_time):
    """Score the catalogue with nothing of the recommender but the weights."""
    model, facts = load_model(checkpoint)
    items = torch.tensor(rows[-facts["settings"]["max_len"] :])
    when = torch.tensor(times[-facts["settings"]["max_len"] :])
    after = torch.cat([when[1:], torch.tensor([request_time])])
    batch = type("Batch", (), {})()
    batch.items, batch.timestamps, batch.next_timestamps = items, when, after
    batch.offsets = torch.tensor([0, len(items)])
    with torch.no_grad():
        return (model(batch)[-1:] @ model.item_vectors().T)[0].numpy()


def test_served_top_k_equals_offline_top_k(checkpoint, recommender):
    scores = offline_scores(checkpoint, [2, 0, 1, 3], [90, 100, 160, 500], 700)
    unseen = [row for row in np.argsort(-scores, kind="stable") if row > 3]

    answer = recommender.recommend(HISTORY, 5, 700)

    assert item_ids(answer) == ["abcdefghijkl"[row] for row in unseen[:5]]
    np.testing.assert_allclose([item.score for item in answer.items], scores[unseen[:5]], atol=1e-6)
    assert answer.source == "model"


def test_only_the_last_max_len_known_events_count(checkpoint, recommender):
    long = [("abcdefgh"[i % 8], 10 * i) for i in range(20)] + [("nowhere", 195)]
    scores = offline_scores(checkpoint, [i % 8 for i in range(20)], [10 * i for i in range(20)], 300)

    answer = recommender.recommend(long, 12, 300, exclude_seen=False)

    assert item_ids(answer) == ["abcdefghijkl"[row] for row in np.argsort(-scores, kind="stable")]


def test_order_of_events_in_the_request_does_not_matter_but_ties_keep_it(recommender):
    assert recommender.recommend(HISTORY[::-1], 5, 700) == recommender.recommend(HISTORY, 5, 700)
    tied, swapped = [("a", 5), ("b", 5)], [("b", 5), ("a", 5)]
    assert recommender.recommend(tied, 5) != recommender.recommend(swapped, 5)


def test_request_time_changes_the_scores_and_defaults_to_the_last_event(recommender):
    now, later = (recommender.recommend(HISTORY, 5, when) for when in (500, 500 + 86_400 * 30))
    assert [item.score for item in now.items] != [item.score for item in later.items]
    assert recommender.recommend(HISTORY, 5) == now


def test_request_time_before_the_last_event_is_refused(recommender):
    with pytest.raises(InputError, match="observed 499, expected 500 or later"):
        recommender.recommend(HISTORY, 5, 499)


def test_unknown_items_are_skipped_and_reported_once(recommender):
    answer = recommender.recommend([*HISTORY, ("zz", 100), ("zz", 130)], 5, 700, exclude=["yy", "e"])
    assert answer.unknown_items == ("zz", "yy")
    assert answer.items == recommender.recommend(HISTORY, 5, 700, exclude=["e"]).items


@pytest.mark.parametrize("history", [[], [("zz", 10)]])
def test_without_a_known_event_the_answer_is_what_was_popular(recommender, history):
    answer = recommender.recommend(history, 4, 700, exclude=["b"])
    assert answer.source == "popular"
    assert item_ids(answer) == ["c", "a", "d", "e"]  # popular lately, then by count
    assert {item.score for item in answer.items} == {None}


def test_seen_and_excluded_items_never_come_back(recommender):
    answer = recommender.recommend(HISTORY, 100, 700, exclude=["e", "f"])
    assert sorted(item_ids(answer)) == list("ghijkl")  # fewer than k are left
    assert len(recommender.recommend(HISTORY, 100, 700, exclude_seen=False).items) == 12
    assert recommender.recommend(HISTORY, 3, 700, exclude=list("efghijkl")).items == ()


def test_items_seen_before_the_last_max_len_are_excluded_too(recommender):
    long = [("a", 1), *[("b", 10 + i) for i in range(10)]]
    assert "a" not in item_ids(recommender.recommend(long, 12))


def test_k_below_one_is_refused(recommender):
    with pytest.raises(InputError, match="k is out of range"):
        recommender.recommend(HISTORY, 0)


def test_titles_and_ids_are_the_logs_own(tmp_path):
    folder = write_checkpoint(
        tmp_path / "ints", ["10", "7", "2000000000000"], key_type="int", titles=["Ten", "Seven", "Big"]
    )
    answer = Recommender.load(folder).recommend([(7, 5), ("10", 6), ("07", 7)], 3, exclude_seen=False)
    assert {(item.item_id, item.title) for item in answer.items} == {(10, "Ten"), (7, "Seven"), (2000000000000, "Big")}
    assert answer.unknown_items == ("07",)  # an id is its text


def test_equal_scores_are_ordered_by_catalogue_row(tmp_path):
    folder = write_checkpoint(tmp_path / "tied", list("abcd"))
    recommender = Recommender.load(folder)
    recommender._items = (torch.ones_like(recommender._items[0]),)
    assert item_ids(recommender.recommend([("a", 1)], 4, exclude_seen=False)) == list("abcd")


def test_model_is_loaded_in_evaluation_mode_with_exactly_its_weights(checkpoint):
    model, facts = load_model(checkpoint)
    assert not model.training
    assert facts["num_items"] == 12
    torch.manual_seed(1)
    fresh = build_model("hstu", type("Settings", (), facts["settings"]), 12)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], 10 * value)


def test_a_model_trained_with_gpu_kernels_loads_on_this_machine(checkpoint):
    change(checkpoint, lambda facts: facts["settings"].update(backend="triton"))
    assert Recommender.load(checkpoint).recommend(HISTORY, 3).items


def change(checkpoint, edit):
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    edit(facts)
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json: is missing.*dvc repro"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json: cannot be read.*dvc repro"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "is not a checkpoint of hstuflow"),
        (lambda folder: change(folder, lambda facts: facts.pop("popular")), "expected the keys popular"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors: is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"no"), "does not fit the model"),
        (lambda folder: change(folder, lambda facts: facts["settings"].update(dim=9)), "does not fit the model"),
        (lambda folder: change(folder, lambda facts: facts["settings"].update(num_blocks=3)), "does not fit the model"),
        (lambda folder: (folder / "catalogue.parquet").unlink(), "catalogue.parquet: is missing"),
        (
            lambda folder: (folder / "catalogue.parquet").write_bytes(b"no"),
            "catalogue.parquet: cannot be read.*dvc repro",
        ),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_named_with_what_to_do(checkpoint, spoil, message):
    spoil(checkpoint)
    with pytest.raises(StateError, match=message):
        Recommender.load(checkpoint)


def test_a_catalogue_of_another_model_is_refused(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other", list("abc"))
    (other / "catalogue.parquet").replace(checkpoint / "catalogue.parquet")
    with pytest.raises(StateError, match=r"3 rows in catalogue.parquet, expected 12"):
        Recommender.load(checkpoint)
