"""The benchmark of approximate search: made items and a model's own, recall as counted."""

import csv

import numpy as np
import pytest
from made_checkpoints import write_checkpoint

from benchmarks import bench_search
from components.dataset import Sequences


def made_sequences(users):
    starts = np.arange(users) * 4
    items, times = np.arange(4 * users, dtype=np.int32) % 12, np.arange(4 * users)
    return Sequences(items, times, np.arange(users), starts, starts + 2, starts + 3, starts + 4, {"num_items": 12})


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_search, "QUERIES", 8)
    monkeypatch.setattr(bench_search, "DIM", 8)
    monkeypatch.setattr(bench_search.recording, "revision", lambda: "abc")


def measure(results, *options):
    assert bench_search.main(["--items", "2000", "--results", str(results), *options]) == 0
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_service_s_answers_are_compared_with_exact_ones_under_each_rule(tmp_path, small):
    rows = measure(tmp_path / "search.csv", "--answers")
    expected = [f"answers, {case}" for case in bench_search.ANSWERS]
    assert [row["kind"] for row in rows] == expected * 2  # random and bundles
    assert all(0.9 <= float(row["recall"]) <= 1 for row in rows)
    assert [float(row["recall"]) for row in rows if row["kind"] == "answers, caps"] == [1, 1]


def test_a_search_that_misses_lowers_the_recall(tmp_path, small, monkeypatch):
    monkeypatch.setattr(bench_search.Recommender, "_cosines", lambda self, query_1D, rows: -rows.astype("f4"))
    found = {row["kind"]: float(row["recall"]) for row in measure(tmp_path / "search.csv", "--answers")}
    assert found["answers, k 10"] < 0.9


def test_a_run_that_was_stopped_goes_on_behind_its_last_row(tmp_path, small, monkeypatch):
    results = tmp_path / "search.csv"
    whole = measure(results, "--answers")
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:8]))  # the header and seven rows
    built = []
    make = bench_search.make_recommender
    monkeypatch.setattr(bench_search, "make_recommender", lambda *a: built.append(1) or make(*a))
    again = measure(results, "--answers")
    assert [(row["vectors"], row["kind"], row["recall"]) for row in again] == [
        (row["vectors"], row["kind"], row["recall"]) for row in whole
    ]
    assert len(built) == 1  # the first set of vectors was whole
    monkeypatch.setattr(bench_search.recording, "revision", lambda: "abd")
    assert len(measure(results, "--answers")) == 2 * len(whole)


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
