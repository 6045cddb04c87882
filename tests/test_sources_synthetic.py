"""The made log: its law, its bytes, its months, and the way to it through the command line."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from components import __main__ as command_line
from components.errors import SettingsError
from components.files import hash_files
from components.ingestion import ingest
from components.interactions import months_of, read_interactions, read_items, read_manifest
from components.settings import IngestSettings, SyntheticSettings
from components.sources.synthetic import (
    MEAN_LENGTH,
    STRENGTHS,
    Population,
    draw_items,
    draw_population,
    item_table,
    iterate_months,
    month_edges,
    num_released,
)

ROOT = Path(__file__).parent.parent
MADE = IngestSettings(source="synthetic", synthetic=SyntheticSettings(users=50, items=60, categories=6, months=4))
SMALL = SyntheticSettings(users=400, items=300, categories=20, months=6, seed=3)
sizes = st.builds(
    lambda categories, **rest: SyntheticSettings(categories=categories, items=5 * categories, **rest),
    categories=st.integers(1, 12),
    users=st.integers(1, 30),
    months=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)


def whole(settings: SyntheticSettings) -> dict[str, np.ndarray]:
    table = pa.concat_tables(iterate_months(settings))
    return {name: table[name].to_numpy() for name in ("user_id", "item_id", "timestamp")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder that has the committed params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["components", "ingest", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


# --- the law ---------------------------------------------------------------------------------------------------------


@checks(max_examples=40, deadline=None)
@given(sizes)
def test_every_event_lies_in_its_month_in_order_of_time_and_no_item_before_its_release(settings: SyntheticSettings):
    edges = month_edges(settings.months)
    months = list(iterate_months(settings))
    assert len(months) == settings.months
    for month, start, end in zip(months, edges[:-1], edges[1:], strict=True):
        times, items = month["timestamp"].to_numpy(), month["item_id"].to_numpy()
        assert ((start <= times) & (times < end)).all()
        assert (np.diff(times) >= 0).all()
        assert (items >= 0).all()
        assert (items < num_released(settings, (times - edges[0]) / (edges[-1] - edges[0]))).all()


def test_two_fifths_of_the_items_are_there_at_the_start_and_the_rest_comes_at_equal_intervals():
    settings = SyntheticSettings(items=1000, categories=10)
    assert num_released(settings, np.array([0.0, 0.25, 0.5, 0.75])).tolist() == [400, 550, 700, 850]
    assert num_released(settings, np.array([1 - 1e-9])).tolist() == [999]


def test_an_item_is_drawn_uniformly_among_the_released_ones_of_its_category():
    settings = SyntheticSettings(users=1, items=50, categories=4)
    one = np.array([1])
    population = Population(np.array([[2]], np.int32), np.ones((1, 1), np.float32), 0 * one, one, one)
    num_draws = 40_000
    items = draw_items(
        np.random.default_rng(1), settings, population, np.zeros(num_draws, int), np.full(num_draws, 0.5)
    )
    assert num_released(settings, np.array([0.5])).tolist() == [35]
    drawn, counts = np.unique(items, return_counts=True)
    assert drawn.tolist() == [2, 6, 10, 14, 18, 22, 26, 30, 34]
    assert np.abs(counts / (num_draws / 9) - 1).max() < 0.06  # 4 standard errors of 1 / 67


def test_users_have_up_to_five_categories_of_which_any_is_as_likely_as_any_other():
    settings = SyntheticSettings(users=20_000, items=40, categories=8)
    population = draw_population(settings, 1000)
    assert (np.diff(np.sort(population.categories_UK, axis=1), axis=1) > 0).all()
    chance_UK = np.diff(population.thresholds_UK, axis=1, prepend=0)
    assert population.thresholds_UK[:, -1].tolist() == [1.0] * settings.users
    numbers = np.bincount((chance_UK > 0).sum(1), minlength=6)[1:]
    assert np.abs(numbers / settings.users - 0.2).max() < 0.02
    first = np.bincount(population.categories_UK[:, 0], minlength=8)
    assert np.abs(first / (settings.users / 8) - 1).max() < 0.08  # 4 standard errors of 1 / 50


def test_categories_repeat_as_often_as_the_urn_says():
    """P(event n is of event 1's category) = s + (1 - s) / (a + 1) for the urn of prior shares with sum of squares s.

    Because the urn is exchangeable, that is the same for every pair of events. s has mean 2 / (k + 1) under a flat
    prior over k categories, k uniform in 1 to 5; 1 / (a + 1) is averaged over a ~ U(1, 500).
    """
    log = whole(SyntheticSettings(users=3000, items=300, categories=100, months=3))
    order = np.lexsort((log["timestamp"], log["user_id"]))
    users, categories = log["user_id"][order], log["item_id"][order] % 100
    low, high = STRENGTHS
    concentration = np.log((high + 1) / (low + 1)) / (high - low)
    same = np.mean([2 / (k + 1) for k in range(1, 6)])
    expected = same + (1 - same) * concentration
    for apart in (1, 50):
        pairs = users[apart:] == users[:-apart]
        repeats = (categories[apart:] == categories[:-apart])[pairs]
        by_user = np.bincount(users[apart:][pairs], repeats) / np.maximum(np.bincount(users[apart:][pairs]), 1)
        observed = by_user[np.bincount(users[apart:][pairs], minlength=len(by_user)) > 0].mean()
        assert observed == pytest.approx(expected, abs=0.02)  # 3.5 standard errors


def test_no_urn_but_dirichlet_shares_gives_the_spread_of_the_counts():
    """The reverse route: events drawn one by one from the urn have the same mean of squared shares."""
    rng = np.random.default_rng(2)
    a, prior, n, trials = 3.0, np.array([0.5, 0.3, 0.2]), 40, 4000
    counts = np.zeros((trials, 3))
    for number in range(1, n + 1):
        chances = (a * prior + counts) / (a + number - 1)
        column = (chances.cumsum(1) < rng.random(trials)[:, None]).sum(1)
        counts[np.arange(trials), column] += 1
    shares = rng.dirichlet(a * prior, trials)
    drawn = np.stack([rng.multinomial(n, p) for p in shares])
    assert (counts**2).mean() == pytest.approx((drawn**2).mean(), rel=0.03)


def test_lengths_are_poisson_and_a_split_into_months_loses_none():
    population = draw_population(SMALL, int(np.ptp(month_edges(SMALL.months))))
    wanted = population.left_U.copy()
    log = whole(SMALL)
    assert np.bincount(log["user_id"], minlength=SMALL.users).tolist() == wanted.tolist()
    assert wanted.mean() == pytest.approx(MEAN_LENGTH, abs=4 * np.sqrt(MEAN_LENGTH / SMALL.users))
    assert wanted.var() == pytest.approx(MEAN_LENGTH, rel=0.4)
    starts, ends = population.starts_U[log["user_id"]], population.ends_U[log["user_id"]]
    times = log["timestamp"] - month_edges(SMALL.months)[0]
    assert ((starts <= times) & (times < ends)).all()
    assert ((times - starts) / (ends - starts)).mean() == pytest.approx(0.5, abs=0.01)


def test_the_number_of_months_decides_when_and_never_what():
    """Users, lengths and categories do not depend on how the stream is cut."""
    long, short = (SyntheticSettings(**SMALL.model_dump() | {"months": months}) for months in (1, 12))
    logs = [whole(settings) for settings in (long, short)]
    counts = [np.bincount(log["user_id"], minlength=SMALL.users) for log in logs]
    assert counts[0].tolist() == counts[1].tolist()
    seen = [
        {(u, i % 20) for u, i in zip(log["user_id"].tolist(), log["item_id"].tolist(), strict=True)} for log in logs
    ]
    assert len(seen[0] & seen[1]) > 0.9 * len(seen[0])


@pytest.mark.parametrize("change", [{}, {"seed": 4}])
def test_the_same_seed_gives_the_same_log_and_another_seed_another(change: dict[str, int]):
    first, second = whole(SMALL), whole(SyntheticSettings(**SMALL.model_dump() | change))
    assert all(np.array_equal(first[name], second[name]) for name in first) == (not change)


def test_an_item_is_known_by_its_category():
    table = item_table(SyntheticSettings(users=1, items=10, categories=3))
    assert table["item_id"].to_pylist() == list(range(10))
    assert table["genres"].to_pylist()[:4] == ["category 0", "category 1", "category 2", "category 0"]


# --- through the command line ----------------------------------------------------------------------------------------


def test_data_holds_the_same_months_as_the_log_made_in_one_go(here: Path):
    change = ingest(MADE, {}, data=Path("data"))
    log, made = read_interactions(), whole(MADE.synthetic)
    assert all(np.array_equal(log[name].to_numpy(), made[name]) for name in made)
    assert log["partition"].to_pylist() == months_of(made["timestamp"]).tolist()
    assert (change.after.events, change.after.users) == (len(made["user_id"]), 50)
    assert read_items()["genres"].to_pylist()[:7] == [f"category {n % 6}" for n in range(7)]


def test_a_second_ingestion_changes_nothing_and_another_size_needs_replace(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    size = "users=40,items=50,categories=4,months=3"
    assert run(monkeypatch, "--source", "synthetic", "--synthetic", size) == 0
    before = hash_files([here / "data"])
    assert run(monkeypatch, "--source", "synthetic", "--synthetic", size) == 0
    assert hash_files([here / "data"]) == before
    assert read_manifest()["synthetic"] == {"users": 40, "items": 50, "categories": 4, "months": 3, "seed": 1}
    assert run(monkeypatch, "--source", "synthetic", "--synthetic", f"{size},seed=2") == 2
    assert "already holds another log: observed synthetic (categories=4," in capsys.readouterr().err
    assert run(monkeypatch, "--source", "synthetic", "--synthetic", f"{size},seed=2", "--replace") == 0
    assert hash_files([here / "data"]) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "synthetic", "synthetic": {"users": "many"}}, "--synthetic users: is wrong: observed many"),
        ({"source": "synthetic", "synthetic": {"user": "3"}}, "--synthetic user: is wrong: .* no such key"),
        ({"source": "synthetic", "synthetic": {"items": "20"}}, "100 categories need 250 items"),
        ({"source": "synthetic", "path": "a.csv"}, "--path: is no option of the source synthetic"),
        ({"source": "table", "path": "a.csv", "synthetic": {"users": "3"}}, "--synthetic: is no option of the source"),
    ],
)
def test_a_wrong_size_is_named(options: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(SettingsError, match=message):
        ingest(IngestSettings(source="movielens-100k"), options, data=tmp_path / "data")
