"""Canaries on scorers that know nothing, everything, or the wrong log: chance, 1, and chance again."""

import dataclasses

import numpy as np
import pytest
import torch
from made_canaries import canary_log, evaluate_cell, fit_model, run_cell, split_log
from safetensors.torch import load_file, save_file

from components.dataset import load_sequences, rows_of_ranges
from components.metrics import average_by_user, bootstrap_interval, measure, metric_names, rank_targets
from components.ranking.alarms import chance_level
from components.ranking.blocks import ModelScorer, rank_catalogue
from components.ranking.targets import find_targets

CUTOFFS = (5, 10)
METRICS = metric_names(CUTOFFS)
NDCG = METRICS.index("ndcg@10")
KINDS = ("filtered", "unfiltered")
MAX_LEN, EPOCHS = 12, 8


class Peeking:
    """Scores the item `shift` events after the target highest: 0 is the target itself."""

    def __init__(self, sequences, shift=0):
        self._sequences, self._shift = sequences, shift

    def __call__(self, targets):
        rows = np.minimum(targets.rows + self._shift, len(self._sequences.items) - 1)
        scores = torch.zeros(len(targets), self._sequences.num_items)
        return scores.scatter_(1, torch.from_numpy(self._sequences.items[rows].clip(min=0)).long()[:, None], 1.0)


class Constant:
    def __init__(self, num_items):
        self._num_items = num_items

    def __call__(self, targets):
        return torch.full((len(targets), self._num_items), 0.5)


class Random(Constant):
    def __init__(self, num_items, seed=0):
        super().__init__(num_items)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, targets):
        return torch.rand(len(targets), self._num_items, generator=self._generator)


@pytest.fixture(scope="module", params=["time_split", "leave_one_out"])
def sequences(request, tmp_path_factory):
    """A log with cold targets: items of the last day only."""
    cold = [(user, 500 + user, 10**8) for user in range(6)]
    cell = split_log(tmp_path_factory.mktemp("log"), [*canary_log(num_users=120), *cold], request.param)
    return load_sequences(cell.sequences_folder)


def values_of(scorer, sequences, targets=None):
    """Return {kind: (T, M)} on the test part."""
    targets = find_targets(sequences, "test") if targets is None else targets
    ranks = rank_catalogue({"it": scorer}, targets, sequences.num_items, block_bytes=1 << 16, what="ranking")["it"]
    return {kind: measure(ranks[kind], CUTOFFS) for kind in KINDS}


def chance_of(sequences, targets, kind):
    """(T, M): the chance level of each target's own ranking, 0 where the target is cold."""
    sizes = [
        sequences.num_items - (len(set(targets.known_items[first:stop]) - {item}) if kind == "filtered" else 0)
        for item, first, stop in zip(targets.items, targets.firsts, targets.positions, strict=True)
    ]
    chance_TM = torch.tensor(
        [[chance_level(metric, size) for metric in METRICS] for size in sizes], dtype=torch.float64
    )
    return chance_TM * torch.from_numpy(targets.items >= 0)[:, None]


def test_a_constant_scorer_gets_exactly_chance_in_every_metric(sequences):
    targets = find_targets(sequences, "test")
    assert (targets.items < 0).any()
    for kind, found in values_of(Constant(sequences.num_items), sequences).items():
        np.testing.assert_allclose(found, chance_of(sequences, targets, kind), rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1, 4, 10, 37])
def test_chance_is_the_mean_over_all_places(metric, size):
    scores_TX = torch.arange(size, dtype=torch.float32).expand(size, size)
    values_TM = measure(rank_targets(scores_TX, torch.arange(size)), CUTOFFS)  # each item is the target once
    assert values_TM[:, METRICS.index(metric)].mean().item() == pytest.approx(chance_level(metric, size))


