"""The benchmark of inserted items: every kind of vector on the same held-out targets, and the time of insertion."""

import numpy as np
from made_items import KEYS, load_with_map

from benchmarks import bench_new_items
from components.dataset import Sequences


def made_sequences(users, length=6):
    starts = np.arange(users) * length
    items, times = np.arange(length * users, dtype=np.int32) * 7 % len(KEYS), np.arange(length * users)
    split = {"num_items": len(KEYS)}
    return Sequences(items, times, np.arange(users), starts, starts + 4, starts + 5, starts + length, split)


def test_every_kind_of_vector_is_judged_on_the_same_targets(tmp_path):
    recommender, _ = load_with_map(tmp_path / "checkpoint")
    found = list(bench_new_items.judge(recommender, made_sequences(users=40), 30))
    assert [row["case"] for row in found] == [
        *("true", "mapped", "mapped, length 1", "mapped, spread 1", "mean", "random")
    ]
    assert {row["targets"] for row in found} == {30}  # each of the 30 targets is held out once
    assert all(0 <= row["ndcg@10"] <= row["hr@10"] <= 1 for row in found)
    assert found[0]["hr@10_all"] == found[0]["hr@10"]  # as they are, every target is ranked the same in every fold
    assert abs(found[0]["exposure"] - 1 / bench_new_items.FOLDS) < 1e-9  # as they are, all places are shown once


def test_insertion_is_timed_at_a_size():
    row = bench_new_items.time_insertion(50)
    assert row["num_items"] == 50
    assert row["milliseconds"] > 0
