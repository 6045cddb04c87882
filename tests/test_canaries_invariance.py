"""Canaries on what must not matter: numbers of items and users, blocks, batches; and on what must: order of ties."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_canaries import (
    MODELS,
    NUM_ITEMS,
    PROTOCOLS,
    Cell,
    all_scorers,
    canary_log,
    evaluate_cell,
    run_cell,
    split_log,
)
from made_logs import DAY
from safetensors.torch import load_file, save_file

from components.baselines import BASELINES
from components.dataset import load_sequences
from components.files import read_json, write_json
from components.metrics import measure
from components.ranking.blocks import encode_histories, rank_catalogue
from components.ranking.targets import find_targets

ROUNDING = 2e-6  # metrics.json has six digits
# contextual's weights end an optimisation, whose last bits follow the order of sums: a near-tie may turn.
EXACT = [name for name in BASELINES if name != "contextual"]


@pytest.fixture(scope="module", params=[("time_split", "hstu"), ("leave_one_out", "sasrec")])
def cell(request, tmp_path_factory):
    return run_cell(tmp_path_factory.mktemp("cell"), canary_log(), *request.param, epochs=3)


def evaluate_on(root, events, cell, change_weights=lambda weights: weights):
    """Evaluate the cell's model on another log, as if it had been trained there."""
    other = split_log(root, events, cell.protocol, cell.model)
    other.checkpoint.mkdir(parents=True)
    facts = read_json(cell.checkpoint / "checkpoint.json") | {"split": other.sequences.split}
    write_json(other.checkpoint / "checkpoint.json", facts)
    weights = change_weights(load_file(cell.checkpoint / "weights.safetensors"))
    save_file(weights, other.checkpoint / "weights.safetensors")
    pq.write_table(pq.read_table(other.sequences_folder / "catalogue.parquet"), other.checkpoint / "catalogue.parquet")
    evaluate_cell(other)
    return other


def assert_same_values(cell, other, scorers):
    for condition in cell.read("metrics"):
        found, expected = other.values(condition), cell.values(condition)
        assert scorers <= set(expected)
        for scorer in scorers:
            assert found[scorer] == pytest.approx(expected[scorer], abs=ROUNDING), (condition, scorer)


# item and user numbers


def test_renumbering_the_items_changes_no_metric_of_model_or_baseline(cell, tmp_path):
    """Their rows in the catalogue change with their numbers, and the model's embeddings move along."""
    new_id = np.append(0, np.random.default_rng(3).permutation(NUM_ITEMS) + 1)
    events = [(user, int(new_id[item]), time) for user, item, time in canary_log()]
    sequences = cell.sequences
    assert sequences.num_items == NUM_ITEMS  # so row r is item r + 1
    new_row = torch.from_numpy(new_id[1:] - 1)

    def move(weights):
        moved = {name: weight.clone() for name, weight in weights.items()}
        by_item = [name for name, weight in weights.items() if weight.shape[:1] == (NUM_ITEMS,)]
        assert by_item
        for name in by_item:
            moved[name][new_row] = weights[name]
        return moved

    other = evaluate_on(tmp_path, events, cell, move)
    assert not np.array_equal(other.sequences.items, sequences.items)
    assert_same_values(cell, other, {cell.model, *EXACT})
    first, second = (
        all_scorers(part, "test")["contextual"](find_targets(part, "test")) for part in (sequences, other.sequences)
    )
    first, second = (scores - scores.mean(1, keepdim=True) for scores in (first, second[:, new_row]))
    torch.testing.assert_close(second, first, rtol=0, atol=1e-3)  # of a spread of several units


def test_renumbering_the_users_changes_no_metric(cell, tmp_path):
    """The highest number first: every block and batch holds other users, in another order."""
    events = [(10_000 - user, item, time) for user, item, time in canary_log()]
    other = evaluate_on(tmp_path, events, cell)
    assert_same_values(cell, other, {cell.model, *EXACT})
    assert other.read("gate")["difference"] == pytest.approx(cell.read("gate")["difference"], abs=ROUNDING)


def test_the_order_of_rows_of_different_users_changes_no_sequence(tmp_path):
    log = canary_log()
    mixed = sorted(log, key=lambda event: (-event[0], 0))  # stable: each user's own rows stay in order
    cells = [split_log(tmp_path / name, events, "time_split") for name, events in (("a", log), ("b", mixed))]
    for file in ("events.arrow", "users.arrow", "catalogue.parquet"):
        first, second = ((cell.sequences_folder / file).read_bytes() for cell in cells)
        assert first == second


# blocks and batches


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return load_sequences(split_log(tmp_path_factory.mktemp("log"), canary_log(), "time_split").sequences_folder)


