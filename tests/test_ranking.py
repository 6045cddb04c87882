"""Ranking the catalogue: no leak, no dependence on blocks, the filter, chance level, item numbers without meaning."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from made_evaluations import COLD
from made_logs import DAY, build, train_settings, walking_log, write_log

from components.baselines.popularity import PopularityScorer
from components.dataset import load_sequences, make_batch
from components.metrics import expected_hit_rate, measure
from components.model import build_model
from components.ranking.blocks import ModelScorer, encode_histories, rank_catalogue
from components.ranking.targets import find_targets
from components.ranking.tiles import mark_seen

MAX_LEN = 8  # shorter than most histories, so both kinds of windows occur


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Users of 1 to 40 events, with repeats and with items that train never saw."""
    rare = [(100 + user, 5, (5 + user) * DAY) for user in range(3)] + [(100, 7, 101 * DAY), (101, 7, 102 * DAY)]
    long = [(200, 1 + day % 25, day * DAY) for day in range(20, 80)]
    folder = tmp_path_factory.mktemp("log")
    return load_sequences(build(write_log(folder, [*walking_log(), *COLD, *rare, *long]), "time_split") / "time_split")


@pytest.fixture(scope="module")
def targets(sequences):
    targets = find_targets(sequences, "test")
    assert (targets.items == -1).any()
    assert targets.history_lengths.min() < MAX_LEN < targets.history_lengths.max()
    return targets


def made_model(sequences, name="hstu"):
    """An untrained model with weights large enough for order and time to matter."""
    torch.manual_seed(3)
    model = build_model(name, train_settings(max_len=MAX_LEN), sequences.num_items).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 10
    return model


def known(targets):
    return targets.take(targets.items >= 0)


def rank(scorer, targets, num_items, block_bytes=1 << 20):
    return rank_catalogue({"it": scorer}, targets, num_items, block_bytes=block_bytes, what="ranking", top=5)["it"]


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_shared_windows_give_the_scores_of_each_history_encoded_alone(sequences, targets, name):
    model, targets = made_model(sequences, name), known(targets)
    with torch.no_grad():
        together = encode_histories(model, targets, MAX_LEN)
        for index, row in enumerate(targets.rows):
            start = sequences.starts[targets.users[index]]
            history = sequences.items[start:row], sequences.timestamps[start:row]
            alone = model(make_batch([history], [int(sequences.timestamps[row])], max_len=MAX_LEN))[-1]
            torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_without_a_request_time_each_history_is_encoded_as_if_asked_right_after_it(sequences, targets, name):
    model, unknown = made_model(sequences, name), known(targets).forget_request_times()
    with torch.no_grad():
        together = encode_histories(model, unknown, MAX_LEN)
        for index, (first, position) in enumerate(zip(unknown.firsts, unknown.positions, strict=True)):
            history = unknown.known_items[first:position], unknown.known_timestamps[first:position]
            alone = model(make_batch([history], [int(history[1][-1])], max_len=MAX_LEN))[-1]
            torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-5)


def test_the_request_time_matters_unless_the_scorer_does_not_look_at_it(sequences, targets):
    model, told = made_model(sequences), known(targets)
    scores = {uses: ModelScorer(model, MAX_LEN, uses_request_time=uses) for uses in (True, False)}
    assert not torch.allclose(scores[True](told), scores[True](told.forget_request_times()), rtol=0, atol=1e-3)
    assert torch.equal(scores[False](told), scores[False](told.forget_request_times()))
    assert torch.equal(scores[False](told), scores[True](told))