def test_a_random_scorer_is_within_five_standard_errors_of_chance(sequences):
    targets, scorer = find_targets(sequences, "test"), Random(sequences.num_items)
    draws = [values_of(scorer, sequences) for _ in range(20)]
    for kind in KINDS:
        found_DM = torch.stack([draw[kind].mean(0) for draw in draws])
        error_M = found_DM.std(0) / len(draws) ** 0.5
        gap_M = found_DM.mean(0) - chance_of(sequences, targets, kind).mean(0)
        assert (gap_M.abs() < 5 * error_M).all()


def test_an_oracle_gets_1_for_every_known_target_and_0_for_a_cold_one(sequences):
    targets = find_targets(sequences, "test")
    for found in values_of(Peeking(sequences), sequences).values():
        assert (found == torch.from_numpy(targets.items >= 0).double()[:, None]).all()


@pytest.mark.parametrize("shift", [-1, 1])
def test_an_oracle_that_is_off_by_one_event_gets_almost_nothing(sequences, shift):
    """Were histories or targets shifted by one event, this one would get 1 and the oracle nothing."""
    found = values_of(Peeking(sequences, shift), sequences)
    assert found["unfiltered"][:, METRICS.index("mrr")].mean() < 0.2


def test_a_checkpoint_of_zeros_is_at_chance_through_the_whole_evaluation(tmp_path):
    cell = run_cell(tmp_path, canary_log(), "time_split", epochs=1)
    file = cell.checkpoint / "weights.safetensors"
    save_file({name: torch.zeros_like(weight) for name, weight in load_file(file).items()}, file)
    evaluate_cell(cell)
    sequences = load_sequences(cell.sequences_folder)
    targets = find_targets(sequences, "test")
    users = torch.from_numpy(targets.users)
    for kind, name in (("filtered", "time_split"), ("unfiltered", "time_split.unfiltered")):
        _, chance_UM = average_by_user(chance_of(sequences, targets, kind), users)
        found = cell.values(name)["hstu"]
        assert [found[metric] for metric in METRICS] == pytest.approx(chance_UM.mean(0).tolist(), abs=1e-6)


# what a model learns must come from the order of events, and must be judged by the right targets


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    cell = split_log(tmp_path_factory.mktemp("log"), canary_log(num_users=120), "time_split")
    return load_sequences(cell.sequences_folder)


@pytest.fixture(scope="module")
def honest(learnable):
    return ModelScorer(fit_model(learnable, epochs=EPOCHS), MAX_LEN)


def shuffle(sequences, starts, stops, seed=0):
    """Deal the items of rows starts[u]:stops[u] out again, over all users; times, users and item counts stay."""
    rows = rows_of_ranges(starts, stops - starts)
    items = sequences.items.copy()
    items[rows] = np.random.default_rng(seed).permutation(items[rows])
    return dataclasses.replace(sequences, items=items)


def advantage_of(scorer, sequences, targets):
    """Return the 99.9% interval of NDCG@10 above chance, the mean over users."""
    gap_TM = values_of(scorer, sequences, targets)["filtered"] - chance_of(sequences, targets, "filtered")
    _, gap_U = average_by_user(gap_TM[:, NDCG], torch.from_numpy(targets.users))
    low, high = bootstrap_interval(gap_U[:, None], samples=2000, confidence=0.999, seed=1)
    return low.item(), high.item()


def test_the_honest_model_is_far_above_chance(learnable, honest):
    low, _ = advantage_of(honest, learnable, find_targets(learnable, "test"))
    assert low > 0.2


def test_a_model_trained_on_shuffled_events_is_at_chance(learnable):
    shuffled = shuffle(learnable, learnable.starts, learnable.valid_starts)
    scorer = ModelScorer(fit_model(shuffled, epochs=EPOCHS), MAX_LEN)
    low, high = advantage_of(scorer, learnable, find_targets(learnable, "test"))
    assert low < 0 < high < 0.1


def test_the_honest_model_is_at_chance_on_shuffled_test_targets(learnable, honest):
    """The histories stay; only what is to be predicted is dealt out again, over all users."""
    targets = find_targets(learnable, "test")
    dealt = dataclasses.replace(targets, items=np.random.default_rng(0).permutation(targets.items))
    low, high = advantage_of(honest, learnable, dealt)
    assert low < 0 < high < 0.1
