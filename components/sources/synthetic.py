"""A made log of any size: the synthetic stream of arXiv 2402.17152, month by month.

    python -m components ingest --source synthetic                                     # 10,000 users, 1.3M events
    python -m components ingest --source synthetic --synthetic users=156250,seed=2     # 20M events

Items    item i belongs to category i % categories. 40 % of them are there at the start, the others are released one by
         one at equal intervals until the end; ids follow the order of release.
Users    each has up to 5 categories with a random prior over them, and a strength a ~ U(1, 500). Event n is of a
         category drawn from the prior with probability a / (a + n - 1), else of category c with probability
         proportional to the number n_c of earlier events in it. The item is uniform among the category's released ones.
Times    Poisson(128) events a user, uniform over a span of his own: between a 150th of the stream and all of it.

Drawing the categories one by one from that urn is the same as drawing p ~ Dirichlet(a * prior) once and then every
category from p (Blackwell & MacQueen 1973). So the state of a user is p and the number of events he has left: 60 bytes,
however long the log. Only one month's rows are in memory at a time.
Shapes: U users, K categories a user has at most, E events of a month.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from components.interactions import INTERACTIONS
from components.settings import SyntheticSettings
from components.sources.log import MonthlyLog

FIRST_MONTH = np.datetime64("2020-01", "M")
MAX_CATEGORIES = 5  # K, of one user
MEAN_LENGTH = 128
STRENGTHS = (1.0, 500.0)  # a
_SPAN_EXPONENT = 5.0  # a span is exp(-U(0, 5)) of the stream: mean gaps of 1.4 hours to 9 days where it has 3 years
_POPULATION, _MONTH = 0, 1  # streams of random numbers


@dataclass
class Population:
    """What stays of the users between two months; times are seconds since the stream's start."""

    categories_UK: np.ndarray  # int32, distinct in a row
    thresholds_UK: np.ndarray  # float32, cumulated p; ends in 1
    starts_U: np.ndarray  # int64
    ends_U: np.ndarray  # int64
    left_U: np.ndarray  # int32, events still to come


def make_log(settings: SyntheticSettings) -> MonthlyLog:
    """Return the log; its months are made as they are asked for."""
    return MonthlyLog(iterate_months(settings), item_table(settings))


def iterate_months(settings: SyntheticSettings) -> Iterator[pa.Table]:
    """Yield each month's events in order of time, as a table of INTERACTIONS; a month may be empty."""
    edges = month_edges(settings.months)
    population = draw_population(settings, edges[-1] - edges[0])
    for number, (first, last) in enumerate(pairwise(edges - edges[0])):
        rng = np.random.default_rng([settings.seed, _MONTH, number])
        users_E, times_E = _draw_times(rng, population, first, last)
        items_E = draw_items(rng, settings, population, users_E, times_E / (edges[-1] - edges[0]))
        yield _as_table(users_E, items_E, edges[0] + times_E)


def item_table(settings: SyntheticSettings) -> pa.Table:
    """Return item_id, title and genres of the whole catalogue; an item's genre is its category."""
    ids = np.arange(settings.items)
    genres = pa.array([f"category {number}" for number in range(settings.categories)])
    genres = genres.take(pa.array(ids % settings.categories))
    titles = pa.array([f"item {number}" for number in ids.tolist()])
    return pa.table({"item_id": pa.array(ids, pa.int64()), "title": titles, "genres": genres})


def month_edges(months: int) -> np.ndarray:
    """Return the (months + 1,) starts of the months and of the one after them, in seconds since 1970."""
    edges: np.ndarray = (FIRST_MONTH + np.arange(months + 1)).astype("datetime64[s]").astype(np.int64)
    return edges


def draw_population(settings: SyntheticSettings, duration: int) -> Population:
    """Draw who the users are and when they are there, in a stream of `duration` seconds."""
    rng = np.random.default_rng([settings.seed, _POPULATION])
    categories_UK = _draw_categories(rng, settings)
    thresholds_UK = _draw_thresholds(rng, *categories_UK.shape)
    spans_U = duration * np.exp(-_SPAN_EXPONENT * rng.random(settings.users))
    starts_U = ((duration - spans_U) * rng.random(settings.users)).astype(np.int64)
    ends_U = np.minimum(starts_U + spans_U.astype(np.int64) + 1, duration)
    lengths_U = rng.poisson(MEAN_LENGTH, settings.users).astype(np.int32)
    return Population(categories_UK, thresholds_UK, starts_U, ends_U, lengths_U)


