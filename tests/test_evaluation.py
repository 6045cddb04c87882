"""The step: the files of a cell, what was fitted on what, and what it refuses to judge."""

import filecmp
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_evaluations import evaluate_settings, make_root, run_evaluation
from made_logs import DAY, walking_log

from components.baselines import BASELINES
from components.dataset import load_sequences
from components.errors import SettingsError, StateError
from components.evaluation import evaluate
from components.metrics import metric_names
from components.ranking.judging import Cell, load_scorer
from components.ranking.targets import find_targets
from components.recommender import Recommender, resolve_request_time

FILES = ("metrics.json", "gate.json", "facts.json", "per_user.parquet", "examples.json")
SUFFIXES = ("", ".unfiltered", ".unknown_time", ".untied", ".valid")
CONDITIONS = {f"time_split{suffix}" for suffix in (*SUFFIXES, ".first", ".last")}
MODELS = {"hstu", *BASELINES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(
        tmp_path_factory.mktemp("root"), protocols=("time_split", "leave_one_out"), titles={1: "<script>", 2: "Zwei"}
    )


@pytest.fixture(scope="module")
def cell(root):
    return run_evaluation(root)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_condition_has_every_metric_of_model_and_baselines_with_its_interval(cell):
    metrics = read(cell, "metrics")
    assert set(metrics) == CONDITIONS
    for models in metrics.values():
        assert set(models) == MODELS
        for values in models.values():
            assert set(values) == set(metric_names((5, 10)))
            assert all(0 <= v["low"] <= v["value"] <= v["high"] <= 1 for v in values.values())


def test_leave_one_out_has_one_target_a_user_and_so_no_first_and_last(root):
    out = run_evaluation(root, protocol="leave_one_out")
    assert set(read(out, "metrics")) == {f"leave_one_out{suffix}" for suffix in SUFFIXES}
    facts = read(out, "facts")
    assert facts["test"]["targets"] == facts["test"]["users"] == 30


def test_values_are_the_means_over_the_users_of_per_user_parquet(cell):
    table = pq.read_table(cell / "per_user.parquet").to_pandas()
    means = table.groupby(["condition", "model"])[metric_names((5, 10))].mean()
    for condition, models in read(cell, "metrics").items():
        for model, values in models.items():
            for metric, found in values.items():
                assert found["value"] == pytest.approx(means.loc[(condition, model), metric], abs=1e-6)


def test_evaluating_again_gives_the_same_bytes(root, cell, tmp_path):
    artifacts = root / "artifacts"
    evaluate(
        evaluate_settings(block_megabytes=1),
        "hstu",
        "time_split",
        sequences=artifacts / "sequences" / "time_split",
        checkpoint=artifacts / "checkpoints" / "time_split" / "hstu",
        out=tmp_path / "again",
    )
    assert filecmp.cmpfiles(cell, tmp_path / "again", FILES, shallow=False)[0] == list(FILES)
    assert sorted(path.name for path in cell.iterdir()) == sorted(FILES)


def test_the_gate_looks_at_the_validation_part(cell):
    gate, valid = read(cell, "gate"), read(cell, "metrics")["time_split.valid"]
    values = {model: metrics["ndcg@10"]["value"] for model, metrics in valid.items()}
    assert gate["baseline"] == max(BASELINES, key=values.__getitem__)
    assert gate["difference"] == pytest.approx(values["hstu"] - values[gate["baseline"]], abs=2e-6)
    table = pq.read_table(cell / "per_user.parquet").to_pandas()
    users = table[(table.condition == "time_split.valid") & (table.model == "hstu")].user_id
    assert gate["num_users"] == len(users) == users.nunique()


def test_facts_count_what_was_judged_and_what_was_not(root, cell):
    sequences, facts = load_sequences(root / "artifacts" / "sequences" / "time_split"), read(cell, "facts")
    assert facts["test"]["events"] == int((sequences.ends - sequences.test_starts).sum())
    assert facts["test"]["targets"] <= facts["test"]["events"]
    assert facts["test"]["cold_share"] == pytest.approx(3 / facts["test"]["targets"], abs=1e-6)
    assert facts["recent_days"] in (3, 10)
    assert facts["unknown_time"] == {"targets": facts["test"]["targets"], "of": facts["test"]["targets"]}
    assert set(facts["slices"]) == {"history", "item_age", "item_popularity", "activity"}
    for slices in facts["slices"].values():
        assert sum(one["targets"] for one in slices) == facts["test"]["targets"]


def test_facts_say_how_the_baselines_were_chosen_and_what_is_recommended_beside_the_truth(cell):
    facts = read(cell, "facts")
    assert list(facts["baselines"]) == sorted(BASELINES)
    assert facts["baselines"]["popularity_recent"] == {"days": facts["recent_days"]}
    assert set(facts["beyond"]) == MODELS
    for found in facts["beyond"].values():
        assert set(found) == {f"{name}@10" for name in ("coverage", "gini", "novelty", "diversity", "ndcg_debiased")}
        assert found["diversity@10"] is None  # the log has no genres
    # Its filter differs by user, its lists hardly: popularity lists the fewest items and the most frequent.
    assert facts["beyond"]["popularity"]["coverage@10"] <= facts["beyond"]["hstu"]["coverage@10"]
    assert facts["beyond"]["popularity"]["novelty@10"] == min(one["novelty@10"] for one in facts["beyond"].values())


def test_alarms_are_written_and_logged_as_warnings(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("components.ranking.facts.find_alarms", lambda *_, **facts: [f"{facts['model']} looks odd"])
    with caplog.at_level("WARNING", logger="hstuflow"):
        out = run_evaluation(root)
    assert read(out, "facts")["alarms"] == ["hstu looks odd"]
    assert [record.message for record in caplog.records] == ["alarm: hstu looks odd"]
    monkeypatch.undo()
    run_evaluation(root)


def test_an_unknown_time_gives_what_the_recommender_scores_without_one(root):
    checkpoint = root / "artifacts" / "checkpoints" / "time_split" / "hstu"
    sequences = load_sequences(root / "artifacts" / "sequences" / "time_split")
    scorer, _ = load_scorer(Cell(evaluate_settings(), "hstu", "time_split", sequences), checkpoint, "test")
    targets = find_targets(sequences, "test")
    targets = targets.take(targets.items >= 0).forget_request_times()
    recommender, scores = Recommender.load(checkpoint), scorer(targets)
    for row, first, position in zip(scores, targets.firsts, targets.positions, strict=True):
        items, times = targets.known_items[first:position], targets.known_timestamps[first:position]
        expected = recommender.scores(items, times, resolve_request_time(times.tolist(), None))
        np.testing.assert_allclose(row.numpy(), expected, rtol=0, atol=1e-5)


def test_the_printed_tables_fit_into_100_columns(root, capsys):
    run_evaluation(root, cutoffs=(10, 50, 200))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("popularity_recent") for line in lines) == 3
    assert max(len(line.rstrip()) for line in lines) <= 100
    run_evaluation(root)


def test_the_recent_window_is_the_best_one_on_validation(root, cell, tmp_path):
    artifacts = root / "artifacts"
    values = {}
    for days in (3, 10):
        evaluate(
            evaluate_settings(recent_days=(days,)),
            "hstu",
            "time_split",
            sequences=artifacts / "sequences" / "time_split",
            checkpoint=artifacts / "checkpoints" / "time_split" / "hstu",
            out=tmp_path / str(days),
        )
        valid = read(tmp_path / str(days), "metrics")["time_split.valid"]
        values[days] = valid["popularity_recent"]["ndcg@10"]["value"]
    assert values[3] != values[10]
    assert read(cell, "facts")["recent_days"] == max(values, key=values.__getitem__)


def test_popular_only_after_the_test_begins_does_not_help_popularity(tmp_path):
    """Everybody takes item 1 in the test part; a baseline that had seen it would be right every time."""
    log = [event for event in walking_log() if event[1] != 1 or event[2] < 3 * DAY]
    log += [(90, 1, 0)] + [(user, 1, 100 * DAY) for user in range(25) for _ in range(3)]
    values = read(run_evaluation(make_root(tmp_path, events=log)), "metrics")["time_split.unfiltered"]
    assert values["popularity"]["hr@5"]["value"] == 0
    assert values["popularity_recent"]["hr@5"]["value"] == pytest.approx(5 / 25)  # a month of silence: chance level


def test_examples_are_what_the_recommender_answers_and_hold_no_history(root, cell):
    examples = read(cell, "examples")
    assert len(examples) == 3
    recommender = Recommender.load(root / "artifacts" / "checkpoints" / "time_split" / "hstu")
    titles = set(recommender.catalogue.titles)
    for example in examples:
        assert 1 <= len(example["history"]) <= 5
        assert len(example["recommended"]) == 5
        assert {item["title"] for item in example["recommended"]} <= titles - set(example["history"])
        scores = [item["score"] for item in example["recommended"]]
        assert scores == sorted(scores, reverse=True)
        assert example["actual"] in titles
    users = [example["user"] for example in examples]
    assert len(set(users)) == 3
    sequences = load_sequences(root / "artifacts" / "sequences" / "time_split")
    number = int(np.flatnonzero(sequences.user_ids == users[0])[0])
    events = slice(sequences.starts[number], sequences.ends[number])
    known = sequences.items[events][sequences.items[events] >= 0]
    assert example_history(recommender, known) == (examples[0]["history"], examples[0]["actual"])


def example_history(recommender, known):
    titles = [recommender.catalogue.titles[item] for item in known]
    return titles[-6:-1], titles[-1]


def test_no_examples_can_be_asked_for(root):
    assert read(run_evaluation(root, num_examples=0), "examples") == []
    run_evaluation(root)


def test_a_checkpoint_of_other_data_is_refused(root, tmp_path):
    other = make_root(tmp_path, events=walking_log(seed=5))
    with pytest.raises(StateError, match=r"trained on other data.*expected hstu, data"):
        evaluate(
            evaluate_settings(),
            "hstu",
            "time_split",
            sequences=root / "artifacts" / "sequences" / "time_split",
            checkpoint=other / "artifacts" / "checkpoints" / "time_split" / "hstu",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_headline_metric_without_its_cutoff_is_refused(root):
    with pytest.raises(SettingsError, match=r"headline_metric.*ndcg@20.*cutoffs"):
        run_evaluation(root, headline_metric="ndcg@20")


def test_a_part_without_histories_cannot_be_judged(tmp_path):
    early = [event for event in walking_log(num_users=10) if event[2] < 40 * DAY]
    strangers = [(100 + user, 1 + user % 5, 60 * DAY + user) for user in range(40)]
    root = make_root(tmp_path, events=[*early, *strangers])
    with pytest.raises(StateError, match=r"no event of the (valid|test) part has a history"):
        run_evaluation(root)
