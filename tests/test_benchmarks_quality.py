"""The quality benchmark: a row a seed and one over all, from the pipeline's own steps, trained once."""

import csv
from pathlib import Path

import pytest
from made_logs import build, walking_log, write_log

from benchmarks import bench_ablation, bench_quality
from components.errors import SettingsError

PARAMS = Path(__file__).parent.parent / "params.yaml"
TINY = ("max_len=12", "dim=8", "head_dim_qk=8", "head_dim_v=8", "num_blocks=1", "epochs=2", "learning_rate=0.01")


@pytest.fixture
def command(tmp_path):
    """A log whose sequences are there already, as after a run that was stopped."""
    log = build(write_log(tmp_path, walking_log()), "time_split")
    folder = tmp_path / "quality" / "walks"
    folder.mkdir(parents=True)
    log.rename(folder / "sequences")
    changes = [part for change in TINY for part in ("--set", f"train.hstu.{change}")]
    places = ["--params", str(PARAMS), "--folder", str(folder.parent), "--results", str(tmp_path / "quality.csv")]
    return ["--path", "walks.csv", "--name", "tiny", "--protocols", "time_split", *changes, *places]


def read_rows(command):
    with Path(command[-1]).open(newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_get_a_row_each_and_one_of_their_mean(command):
    assert bench_quality.main([*command, "--seeds", "1", "2", "--users-below", "15"]) == 0
    first, second, both = read_rows([*command])
    assert [row["seed"] for row in (first, second, both)] == ["1", "2", "all"]
    for metric in ("ndcg@10", "hr@10", "ndcg@10_unfiltered", "ndcg@10_unknown_time", "ndcg@10_users_below"):
        each = [float(row[metric]) for row in (first, second)]
        assert float(both[metric]) == pytest.approx(sum(each) / 2, rel=1e-3)
    values = [float(row["ndcg@10"]) for row in (first, second)]
    assert (float(both["ndcg_min"]), float(both["ndcg_max"])) == (min(values), max(values))
    assert float(both["ndcg@10_low"]) <= float(both["ndcg@10"]) <= float(both["ndcg@10_high"])
    assert float(first["ndcg@10_users_below"]) != float(first["ndcg@10"])
    assert "walks.csv" in first["command"]
    assert str(Path(command[-1]).parent) not in first["command"]


def test_what_is_trained_is_not_trained_again(command, monkeypatch):
    assert bench_quality.main(command) == 0
    monkeypatch.setattr("components.training.train", lambda *_, **__: pytest.fail("trained again"))
    assert bench_quality.main(command) == 0
    first, again = read_rows(command)
    assert first == again


def test_a_row_names_the_code_that_trained_it_and_not_the_one_that_found_it(command, monkeypatch):
    monkeypatch.setattr(bench_quality.recording, "revision", lambda: "first")
    assert bench_quality.main([*command, "--seeds", "1"]) == 0
    monkeypatch.setattr(bench_quality.recording, "revision", lambda: "second")
    assert bench_quality.main([*command, "--seeds", "1", "2"]) == 0
    assert [row["revision"] for row in read_rows(command)] == ["first", "first", "second", "first second"]


def test_sequences_of_other_settings_are_not_taken(tmp_path):
    log = tmp_path / "walks.csv"
    lines = (f"{user},{item},{10**9 + when}" for user, item, when in walking_log())
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    options = ["--source", "table", "--path", str(log), "--params", str(PARAMS), "--folder", str(tmp_path / "quality")]
    args = bench_quality.parse([*options, "--protocols", "time_split"])
    settings, folder = bench_quality.prepare(args)
    for _ in range(2):
        bench_quality.build_sequences(args, settings, folder)
    args.set = ["sequences.valid_fraction=0.2"]
    with pytest.raises(SettingsError, match="Name another --folder"):
        bench_quality.build_sequences(args, *bench_quality.prepare(args))


def test_another_setting_is_another_training(command):
    assert bench_quality.main(command) == 0
    assert bench_quality.main(["--set", "train.hstu.bias=none", *command]) == 0
    folder = Path(command[command.index("--folder") + 1]) / "walks" / "trained"
    assert len(list(folder.iterdir())) == 2


def test_a_lever_is_compared_with_the_one_it_builds_on(command, monkeypatch):
    places = command[command.index("--params") :]
    tiny = [part for change in TINY for part in ("--set", change)]
    command = ["--path", "walks.csv", "--protocol", "time_split", *tiny, *places]
    assert bench_ablation.main([*command, "--levers", "base", "seed 2", "no bias", "softmax attention"]) == 0
    monkeypatch.setattr("components.training.train", lambda *_, **__: pytest.fail("trained again"))
    assert bench_ablation.main([*command, "--levers", "softmax attention"]) == 0
    base, seed, no_bias, softmax, again = read_rows(command)
    assert (base["against"], seed["against"], softmax["against"]) == ("", "base", "no bias")
    assert softmax["changes"] == "bias=none attention=softmax"
    assert softmax == again | {"command": softmax["command"]}
    for row, other in ((seed, base), (no_bias, base), (softmax, no_bias)):
        expected = float(row["ndcg@10"]) - float(other["ndcg@10"])
        assert float(row["difference"]) == pytest.approx(expected, abs=1e-4)
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert float(seed["ndcg@10"]) != float(base["ndcg@10"])


def test_every_lever_changes_the_base():
    names = [lever.name for lever in bench_ablation.LEVERS]
    assert len(set(names)) == len(names)
    changes = [frozenset(bench_ablation.gather_changes(lever)) for lever in bench_ablation.LEVERS]
    assert len(set(changes)) == len(changes)
    assert not any(change <= set(bench_ablation.BUDGET) for change in changes)
