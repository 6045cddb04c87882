"""From what an item's metadata says to its row of the embedding table: a ridge regression over the trained items.

    item_map = fit_item_map(catalogue, rows_XD, asked)     # packaging; None where metadata tells nothing
    item_map.save(folder); load_item_map(folder, dim=50)
    item_map.vectors([Metadata("Toy Story 3 (2010)", {"genres": ("Comedy",)})])   # (1, D)

Features are attribute values, words of the title and the year in it, each that MIN_ITEMS trained items have at least.
Feature 0 is the intercept, not penalised. The strength of the penalty is chosen by cross-validation over items, which
also says what the map is worth: where it comes no nearer to held-out items than the mean does, by three standard errors
over items, there is no map.
A ridge pulls towards the mean, and what lies there is recommended to everybody (docs/decisions/0017-new-items.md), so
mapped vectors are moved away from the mean by `spread`, until they lie as far from it as trained ones. Where held-out
items then still take more than their share of the places of made histories, scores are to be multiplied by `length`
(components/serving/exposure.py).
Normal equations only: a million items of 8 features take F x F numbers and a block of items, never X x F.
Shapes: X trained items, F features, D width, N items of a call, P pairs (item, feature), Q pairs of these of one item.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from components.dataset import iterate_in_blocks, rows_of_ranges
from components.errors import StateError
from components.files import read_json, reading, write_json
from components.serving.exposure import Asked, find_length

if TYPE_CHECKING:
    from components.catalogue import Catalogue

MAX_FEATURES = 2_000  # F x F float64 is 32 MB, and one solution 0.1 s
MIN_ITEMS = 5
FOLDS = 5
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # in items that pull towards the mean
_LEAST_GAIN = 1e-6  # of a cosine
_JUDGED = 10_000  # held-out items a fold that are looked at
_BLOCK = 20_000  # items whose pairs are counted at once
_WORD, _YEAR = re.compile(r"[^\W_]+"), re.compile(r"\b(?:18|19|20)\d\d\b")
_JSON, _WEIGHTS = "item_map.json", "item_map.safetensors"
_TODO = "Package the model again: `dvc repro package`"


class Metadata(NamedTuple):
    """What is known of an item before anybody did anything with it."""

    title: str
    attributes: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Worth:
    """What cross-validation over the trained items found."""

    features: int
    strength: float
    spread: float
    cosine: float  # of the mapped and the true vector, mean of held-out items
    cosine_of_mean: float  # of the mean vector and the true one
    length: float = 1.0  # factor of the scores of mapped items; earlier packages had none


@dataclass(frozen=True, eq=False)
class ItemMap:
    """A fitted map. Immutable."""

    features: dict[str, int]  # name -> row of the weights
    weights_FD: np.ndarray  # float32; row 0 is the intercept
    mean_D: np.ndarray  # float32, of the trained items' directions
    norm: float  # of what it makes: the median of the trained rows
    worth: Worth

    def knows(self, item: Metadata) -> bool:
        """Whether the item has a feature at all."""
        return not self.features.keys().isdisjoint(name_features(item))

    def vectors(self, items: Iterable[Metadata]) -> torch.Tensor:
        """Return (N, D) float32 rows for an embedding table, each as long as a typical trained one."""
        rows = [self.weights_FD[_numbers(item, self.features)].sum(0) for item in items]
        spread_ND = _spread(np.array(rows).reshape(-1, len(self.mean_D)), self.mean_D, self.worth.spread)
        return torch.from_numpy((_directions(spread_ND) * self.norm).astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write the map into a folder: item_map.safetensors, and item_map.json with all that is no matrix."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights_FD, "mean": self.mean_D}, folder / _WEIGHTS)
        facts = {"features": self.features, "norm": self.norm, "worth": asdict(self.worth)}
        write_json(folder / _JSON, facts)


def name_features(item: Metadata) -> set[str]:
    """Return the names of an item's features.

    >>> sorted(name_features(Metadata("Toy Story (1995)", {"genres": ("Comedy",)})))
    ['decade 199', 'genres=Comedy', 'word story', 'word toy', 'year 1995']
    """
    years = _YEAR.findall(item.title)[-1:]
    words = {f"word {word}" for word in _WORD.findall(item.title.casefold()) if word not in years}
    values = {f"{name}={value}" for name, values in item.attributes.items() for value in values}
    return words | values | {f"year {year}" for year in years} | {f"decade {year[:3]}" for year in years}


def describe_items(catalogue: Catalogue) -> Iterator[Metadata]:
    """Yield what the catalogue says of each item; a title that is the item's own id says nothing."""
    for row, (item_id, title) in enumerate(zip(catalogue.item_ids, catalogue.titles, strict=True)):
        values = {name: catalogue.attributes.values(row, name) for name in catalogue.attributes.names}
        yield Metadata("" if title == str(item_id) else title, values)


