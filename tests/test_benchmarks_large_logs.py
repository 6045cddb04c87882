"""The benchmarks of large logs and of the synthetic stream: what they measure is what they say."""

import csv

import numpy as np
import pytest
import torch

from benchmarks import bench_ingestion, bench_stream
from components.dataset import find_training_windows
from components.settings import SyntheticSettings

SMALL = SyntheticSettings(users=200, items=100, categories=10, months=1)
TINY = ["--users", "60", "--items", "40", "--categories", "4", "--dim", "8", "--batch", "8", "--warmup", "2"]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Knowing(torch.nn.Module):
    """Scores every item by the category of the row's own item."""

    def forward(self, batch):
        return torch.nn.functional.one_hot(batch.items % SMALL.categories, SMALL.categories).float()

    def item_vectors(self):
        return torch.nn.functional.one_hot(torch.arange(SMALL.items) % SMALL.categories, SMALL.categories).float()


# ---- the stream


def test_the_last_tenth_of_the_records_is_held_out_whole_and_the_others_are_trained_on_in_order():
    stream = bench_stream.make_stream(SMALL)
    trained = find_training_windows(stream.log, bench_stream.MAX_LEN)
    assert (len(trained), len(stream.held_out)) == (180, 20)
    assert (np.diff(trained[:, 0]) > 0).all()
    assert trained.max() < stream.held_out.min()
    assert stream.held_out[-1, 1] == len(stream.log.items) - 1
    assert np.array_equal(stream.held_out[:, 0], stream.log.starts[180:])


def test_a_record_holds_items_that_are_released_when_its_turn_comes():
    stream = bench_stream.make_stream(SMALL)
    first = stream.log.items[: stream.log.ends[0]]
    assert first.max() < 40
    assert stream.log.items.max() > 90


def test_the_ceiling_is_what_the_true_probabilities_reach():
    """One category of m items and k places: k / m; and never below what a model reaches that repeats a category."""
    alone = SyntheticSettings(users=40, items=100, categories=1, months=1)
    ten, fifty = bench_stream.make_stream(alone).ceiling
    released = 40 + np.arange(36, 40) / 40 * 60
    assert ten == pytest.approx(np.mean(10 / np.floor(released)))
    assert fifty == pytest.approx(np.mean(50 / np.floor(released)))
    stream = bench_stream.make_stream(SMALL)
    reached = bench_stream.measure(Knowing(), stream)
    assert 0.3 < reached["hr@10"] < stream.ceiling[0]


def test_last_means_the_last_event_of_each_held_out_record():
    stream = bench_stream.make_stream(SMALL)
    rows = stream.held_out[:, 1]
    is_same = stream.log.items[rows] % 10 == stream.log.items[rows - 1] % 10
    reached = bench_stream.measure(Knowing(), stream)
    # ten items share the highest score, ninety the next: 10 places are all of the first
    assert reached["last.hr@10"] == pytest.approx(is_same.mean())


def test_every_rate_is_tried_with_the_first_seed_and_the_lowest_loss_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "stream.csv"
    monkeypatch.setattr(bench_stream, "run_once", made_run)
    command = [*TINY, "--rates", "0.1", "0.2", "0.3", "--seeds", "5", "6", "--results", str(path)]
    assert bench_stream.main(command) == 0
    rows = [(row["model"], row["rate"], row["seed"], row["kept"]) for row in rows_of(path)]
    assert rows[:2] == [("ceiling", "", "5", ""), ("ceiling", "", "6", "")]
    for number, model in enumerate(bench_stream.MODELS):
        assert rows[2 + 4 * number : 6 + 4 * number] == [
            (model, "0.1", "5", ""),
            (model, "0.2", "5", "yes"),
            (model, "0.3", "5", ""),
            (model, "0.2", "6", "yes"),
        ]


def made_run(args, model, rate, seed, stream):
    row = {"model": model, "rate": rate, "seed": seed, "kept": "", "loss": abs(rate - 0.2)}
    return row | dict.fromkeys(bench_stream.COLUMNS[5:], 0.5)


@pytest.mark.parametrize("model", bench_stream.MODELS)
def test_a_model_learns_from_the_stream(model):
    """The loss begins at 7.4, because random vectors are compared at a temperature of 0.05."""
    args = bench_stream.parse([*TINY, "--users", "300"])
    settings = bench_stream.stream_settings(args, seed=1)
    row = bench_stream.run_once(args, model, 0.01, 1, bench_stream.make_stream(settings))
    assert row["loss"] < 6
    assert row["last.hr@50"] == 1  # of 40 items


# ---- ingestion


def test_ingestion_is_measured_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "ingestion.csv"
    command = ["--rows", "1000", "--source", "csv", "--text-ids", "--steps", "ingest", "--results", str(path)]
    assert bench_ingestion.main(command) == 0
    (row,) = rows_of(path)
    assert (row["rows"], row["step"]) == ("1000", "ingest")
    assert 40 < float(row["peak_mb"]) < 1000
    assert float(row["cpu_s"]) > 0


def test_a_step_that_fails_says_why_and_those_before_it_are_kept(tmp_path, capsys):
    path = tmp_path / "ingestion.csv"
    command = ["--rows", "1000", "--steps", "ingest", "sequences", "--results", str(path)]
    assert bench_ingestion.main(command) == 1
    assert [row["step"] for row in rows_of(path)] == ["ingest"]
    assert "quarantine" in capsys.readouterr().out


def test_the_peak_is_the_steps_own_and_not_that_of_the_process_that_started_it(tmp_path):
    """This process has torch in it; help has not."""
    row = bench_ingestion.run_step(tmp_path, ["--help"])
    assert row["peak_mb"] < 150
