"""Choosing an epoch: the validation part, the whole catalogue, the same definition as the evaluation that reports."""

import numpy as np
import pytest
import torch
from made_logs import build, train_settings, walking_log, write_log

from components.dataset import load_sequences, make_batch
from components.fitting import selection
from components.fitting.selection import ValidationPart, choose_targets, share_windows
from components.model import build_model
from components.ranking.targets import Targets, find_targets


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """A log with cold items in its validation part."""
    log = walking_log(num_users=12)
    cold = [(user, 999, 40 * 86_400 + user) for user in range(3)]
    return load_sequences(build(write_log(tmp_path_factory.mktemp("log"), [*log, *cold]), "time_split") / "time_split")


@pytest.fixture
def model(sequences):
    torch.manual_seed(3)
    return build_model("hstu", train_settings(max_len=64), sequences.num_items).eval()


def ndcg_one_by_one(model, sequences, max_len):
    """Encode each validation event's history alone and sort the catalogue."""
    by_user = []
    for start, valid, test in zip(sequences.starts, sequences.valid_starts, sequences.test_starts, strict=True):
        gains = []
        for row in range(valid, test):
            history, target = sequences.items[start:row], sequences.items[row]
            if not (history >= 0).any():
                continue
            batch = make_batch(
                [(history, sequences.timestamps[start:row])], [int(sequences.timestamps[row])], max_len=max_len
            )
            scores = (model.item_vectors() @ model(batch)[-1]).detach().numpy()
            seen = set(history[history >= 0].tolist()) - {target}
            ranking = [item for item in np.argsort(-scores) if item not in seen]
            rank = ranking.index(target) + 1 if target >= 0 else 10**9
            gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
        by_user += [np.mean(gains)] if gains else []
    return np.mean(by_user)


def test_ndcg_equals_that_of_each_event_ranked_alone(sequences, model):
    assert (sequences.items == -1).any()
    measured = ValidationPart(sequences, 64).measure_ndcg(model)
    assert measured == pytest.approx(ndcg_one_by_one(model, sequences, 64), rel=1e-5)
    assert measured > 0


def test_shared_windows_hold_at_least_half_of_what_the_model_can_take(sequences):
    targets = find_targets(sequences, "valid")
    shared = share_windows(targets, max_len=6)
    assert (shared.history_lengths <= 6).all()
    assert (shared.history_lengths >= np.minimum(targets.history_lengths, 4)).all()
    assert len(np.unique(shared.firsts)) < len(np.unique(targets.positions))


def test_a_subset_of_users_is_evenly_spaced_and_keeps_all_their_events(sequences):
    targets = find_targets(sequences, "valid")
    users = np.unique(targets.users)
    chosen = choose_targets(targets, max_users=3)
    assert np.unique(chosen.users).tolist() == [users[0], users[(len(users) - 1) // 2], users[-1]]
    assert len(chosen) == np.isin(targets.users, chosen.users).sum()


def test_too_many_targets_are_thinned_within_users_so_that_no_user_is_lost(sequences):
    targets = find_targets(sequences, "valid")
    chosen = choose_targets(targets, max_targets=len(targets) // 2)
    assert np.array_equal(np.unique(chosen.users), np.unique(targets.users))
    for user in np.unique(targets.users):
        ours, all_rows = chosen.rows[chosen.users == user], targets.rows[targets.users == user]
        assert 1 <= len(ours) <= -(-len(all_rows) // 2)
        assert np.isin(ours, all_rows).all()


def test_a_users_first_validation_event_is_chosen_as_often_as_the_others():
    """It ranks quite differently: what came before it is a part of the log away."""
    each = np.arange(8 * 500)
    targets = Targets(each, each // 8, each, each, each, each, each, request_times=each)
    chosen = choose_targets(targets, max_targets=1_000)
    assert len(chosen) == 1_000
    assert (chosen.rows % 8 == 0).mean() == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("width", [10**6, 20])
def test_a_catalogue_in_parts_is_judged_as_a_whole_one(sequences, model, width, monkeypatch):
    expected = ValidationPart(sequences, 6).measure_ndcg(model)
    monkeypatch.setattr(selection, "_BLOCK_BYTES", 8 * 64 * width)
    assert ValidationPart(sequences, 6).measure_ndcg(model) == pytest.approx(expected, abs=1e-7)
