"""The benchmark of approximate search: made items and a model's own, recall as counted."""

import csv

import numpy as np
from made_checkpoints import write_checkpoint

from benchmarks import bench_search
from components.dataset import Sequences


def made_sequences(users):
    starts = np.arange(users) * 4
    items, times = np.arange(4 * users, dtype=np.int32) % 12, np.arange(4 * users)
    return Sequences(items, times, np.arange(users), starts, starts + 2, starts + 3, starts + 4, {"num_items": 12})


def test_every_kind_is_measured_on_every_set_of_vectors(tmp_path, monkeypatch):
    checkpoint, results = write_checkpoint(tmp_path / "checkpoint", list("abcdefghijkl")), tmp_path / "search.csv"
    monkeypatch.setattr(bench_search, "QUERIES", 3)
    monkeypatch.setattr(bench_search, "DIM", 8)
    monkeypatch.setattr(bench_search, "load_sequences", lambda _: made_sequences(users=5))
    options = ["--checkpoint", str(checkpoint), "--sequences", "made", "--results", str(results)]

    assert bench_search.main(["--items", "2000", "--kinds", "PQ4x4fs", *options]) == 0

    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["vectors"], row["queries"], row["kind"]) for row in rows] == [
        ("random", "random", "exact"),
        ("random", "random", "PQ4x4fs"),
        ("bundles", "near items", "exact"),
        ("bundles", "near items", "PQ4x4fs"),
        ("trained", "users", "exact"),
        ("trained", "made histories", "exact"),
        ("trained", "users", "PQ4x4fs"),
        ("trained", "made histories", "PQ4x4fs"),
    ]
    assert all(0.9 <= float(row["recall"]) <= 1 for row in rows)
