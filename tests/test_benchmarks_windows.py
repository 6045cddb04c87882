"""The benchmark of the sliding window: it ranks through the very windows that the service keeps."""

import copy

import numpy as np
import pytest
import torch
from made_models import model_settings

from benchmarks import bench_windows
from components.dataset import make_batch
from components.model import build_model
from components.ranking.blocks import ModelScorer
from components.ranking.targets import Targets
from components.serving.user_states import window_start

N, NUM_ITEMS = 12, 30
LENGTHS = np.array([1, 12, 13, 14, 15, 16, 40])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model("hstu", model_settings(max_len=N), NUM_ITEMS).double().eval()


@pytest.fixture(scope="module")
def targets():
    """One target a user, after histories of LENGTHS."""
    random, firsts = np.random.default_rng(3), np.cumsum(LENGTHS + 1) - LENGTHS - 1
    items, times = random.integers(NUM_ITEMS, size=firsts[-1] + 41), 10**6 * np.arange(firsts[-1] + 41)
    users, positions = np.arange(len(LENGTHS)), firsts + LENGTHS
    return Targets(positions, users, items[positions], firsts, positions, items, times, times[positions])


def test_a_window_scorer_sees_what_the_service_would_have_encoded(model, targets):
    scorer = bench_windows.WindowScorer(ModelScorer(model, N), N, window_start)
    scores_TX = scorer(targets)
    for number, length in enumerate(LENGTHS):
        window = slice(targets.firsts[number] + window_start(length, N), targets.positions[number])
        batch = make_batch(
            [(targets.known_items[window], targets.known_timestamps[window])],
            [targets.request_times[number]],
            max_len=N,
        )
        with torch.inference_mode():
            expected = model.score(model(batch)[-1:], model.item_side())[0]
        torch.testing.assert_close(scores_TX[number], expected, rtol=1e-12, atol=1e-12)


def test_the_shortest_window_is_the_shortest_that_the_service_ever_has():
    shortest = min(total - window_start(total, N) for total in range(N + 1, 10 * N))
    assert {total - bench_windows.shortest_start(total, N) for total in range(N + 1, 10 * N)} == {shortest}
    assert [bench_windows.shortest_start(total, N) for total in (1, N)] == [0, 0]


def test_users_whose_window_is_the_same_are_told_from_the_others(model, targets):
    rows = list(bench_windows.measure_quality(copy.deepcopy(model).float(), N, targets, NUM_ITEMS))
    users = {row["case"]: row["users"] for row in rows if row["metric"] == "ndcg@10"}
    # After 15 events the service's window begins at event 3, and so do the last 12.
    assert users == {
        "as served, another window": 4,
        "as served, all": 7,
        "shortest, another window": 5,
        "shortest, all": 7,
    }


def test_an_event_is_timed_on_windows_that_fit(model):
    rows = list(bench_windows.measure_events(model, N, rounds=2))
    assert len(rows) == 3
    assert all(row["cpu_ms"] > 0 for row in rows)