def fit_item_map(catalogue: Catalogue, rows_XD: np.ndarray, asked: Asked | None) -> ItemMap | None:
    """Fit the map to trained items and their rows of the table; None where the mean vector does as well.

    `asked` are histories to see with how often mapped items are shown; without them `length` is 1.
    """
    features, pairs = _collect(catalogue)
    if len(features) == 0 or len(rows_XD) < 2 * FOLDS:
        return None
    targets_XD = _directions(rows_XD.astype(np.float64))  # scores are cosines
    fold_X = np.random.default_rng(0).permutation(len(rows_XD)) % FOLDS
    folds = [np.flatnonzero(fold_X == fold) for fold in range(FOLDS)]
    sums = [_sum(pairs, fold, targets_XD) for fold in folds]
    strength, judged = _choose_strength(pairs, folds, sums, targets_XD)
    mean_D = targets_XD.mean(0)
    spread = _find_spread(judged.mapped_ND, judged.true_ND, mean_D)
    if not _is_sure(judged.cosines_N - judged.cosines_of_mean_N):
        return None
    spread_ND = _spread(judged.mapped_ND, mean_D, spread)
    cosine, cosine_of_mean = _cosine(spread_ND, judged.true_ND), float(judged.cosines_of_mean_N.mean())
    length = 1.0
    if asked is not None:
        length = find_length(_directions(spread_ND), [fold[:_JUDGED] for fold in folds], targets_XD, asked)
    worth = Worth(len(features), strength, *(round(one, 4) for one in (spread, cosine, cosine_of_mean, length)))
    weights_FD = _solve(_Sums.add(sums), strength).astype(np.float32)
    norm = float(np.median(np.linalg.norm(rows_XD, axis=1)))
    return ItemMap(features, weights_FD, mean_D.astype(np.float32), norm, worth)