def num_released(settings: SyntheticSettings, progress: np.ndarray) -> np.ndarray:
    """Return how many items are there when the share `progress` in [0, 1) of the stream has passed, as int64."""
    at_start = settings.items * 2 // 5
    released: np.ndarray = at_start + (progress * (settings.items - at_start)).astype(np.int64)
    return released


def draw_items(
    rng: np.random.Generator,
    settings: SyntheticSettings,
    population: Population,
    users_E: np.ndarray,
    progress_E: np.ndarray,
) -> np.ndarray:
    """Draw the item (E,) of an event of each of `users_E` when `progress_E` of the stream has passed."""
    column = (population.thresholds_UK[users_E] < rng.random(len(users_E), np.float32)[:, None]).sum(1)
    categories_E = population.categories_UK[users_E, column]
    # Items c, c + C, c + 2C, ... are category c's: so many of them are below the number released.
    num_items_E = -((categories_E - num_released(settings, progress_E)) // settings.categories)
    place_E = (rng.random(len(users_E)) * num_items_E).astype(np.int64)
    items_E: np.ndarray = categories_E + settings.categories * place_E
    return items_E


def _draw_categories(rng: np.random.Generator, settings: SyntheticSettings) -> np.ndarray:
    """Return (U, K) distinct categories, any set and order as likely as any other: Floyd's sampling, then a shuffle."""
    width = min(MAX_CATEGORIES, settings.categories)
    chosen_UK = np.full((settings.users, width), -1, np.int32)
    for column, last in enumerate(range(settings.categories - width, settings.categories)):
        drawn_U = rng.integers(last + 1, size=settings.users, dtype=np.int32)
        is_taken_U = (chosen_UK == drawn_U[:, None]).any(1)
        chosen_UK[:, column] = np.where(is_taken_U, last, drawn_U)
    return rng.permuted(chosen_UK, axis=1, out=chosen_UK)


def _draw_thresholds(rng: np.random.Generator, num_users: int, width: int) -> np.ndarray:
    """Return (U, K): cumulated p ~ Dirichlet(a * prior); a user of k categories has the first k."""
    sizes_U = rng.integers(1, width + 1, size=num_users)
    prior_UK = rng.standard_exponential((num_users, width)) * (np.arange(width) < sizes_U[:, None])
    prior_UK *= (rng.uniform(*STRENGTHS, num_users) / prior_UK.sum(1))[:, None]
    mass_UK = rng.standard_gamma(prior_UK).cumsum(1)
    thresholds_UK: np.ndarray = (mass_UK / mass_UK[:, -1:]).astype(np.float32)
    return thresholds_UK


def _draw_times(
    rng: np.random.Generator, population: Population, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return users and times (E,) of the events in [first, last) in order of time, and take them off `left_U`.

    Of a user's events that are left, uniform over what is left of his span, a binomial number falls into the month.
    """
    opening_U = np.maximum(population.starts_U, first)
    overlap_U = np.clip(np.minimum(population.ends_U, last) - opening_U, 0, None)
    counts_U = rng.binomial(population.left_U, overlap_U / np.maximum(population.ends_U - opening_U, 1))
    population.left_U -= counts_U.astype(np.int32)
    users_E = np.repeat(np.arange(len(counts_U)), counts_U)
    times_E = opening_U[users_E] + (rng.random(len(users_E)) * overlap_U[users_E]).astype(np.int64)
    order = np.argsort(times_E, kind="stable")
    return users_E[order], times_E[order]


def _as_table(users_E: np.ndarray, items_E: np.ndarray, times_E: np.ndarray) -> pa.Table:
    size = len(users_E)
    action = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array(["event"]))
    columns = [users_E, items_E, times_E, action, pa.nulls(size, pa.float32())]
    return pa.table(dict(zip(INTERACTIONS.names, columns, strict=True)))