@pytest.mark.parametrize("block_bytes", [1, 5_000])
def test_no_scorer_s_ranks_depend_on_the_size_of_a_block(sequences, block_bytes):
    """Baselines exactly; a model's scores are sums whose order follows the batch, so ranks to 1e-6 of the mean."""
    targets, scorers = find_targets(sequences, "test"), all_scorers(sequences, "test")
    expected, found = (
        rank_catalogue(scorers, targets, sequences.num_items, block_bytes=size, what="ranking")
        for size in (1 << 24, block_bytes)
    )
    for name in scorers:
        for kind in ("filtered", "unfiltered"):
            one, other = (measure(ranks[name][kind], (5, 10)) for ranks in (expected, found))
            if name in BASELINES:
                assert torch.equal(one, other), name
            torch.testing.assert_close(one.mean(0), other.mean(0), rtol=0, atol=1e-6)


def test_the_whole_evaluation_does_not_depend_on_blocks_and_batches(cell, monkeypatch):
    before = {name: cell.read(name) for name in ("metrics", "gate", "facts")}
    monkeypatch.setitem(encode_histories.__kwdefaults__, "events_a_batch", 7)
    evaluate_cell(cell, block_megabytes=1)
    assert {name: cell.read(name) for name in before} == before


# ties


def test_the_order_of_tied_events_is_that_of_their_rows_up_to_the_target(tmp_path):
    """One user has three events in one second, twice: in train and in the test part."""
    tied = [(777, item, time) for time, items in ((5 * DAY, (31, 5, 17)), (900 * DAY, (8, 2, 44))) for item in items]
    for name, rows in (("file", tied), ("mirrored", [*tied[2::-1], *tied[:2:-1]])):
        sequences = split_log(tmp_path / name, [*canary_log(), *rows], "time_split").sequences
        targets = find_targets(sequences, "test")
        targets = targets.take(sequences.user_ids[targets.users] == 777)
        items = [item - 1 for _, item, _ in rows]
        assert targets.items.tolist() == items[3:]
        for number, (first, stop) in enumerate(zip(targets.firsts, targets.positions, strict=True), 3):
            assert (
                targets.known_items[first:stop].tolist() == items[:number]
            )  # what follows in its second is no history


def test_mirroring_tied_events_changes_the_result_and_so_their_order_may_not_be_left_to_a_sort(cell, tmp_path):
    log = canary_log()
    mirrored = [*reversed(log)]  # the sequences step brings other times back into order
    other = evaluate_on(tmp_path, mirrored, cell)
    assert other.sequences.timestamps.tolist() == cell.sequences.timestamps.tolist()
    assert other.values(cell.protocol)[cell.model] != cell.values(cell.protocol)[cell.model]


# when the answer is asked for


@pytest.mark.parametrize("model", MODELS)
def test_with_an_unknown_request_time_a_target_s_own_time_moves_no_score(tmp_path, model):
    """Leave-one-out: the last event of every user is moved; its item, and all that the model knows, stay.

    Contextual is left out: other users' last events are counted in its features, at their times.
    """
    log = canary_log(num_events=15)  # the last event of a user has its time for itself
    cell = run_cell(tmp_path / "before", log, "leave_one_out", model, epochs=3)
    last = {user: row for row, (user, _, _) in enumerate(log) if user < 900}  # the others have one event, in train
    moved = list(log)
    for user, row in last.items():
        moved[row] = (user, log[row][1], log[row][2] + (1 + user) * DAY)
    other = evaluate_on(tmp_path / "after", moved, cell)
    for condition in ("leave_one_out.unknown_time", "leave_one_out.valid"):
        for scorer in (model, *EXACT):
            assert other.values(condition)[scorer] == cell.values(condition)[scorer]
    knows_time = other.values("leave_one_out")[model] != cell.values("leave_one_out")[model]
    assert knows_time == (model == "hstu")


# duplicates


@pytest.mark.parametrize("delay", [0, 1])
def test_an_event_logged_twice_is_a_repeat_that_raises_no_popularity_and_an_alarm(tmp_path, delay):
    """Exact copies never get here (validation quarantines them); copies a second later do.

    A copy's item is in its history. It stays rankable, as any repeat, so a model that has learnt to repeat looks good.
    """
    log = canary_log()
    twice = [(user, item, time + late) for user, item, time in log for late in (0, delay)]
    once, doubled = (
        run_cell(tmp_path / name, events, "time_split", epochs=1) for name, events in (("once", log), ("twice", twice))
    )
    assert doubled.read("facts")["test"]["repeat_share"] >= 0.5
    assert any("repeat_share of test" in alarm for alarm in doubled.read("facts")["alarms"])
    assert not any("repeat_share" in alarm for alarm in once.read("facts")["alarms"])
    found, expected = (one.values("time_split")["popularity"] for one in (doubled, once))
    tolerance = 0.02 if delay else ROUNDING  # a second's delay moves T1 and T2 past a copy
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluating_twice_gives_the_same_bytes(tmp_path, protocol):
    cell = run_cell(tmp_path, canary_log(num_users=12), protocol, epochs=1)
    before = {file.name: file.read_bytes() for file in cell.results.iterdir()}
    evaluate_cell(cell)
    assert {file.name: file.read_bytes() for file in Cell(cell.root, cell.model, protocol).results.iterdir()} == before
