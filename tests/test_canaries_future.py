"""Canaries on what is later: it moves no score, no choice and no weight of what is earlier."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_canaries import MODELS, NUM_ITEMS, all_scorers, canary_log, run_cell, split_log
from made_logs import DAY

from components.dataset import load_sequences
from components.ranking.targets import find_targets

CONDITION = "time_split.valid"


def rewrite_the_test_part(log, test_start, seed=1):
    """Give every event from T2 on another user and item, and all but T2's own another time: their number fixes T2."""
    random = np.random.default_rng(seed)
    edited = list(log)
    for row, (_, _, time) in enumerate(log):
        if time >= test_start:
            user, item, delay = random.integers(0, [60, NUM_ITEMS + 30, 50 * DAY])
            edited[row] = (int(user), int(item) + 1, time if time == test_start else test_start + 1 + int(delay))
    return edited


@pytest.fixture(scope="module", params=MODELS)
def twins(request, tmp_path_factory):
    """The same log twice, from T2 on all different; split, trained on and evaluated."""
    root, log = tmp_path_factory.mktemp("twins"), canary_log()
    before = run_cell(root / "before", log, "time_split", request.param, epochs=3)
    edited = rewrite_the_test_part(log, before.sequences.split["valid_end"])
    return before, run_cell(root / "after", edited, "time_split", request.param, epochs=3)


def test_events_from_t2_on_change_no_weight_and_no_choice_of_an_epoch(twins):
    before, after = twins
    assert before.sequences.split["valid_end"] == after.sequences.split["valid_end"]
    assert before.sequences.split["data_hash"] != after.sequences.split["data_hash"]
    for file in ("weights.safetensors", "catalogue.parquet"):
        assert (before.checkpoint / file).read_bytes() == (after.checkpoint / file).read_bytes()
    first, second = (json.loads((cell.checkpoint / "checkpoint.json").read_text()) for cell in twins)
    assert first["best_epoch"] == second["best_epoch"]
    assert first["popular"] == second["popular"]
    for one, other in zip(first["epochs"], second["epochs"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_events_from_t2_on_change_no_number_of_validation_no_baseline_s_choice_and_no_verdict(twins):
    before, after = twins
    assert before.read("metrics")[CONDITION] == after.read("metrics")[CONDITION]
    assert before.read("metrics")["time_split"] != after.read("metrics")["time_split"]
    assert before.read("gate") == after.read("gate")
    first, second = (cell.read("facts") for cell in twins)
    for name in ("recent_days", "baselines", "num_items", "valid"):
        assert first.get(name) == second.get(name)
    tables = [pq.read_table(cell.results / "per_user.parquet").to_pandas() for cell in twins]
    one, other = (table[table.condition == CONDITION].reset_index(drop=True) for table in tables)
    assert len(one) > 0
    assert one.equals(other)


@pytest.fixture(scope="module", params=["time_split", "leave_one_out"])
def split(request, tmp_path_factory):
    """Users whose last two events share their second."""
    return split_log(tmp_path_factory.mktemp("log"), canary_log(num_users=15, num_events=16), request.param)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_what_happens_after_a_target_changes_none_of_its_scores(split, part):
    """For every model and baseline, fitted again; `later` includes the user's own events of the same second.

    Under leave-one-out later events of others come before their own held-out part, which is that protocol's leak; those
    of the part itself must not matter.
    """
    sequences = load_sequences(split.sequences_folder)
    targets = known(find_targets(sequences, part))
    scores = {name: scorer(targets) for name, scorer in all_scorers(sequences, part).items()}
    tied = followed_by_a_tie(sequences, targets)
    assert tied.any() or (split.protocol, part) == ("leave_one_out", "test")  # where nothing follows
    for index in sorted({0, len(targets) // 2, int(tied.argmax())}):
        later = is_later(sequences, part, targets.rows[index], targets.users[index])
        changed = change(sequences, later)
        again = known(find_targets(changed, part))
        row = int(np.flatnonzero(again.rows == targets.rows[index])[0])
        for name, scorer in all_scorers(changed, part).items():
            found, expected = scorer(again)[row], scores[name][index]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=f"{name}, target {index}")


@pytest.mark.parametrize("name", ["hstu", "item_item", "contextual"])
def test_what_happens_before_a_target_does_change_its_scores(split, name):
    """The other half: scores that ignore everything pass the test above."""
    sequences = load_sequences(split.sequences_folder)
    targets = known(find_targets(sequences, "test"))
    index = len(targets) // 2
    rows, target = np.arange(len(sequences.items)), targets.rows[index]
    own = (rows >= sequences.starts[targets.users[index]]) & (rows < target)
    changed = change(sequences, own & (sequences.timestamps < sequences.timestamps[target]))
    before, after = (all_scorers(log, "test")[name] for log in (sequences, changed))
    assert not np.allclose(before(targets)[index], after(known(find_targets(changed, "test")))[index], atol=1e-3)


def known(targets):
    return targets.take(targets.items >= 0)


def followed_by_a_tie(sequences, targets):
    next_rows = np.minimum(targets.rows + 1, sequences.ends[targets.users] - 1)
    tied = sequences.timestamps[next_rows] == sequences.timestamps[targets.rows]
    return tied & (next_rows > targets.rows)


def is_later(sequences, part, row, user):
    """(E,) bool: after the event at `row`, by the clock or in its user's order; with leave-one-out from `part` on."""
    rows = np.arange(len(sequences.items))
    own = (rows >= sequences.starts[user]) & (rows < sequences.ends[user])
    later = np.where(own, rows > row, sequences.timestamps > sequences.timestamps[row])
    if sequences.split["train_end"] is None:
        user_of_row = np.repeat(np.arange(len(sequences.starts)), sequences.ends - sequences.starts)
        part_starts = sequences.test_starts if part == "test" else sequences.valid_starts
        later &= rows >= part_starts[user_of_row]
    return later


def change(sequences, which):
    """Give the events at `which` other items and later times, by less than what lies between two days."""
    items = np.where(which & (sequences.items >= 0), (sequences.items + 7) % sequences.num_items, sequences.items)
    return dataclasses.replace(sequences, items=items, timestamps=sequences.timestamps + which * 1000)
