"""A model with another catalogue: the same scores for what it knows, misses for what it does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_comparisons import checkpoint
from made_evaluations import evaluate_settings, make_root

from components.checkpoint import load_model
from components.comparison.entrants import Entrant
from components.comparison.judging import judge_entrants
from components.comparison.translation import TranslatingScorer
from components.dataset import load_sequences
from components.ranking.blocks import ModelScorer
from components.ranking.judging import Cell
from components.ranking.targets import find_targets
from components.recommender import Recommender


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def judged(root):
    """The test part, its scores by the checkpoint itself, and what a translation of it needs."""
    sequences = load_sequences(root / "artifacts" / "sequences" / "time_split")
    targets = find_targets(sequences, "test")
    model, facts = load_model(checkpoint(root))
    return sequences, targets.take(targets.items >= 0), ModelScorer(model, facts["settings"]["max_len"])


def translate(scorer, own_rows_X, known_items_K, popular_Y=None):
    num_own = int(own_rows_X.max()) + 1
    return TranslatingScorer(scorer, own_rows_X, known_items_K, range(num_own) if popular_Y is None else popular_Y)


def test_the_same_items_in_another_order_get_the_same_scores(judged):
    """Row own_rows_X[x] of the model's catalogue is item x here."""
    sequences, targets, scorer = judged
    own_rows_X = np.random.default_rng(1).permutation(sequences.num_items)
    here_Y = np.argsort(own_rows_X)

    def permuted(own):
        return scorer(replace(own, known_items=here_Y[own.known_items], items=here_Y[own.items]))[:, here_Y]

    found = translate(permuted, own_rows_X, targets.known_items)(targets)
    torch.testing.assert_close(found, scorer(targets), rtol=0, atol=0)


def test_a_history_without_what_the_model_does_not_know_is_answered_as_the_service_would(root, judged):
    """The catalogue here has one item more than the model's, row 0, so that all others are one further."""
    sequences, targets, scorer = judged
    is_new = np.arange(len(targets.known_items)) % 3 == 0
    is_new[targets.positions] = False  # the targets themselves stay what they are
    here = replace(targets, items=targets.items + 1, known_items=np.where(is_new, 0, targets.known_items + 1))
    found = translate(scorer, np.arange(-1, sequences.num_items), here.known_items)(here)
    assert torch.isneginf(found[:, 0]).all()
    recommender, answered = Recommender.load(checkpoint(root)), 0
    for number in range(0, len(here), 7):
        history = slice(here.firsts[number], here.positions[number])
        rows, times = here.known_items[history] - 1, here.known_timestamps[history]  # -1: unknown to the model
        if (rows >= 0).any():
            expected = recommender.scores(rows, times, int(here.request_times[number]))
            torch.testing.assert_close(found[number, 1:], torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
            answered += 1
    assert answered > 5


def test_with_no_item_known_of_a_history_the_popular_ones_are_answered(judged):
    sequences, targets, scorer = judged
    target = targets.take(np.array([0]))
    history = target.known_items[target.firsts[0] : target.positions[0]]
    known = np.setdiff1d(np.arange(sequences.num_items), history)
    own_rows_X = np.full(sequences.num_items, -1)
    own_rows_X[known] = np.arange(len(known))
    popular_Y = np.arange(len(known))[::-1]
    asked = replace(target, items=known[:1])
    [scores_X] = translate(scorer, own_rows_X, targets.known_items, popular_Y)(asked)
    assert scores_X.argsort(descending=True)[: len(known)].tolist() == known[popular_Y].tolist()
    assert torch.isneginf(scores_X[np.unique(history)]).all()


def test_a_target_that_a_model_does_not_know_is_a_miss_whatever_ties_would_give_it(root):
    sequences = load_sequences(root / "artifacts" / "sequences" / "time_split")
    cell = Cell(evaluate_settings(cutoffs=(10, 10_000)), "hstu", "time_split", sequences)
    nothing = np.zeros(sequences.num_items, dtype=bool)

    def constant(targets):
        return torch.full((len(targets), sequences.num_items), -torch.inf)

    entrants = {"A1": Entrant("ignorant", constant, nothing), "B1": Entrant("constant", constant, ~nothing)}
    _, conditions = judge_entrants(cell, entrants)
    for condition in conditions.values():
        assert not condition.values["A1"].any()
        assert condition.values["B1"].any()