def load_item_map(folder: Path, *, dim: int) -> ItemMap | None:
    """Read the map of a model of width `dim`, None where the model was packaged without one.

    Raises:
        StateError: it is damaged, or belongs to another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / _JSON).exists():
        return None
    with reading(folder / _JSON, todo=_TODO):
        features, norm, worth = _read_facts(read_json(folder / _JSON))
    try:
        with reading(folder / _WEIGHTS, todo=_TODO):
            arrays = load_file(folder / _WEIGHTS)
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that numpy lacks
        raise StateError("cannot be read", where=str(folder / _WEIGHTS), observed=error, todo=_TODO) from error
    shapes = {name: array.shape for name, array in arrays.items()}
    expected = {"weights": (len(features) + 1, dim), "mean": (dim,)}
    if shapes != expected or sorted(features.values()) != list(range(1, len(features) + 1)):
        where = str(folder / _WEIGHTS)
        raise StateError("does not fit the model", where=where, observed=shapes, expected=expected, todo=_TODO)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise StateError("holds what is no number", where=str(folder / _WEIGHTS), todo=_TODO)
    return ItemMap(features, arrays["weights"], arrays["mean"], norm, worth)


def _read_facts(facts: Any) -> tuple[dict[str, int], float, Worth]:  # noqa: ANN401 - whatever the file holds
    """Return features, norm and worth; raises ValueError where there are none, or of another version."""
    try:
        features, norm, worth = dict(facts["features"]), float(facts["norm"]), Worth(**facts["worth"])
        is_sound = norm > 0 and 0 < worth.length <= 1
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no item map of this version: {error}") from error
    if not is_sound:
        raise ValueError(f"norm {norm}, length {worth.length}")
    return features, norm, worth


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The features of all items end to end: those of item x are numbers[starts[x]:starts[x + 1]]."""

    starts: np.ndarray
    numbers: np.ndarray

    def of(self, items_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many features each of some items has (N,), and their numbers end to end (P,)."""
        counts_N = np.diff(self.starts)[items_N]
        return counts_N, self.numbers[rows_of_ranges(self.starts[items_N], counts_N)]


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a regression needs of some items."""

    gram_FF: np.ndarray
    cross_FD: np.ndarray

    @classmethod
    def add(cls, sums: Sequence[_Sums]) -> _Sums:
        return cls(np.sum([one.gram_FF for one in sums], axis=0), np.sum([one.cross_FD for one in sums], axis=0))

    def without(self, part: _Sums) -> _Sums:
        return _Sums(self.gram_FF - part.gram_FF, self.cross_FD - part.cross_FD)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Held-out items under one strength: what the map made of them without having seen them."""

    mapped_ND: np.ndarray
    true_ND: np.ndarray
    cosines_N: np.ndarray  # of the two
    cosines_of_mean_N: np.ndarray  # of the true ones and the mean of the items that were not held out


def _collect(catalogue: Catalogue) -> tuple[dict[str, int], _Pairs]:
    """Return the features worth having, the commonest first, and which items have them."""
    times = Counter(name for item in describe_items(catalogue) for name in name_features(item))
    common = sorted((name for name, count in times.items() if count >= MIN_ITEMS), key=lambda n: (-times[n], n))
    features = {name: number for number, name in enumerate(common[:MAX_FEATURES], start=1)}
    lists = [np.array(_numbers(item, features), dtype=np.int32) for item in describe_items(catalogue)]
    return features, _Pairs(np.cumsum([0, *map(len, lists)]), np.concatenate(lists))


def _numbers(item: Metadata, features: Mapping[str, int]) -> list[int]:
    return [0, *sorted(features[name] for name in name_features(item) if name in features)]


def _sum(pairs: _Pairs, items_N: np.ndarray, targets_XD: np.ndarray) -> _Sums:
    num_features = int(pairs.numbers.max()) + 1
    gram = np.zeros(num_features**2)
    cross_FD = torch.zeros(num_features, targets_XD.shape[1], dtype=torch.float64)
    for block in iterate_in_blocks(len(items_N), _BLOCK):
        counts_N, numbers_P = pairs.of(items_N[block])
        starts_N, counts_P = np.cumsum(counts_N) - counts_N, np.repeat(counts_N, counts_N)
        others_Q = numbers_P[rows_of_ranges(np.repeat(starts_N, counts_N), counts_P)]
        cells_Q = np.repeat(numbers_P.astype(np.int64), counts_P) * num_features + others_Q
        gram += np.bincount(cells_Q, minlength=len(gram))
        targets_PD = torch.from_numpy(np.repeat(targets_XD[items_N[block]], counts_N, axis=0))
        cross_FD.index_add_(0, torch.from_numpy(numbers_P.astype(np.int64)), targets_PD)
    return _Sums(gram.reshape(num_features, num_features), cross_FD.numpy())


def _solve(sums: _Sums, strength: float) -> np.ndarray:
    """Return (F, D): the ridge's weights. A feature that no item has gets weight 0."""
    penalty_F = np.full(len(sums.gram_FF), strength)
    penalty_F[0] = 1e-9
    weights_FD: np.ndarray = np.linalg.solve(sums.gram_FF + np.diag(penalty_F), sums.cross_FD)
    return weights_FD


def _choose_strength(
    pairs: _Pairs, folds: Sequence[np.ndarray], sums: Sequence[_Sums], targets_XD: np.ndarray
) -> tuple[float, _Judged]:
    """Return the strength whose held-out vectors come nearest to the true ones, and these."""
    whole = _Sums.add(sums)
    others = [whole.without(part) for part in sums]
    shown = [fold[:_JUDGED] for fold in folds]
    true_ND = np.concatenate([targets_XD[items_N] for items_N in shown])
    means_ND = np.concatenate([np.tile(rest.cross_FD[0], (len(n), 1)) for rest, n in zip(others, shown, strict=True)])
    found = {}
    for strength in STRENGTHS:
        parts = [_map(pairs, items_N, _solve(rest, strength)) for rest, items_N in zip(others, shown, strict=True)]
        mapped_ND = np.concatenate(parts)
        found[strength] = _Judged(mapped_ND, true_ND, _cosines(mapped_ND, true_ND), _cosines(means_ND, true_ND))
    best = max(found, key=lambda strength: found[strength].cosines_N.mean())
    return best, found[best]


def _map(pairs: _Pairs, items_N: np.ndarray, weights_FD: np.ndarray) -> np.ndarray:
    """Return (N, D): the sums of the weights of each item's features; none is empty, for the intercept."""
    counts_N, numbers_P = pairs.of(items_N)
    mapped_ND: np.ndarray = np.add.reduceat(weights_FD[numbers_P], np.cumsum(counts_N) - counts_N, axis=0)
    return mapped_ND


def _find_spread(mapped_ND: np.ndarray, true_ND: np.ndarray, mean_D: np.ndarray) -> float:
    """Return the factor >= 1 by which mapped vectors have the true ones' mean cosine to the mean: a bisection."""
    wanted = _cosine(np.broadcast_to(mean_D, true_ND.shape), true_ND)
    low, high = 1.0, 8.0
    for _ in range(20):
        middle = (low + high) / 2
        spread_ND = _spread(mapped_ND, mean_D, middle)
        is_narrow = _cosine(np.broadcast_to(mean_D, true_ND.shape), spread_ND) > wanted
        low, high = (middle, high) if is_narrow else (low, middle)
    return low


def _spread(mapped_ND: np.ndarray, mean_D: np.ndarray, factor: float) -> np.ndarray:
    spread_ND: np.ndarray = mean_D + factor * (mapped_ND - mean_D)
    return spread_ND


def _directions(rows_ND: np.ndarray) -> np.ndarray:
    directions_ND: np.ndarray = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)
    return directions_ND


def _cosines(left_ND: np.ndarray, right_ND: np.ndarray) -> np.ndarray:
    cosines_N: np.ndarray = (_directions(left_ND) * _directions(right_ND)).sum(1)
    return cosines_N


def _cosine(left_ND: np.ndarray, right_ND: np.ndarray) -> float:
    return float(_cosines(left_ND, right_ND).mean())


def _is_sure(gains_N: np.ndarray) -> bool:
    """Whether the mean gain is more than three standard errors above 0: the strength was chosen on the same items.

    And more than rounding. Where all items have the same features, gains are 1e-16, and so is their error.
    """
    return bool(gains_N.mean() > max(3 * gains_N.std() / len(gains_N) ** 0.5, _LEAST_GAIN))