@pytest.mark.parametrize("events_a_batch", [1, 10, 100_000])
def test_an_encoding_does_not_depend_on_the_batch(sequences, targets, events_a_batch):
    model, targets = made_model(sequences), known(targets)
    with torch.no_grad():
        expected = encode_histories(model, targets, MAX_LEN)
        found = encode_histories(model, targets, MAX_LEN, events_a_batch=events_a_batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_bytes", [1, 1000, 5000, 1 << 24])
def test_ranks_and_top_lists_do_not_depend_on_the_block_size(sequences, targets, block_bytes):
    for scorer in (ModelScorer(made_model(sequences), MAX_LEN), PopularityScorer(np.arange(sequences.num_items) % 4)):
        expected = rank(scorer, targets, sequences.num_items)
        found = rank(scorer, targets, sequences.num_items, block_bytes)
        assert torch.equal(found["top"], expected["top"])
        for kind in ("filtered", "unfiltered"):
            assert torch.equal(found[kind].above, expected[kind].above)
            assert torch.equal(found[kind].tied, expected[kind].tied)


def test_no_later_event_moves_a_target_s_scores(sequences, targets):
    """Change items and times of everything after a target, for every user at once; its own row may not notice."""
    scorer, targets = ModelScorer(made_model(sequences), MAX_LEN), known(targets)
    expected = scorer(targets)
    for index in range(0, len(targets), 5):
        later = np.arange(len(sequences.items)) > targets.rows[index]
        changed = dataclasses.replace(
            sequences,
            items=np.where(
                later & (sequences.items >= 0), (sequences.items + 3) % sequences.num_items, sequences.items
            ),
            timestamps=sequences.timestamps + later * 1000,
        )
        again = known(find_targets(changed, "test"))
        assert again.rows[index] == targets.rows[index]
        torch.testing.assert_close(scorer(again)[index], expected[index], rtol=0, atol=1e-5)


def test_the_target_s_own_time_moves_its_scores(sequences, targets):
    """The other half of the test above: scores that ignore everything would pass it."""
    scorer, targets = ModelScorer(made_model(sequences), MAX_LEN), known(targets)
    row = targets.rows[0]
    later = np.arange(len(sequences.items)) >= row
    again = known(find_targets(dataclasses.replace(sequences, timestamps=sequences.timestamps + later * DAY), "test"))
    assert not torch.allclose(scorer(again)[0], scorer(targets)[0], rtol=0, atol=1e-4)


def test_the_whole_history_is_filtered_but_a_repeated_target_is_not(sequences, targets):
    targets = known(targets)
    seen = mark_seen(targets, slice(0, sequences.num_items))
    for row, item, first, stop in zip(seen, targets.items, targets.firsts, targets.positions, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(targets.known_items[first:stop].tolist()) - {item}


def test_a_constant_scorer_gets_chance_level_among_what_may_be_ranked(sequences, targets):
    ranks = rank(PopularityScorer(np.ones(sequences.num_items, dtype=np.int64)), targets, sequences.num_items)
    rankable = sequences.num_items - mark_seen(known(targets), slice(0, sequences.num_items)).sum(1)
    chance = np.zeros(len(targets))
    chance[targets.items >= 0] = (10 / rankable).clamp(max=1)
    assert expected_hit_rate(ranks["filtered"], 10).tolist() == pytest.approx(chance.tolist())
    one = known(targets).take(np.array([0]))
    ndcg = sum(1 / math.log2(place + 1) for place in range(1, 11)) / sequences.num_items
    found = rank(PopularityScorer(np.ones(sequences.num_items)), one, sequences.num_items)["unfiltered"]
    assert measure(found, [10])[0, 1].item() == pytest.approx(ndcg)


def test_unknown_targets_are_misses_at_their_own_places(sequences, targets):
    values = measure(
        rank(PopularityScorer(np.ones(sequences.num_items)), targets, sequences.num_items)["filtered"], [10]
    )
    assert ((values == 0).all(1).numpy() == (targets.items == -1)).all()


def test_renumbering_the_items_changes_no_rank(sequences, targets):
    model, new_number = made_model(sequences), np.random.default_rng(0).permutation(sequences.num_items)
    expected = rank(ModelScorer(model, MAX_LEN), targets, sequences.num_items)["filtered"]
    items = np.where(sequences.items >= 0, new_number[sequences.items], -1).astype(np.int32)
    with torch.no_grad():
        old = model.embedding.item.weight.clone()
        model.embedding.item.weight[torch.from_numpy(new_number)] = old
    renumbered = find_targets(dataclasses.replace(sequences, items=items), "test")
    found = rank(ModelScorer(model, MAX_LEN), renumbered, sequences.num_items)["filtered"]
    assert torch.equal(found.above, expected.above)
    assert torch.equal(found.tied, expected.tied)


def test_targets_that_are_all_unknown_need_no_scores(sequences, targets):
    unknown = targets.take(targets.items == -1)
    ranks = rank(PopularityScorer(np.ones(sequences.num_items)), unknown, sequences.num_items)["filtered"]
    assert (ranks.above == -1).all()
    assert measure(ranks, [10]).sum() == 0
