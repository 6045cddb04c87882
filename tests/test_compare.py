"""Two models on the same held-out events: the numbers, who is refused, what the answer says, and the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_comparisons import checkpoint, compare_in, reseed
from made_evaluations import make_root, run_evaluation
from made_logs import DAY, walking_log

from components.dataset import load_sequences
from components.errors import InputError
from components.files import read_json, write_json
from components.ranking.targets import find_targets
from components.recommender import Recommender

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(
        tmp_path_factory.mktemp("root"), models=("hstu", "sasrec"), protocols=("time_split", "leave_one_out")
    )


def test_a_model_compared_with_itself_differs_by_exactly_0_and_p_is_1(root, tmp_path, capsys):
    copied = shutil.copytree(checkpoint(root), tmp_path / "copy")
    answer = compare_in(root, checkpoint(root), copied)
    assert {(row.paired.difference, row.paired.low, row.paired.high, row.paired.p_value) for row in answer.rows} == {
        (0.0, 0.0, 0.0, 1.0)
    }
    assert "A and B cannot be told apart" in capsys.readouterr().out


def test_both_sides_get_the_numbers_that_evaluate_gives_them_under_every_condition_of_the_test_part(root):
    metrics = read_json(run_evaluation(root) / "metrics.json")
    answer = compare_in(root, checkpoint(root), "popularity")
    found = {(row.condition, row.metric): (row.a, row.b) for row in answer.rows}
    assert found == {
        (condition, metric): (models["hstu"][metric]["value"], models["popularity"][metric]["value"])
        for condition, models in metrics.items()
        for metric in ("ndcg@10", "hr@10")
        if condition != "time_split.valid"
    }
    assert (answer.rows[0].condition, answer.rows[0].metric) == ("time_split", "ndcg@10")


def test_the_order_of_the_users_changes_nothing(root, tmp_path):
    order = np.random.default_rng(0).permutation(30)
    events = [(int(order[user]), item, time) for user, item, time in walking_log()]
    orders = [make_root(tmp_path / "there", events=walking_log()), make_root(tmp_path / "back", events=events)]
    models = checkpoint(orders[0]), reseed(checkpoint(orders[0]), tmp_path / "other", 5)
    there, back = (compare_in(folder, *models).rows for folder in orders)
    assert there == back


def test_the_seeds_of_a_side_are_averaged_user_by_user_and_their_spread_is_told(root, tmp_path, capsys):
    seeds = [reseed(checkpoint(root), tmp_path / f"seed-{seed}", seed) for seed in (1, 2, 3)]
    single = [compare_in(root, seed, "popularity").rows[0] for seed in seeds]
    capsys.readouterr()
    answer = compare_in(root, ",".join(map(str, seeds)), "popularity", out=tmp_path / "answer.json")
    assert answer.rows[0].a == pytest.approx(np.mean([row.a for row in single]), abs=1e-6)
    assert answer.rows[0].paired.difference == pytest.approx(
        np.mean([row.paired.difference for row in single]), abs=1e-6
    )
    assert answer.sides["A"].values == tuple(row.a for row in single)
    assert answer.sides["A"].num_seeds == 3
    printed = capsys.readouterr().out
    assert f"standard deviation {np.std([row.a for row in single], ddof=1):.4f}" in printed
    assert "not the methods" not in printed
    written = read_json(tmp_path / "answer.json")
    assert written["rows"][0]["difference"] == answer.rows[0].paired.difference
    assert (written["sides"]["A"]["num_seeds"], written["sides"]["B"]["num_seeds"]) == (3, 0)


def test_a_checkpoint_trained_past_t2_is_refused_by_the_command(root, tmp_path):
    later = make_root(tmp_path, events=[*walking_log(), *((user, 1 + user % 5, 200 * DAY) for user in range(200))])
    with pytest.raises(InputError, match="has seen events that are held out"):
        compare_in(root, checkpoint(later), "popularity")
    with pytest.raises(InputError, match="trained on leave_one_out"):
        compare_in(root, checkpoint(root), checkpoint(root, protocol="leave_one_out"))
    assert compare_in(root, checkpoint(root, protocol="leave_one_out"), "popularity", "leave_one_out").rows


def test_last_weeks_model_is_judged_through_item_ids_and_misses_what_it_does_not_know(tmp_path, capsys):
    log = [(user, item + (100 if time > 36 * DAY and item % 5 == 0 else 0), time) for user, item, time in walking_log()]
    last_week = make_root(tmp_path / "then", events=[event for event in log if event[2] < 36 * DAY])
    today = make_root(tmp_path / "now", events=log)
    answer = compare_in(today, checkpoint(last_week), checkpoint(today))
    sequences = load_sequences(today / "artifacts" / "sequences" / "time_split")
    known = {int(key) for key in Recommender.load(checkpoint(last_week)).catalogue.rows}
    here = [int(key) for key in Recommender.load(checkpoint(today)).catalogue.rows]
    items = find_targets(sequences, "test").items
    share = np.mean([item >= 0 and here[item] not in known for item in items])
    assert 0 < share < 1
    assert answer.sides["A"].models[0].unknown_share == pytest.approx(share)
    assert answer.sides["B"].models[0].unknown_share == 0
    printed = capsys.readouterr().out
    assert "judged through item ids" in printed
    assert f"{share:.1%} of the targets are items that it does not know: misses" in printed


def test_ids_that_name_other_titles_are_pointed_out(tmp_path, capsys):
    names = {item: f"film {item}" for item in range(1, 26)}
    then = make_root(tmp_path / "then", events=walking_log(num_items=20), titles=names)
    now = make_root(tmp_path / "now", titles={item: f"book {item}" for item in names})
    facts = read_json(checkpoint(then) / "checkpoint.json")
    times = {"train_end": 0, "valid_end": 0}
    write_json(checkpoint(then) / "checkpoint.json", facts | {"split": facts["split"] | times})
    compare_in(now, checkpoint(then), checkpoint(now))
    assert "warning: only 0 of these have the same title" in capsys.readouterr().out


# The command, with the real git and dvc


@pytest.fixture(scope="module")
def repository(root, tmp_path_factory):
    """A git repository whose only commit has root's hstu checkpoint, by DVC; the working tree then has another one."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(root / "artifacts" / "sequences", folder / "artifacts" / "sequences")
    shutil.copytree(checkpoint(root), checkpoint(folder))
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    identity = ("-c", "user.name=made", "-c", "user.email=made@example.org")
    for command in (
        ("git", "init", "--quiet"),
        (sys.executable, "-m", "dvc", "init", "--quiet"),
        (sys.executable, "-m", "dvc", "add", "--quiet", str(checkpoint(folder).relative_to(folder))),
        ("git", "add", "--all"),
        ("git", *identity, "commit", "--quiet", "--message", "made"),
    ):
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(checkpoint(folder))
    reseed(checkpoint(root), checkpoint(folder), 9)
    return folder


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run_compare(folder, *arguments):
    return run(folder, sys.executable, "-P", "-m", "components", "compare", *arguments)


@pytest.mark.slow
def test_the_command_compares_a_revision_with_the_working_tree_and_says_what_is_missing(root, repository):
    here = str(checkpoint(Path()))
    done = run_compare(repository, "HEAD", here, "--json", "answer.json")
    assert done.returncode == 0, done.stderr
    assert "HEAD: hstu, seed 1" in done.stdout
    assert f"{here}: hstu, seed 9" in done.stdout
    assert "these checkpoints, not the methods" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next  dvc exp run")
    answer = json.loads((repository / "answer.json").read_text())
    # The commit's checkpoint is root's: compared with it, not with what lies in the working tree.
    again = compare_in(root, checkpoint(root), checkpoint(root, "sasrec"))
    assert answer["rows"][0]["a"] == again.rows[0].a != answer["rows"][0]["b"]

    shutil.rmtree(repository / ".dvc" / "cache")
    without = run_compare(repository, "HEAD", here)
    assert without.returncode == 2
    [error] = [line for line in without.stderr.splitlines() if line.startswith("error: ")]
    assert error == without.stderr.splitlines()[-1]
    assert "HEAD: neither DVC's cache nor a remote holds artifacts/checkpoints/time_split/hstu" in error
    assert "dvc pull" in error
    assert "dvc repro" in error
