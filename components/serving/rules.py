"""The rules of a request: which items an answer may hold, and how many that are alike.

    rules = Rules(attributes={"genres": Wanted(any_of=("Comedy",), none_of=("Horror",))}, caps={"genres": 3})
    eligible = apply(rules, seen_rows, items)                        # items: ItemAttributes.load(checkpoint)
    selection = select(scores_X, eligible, k=10, caps=rules.caps)

Filters come first and depend on no score, so a wrong request fails before the model is asked. Caps are greedy: down the
ranking of what the filters left, an item is passed over once the answer holds `cap` items that share a value with it.
Without rules the answer is the head of a full stable sort. Numpy only, nothing is shared between requests.
Shapes: X items of the catalogue, N rows, S distinct sets of values of one attribute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from components.errors import InputError
from components.serving.attributes import Attribute, ItemAttributes

# With caps the first round ranks so many times k items, at least so many, and each further round so many times more:
# at a million items a round costs 2 ms whether it sorts 10 rows or 1,000.
_AHEAD, _AT_LEAST, _GROWTH = 8, 256, 8


class Wanted(NamedTuple):
    """A filter of one attribute: one of `any_of` at least (no demand where empty), none of `none_of`.

    An item without a value is removed by the first and kept by the second.
    """

    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What one request asks of its answer; rows are the catalogue's, a row below 0 is an unknown item and skipped.

    Raises:
        InputError: a cap is below 1.
    """

    exclude_seen: bool = True
    exclude: Sequence[int] = ()
    allow: Sequence[int] | None = None  # only these; of unknown items alone: nothing
    attributes: Mapping[str, Wanted] = field(default_factory=dict)  # the item has to pass every one of them
    caps: Mapping[str, int] = field(default_factory=dict)  # attribute -> items that may share a value of it
    first_seen_from: int | None = None  # seconds; items whose first event lies before are too old

    def __post_init__(self) -> None:
        _check_caps(self.caps)


@dataclass(frozen=True, eq=False)
class Eligible:
    """What the filters left of the catalogue."""

    mask_X: np.ndarray | None  # (X,) bool; None where nothing is removed
    removed: dict[str, int]  # rule -> items it removed, 0 included; no key for what the request does not ask
    count: int  # items left: X - the sum of `removed`
    items: ItemAttributes  # the catalogue that the mask is about


@dataclass(frozen=True)
class Selection:
    """The answer's rows, best first."""

    rows: list[int]
    passed_over: dict[str, int]  # cap -> items that it kept out though they rank before the last row


def apply(rules: Rules, seen_rows: Sequence[int] | np.ndarray, items: ItemAttributes) -> Eligible:
    """Decide which items may be recommended, and count what removed the others.

    A removed item is counted once, under the first rule that removes it, in this order: `seen`, `exclude`, `allow`,
    `attributes.<name>` in the request's order, `first_seen`.

    Raises:
        InputError: an attribute (a cap's too) or a value is unknown, or `first_seen_from` is asked of a catalogue
            that does not say when its items were first seen.
        IndexError: a row is none of the catalogue's.
    """
    for name in rules.caps:
        items.attribute(name)
    mask_X, removed, count = np.ones(items.num_items, dtype=bool), {}, items.num_items
    for name, keeps_X in _verdicts(rules, seen_rows, items):
        mask_X &= keeps_X
        before, count = count, int(np.count_nonzero(mask_X))
        removed[name] = before - count
    mask_X.setflags(write=False)
    return Eligible(mask_X if count < items.num_items else None, removed, count, items)


def select(scores_X: np.ndarray, eligible: Eligible, k: int, caps: Mapping[str, int] | None = None) -> Selection:
    """Return the `k` best eligible rows, equal scores by row; fewer where fewer are left or the caps allow.

    An item with several values counts for each of them; one without a value is never capped. An item that is passed
    over is counted once, under the first of `caps` that keeps it out of the finished answer.

    Args:
        scores_X: (X,) floats or signed integers without NaN; of a given order of all rows, `scores_of_order`.
        eligible: what `apply` left.
        k: how many, at least 1.
        caps: attribute -> how many items may share any one value of it.

    Raises:
        InputError: k or a cap is below 1, or a cap's attribute is unknown.
    """
    check_k(k)
    if not caps:
        return Selection(best_rows(scores_X, _rows(eligible), k).tolist(), {})
    _check_caps(caps)
    tallies = [_Tally(name, eligible.items.attribute(name), most) for name, most in caps.items()]
    chosen = _choose(scores_X, _rows(eligible), k, tallies)
    return Selection(chosen, _count_passed_over(scores_X, eligible, chosen, k, tallies))


def scores_of_order(order: Sequence[int]) -> np.ndarray:
    """Return (X,) int32 that rank like `order`, a permutation of all rows, best first. Computed once, used often."""
    scores_X = np.empty(len(order), dtype=np.int32)
    scores_X[np.asarray(order)] = -np.arange(len(order), dtype=np.int32)
    return scores_X


def best_rows(scores_X: np.ndarray, rows_N: np.ndarray | None, n: int) -> np.ndarray:
    """Return the `n` of `rows_N` (ascending; None: all) with the highest scores, best first, ties by row.

    Only `n` are sorted: of those that share the n-th best score, the first rows are taken.
    """
    kept_N = scores_X if rows_N is None else scores_X[rows_N]
    if n < len(kept_N):
        threshold = np.partition(kept_N, -n)[-n]
        above = np.flatnonzero(kept_N > threshold)
        places = np.concatenate([above, np.flatnonzero(kept_N == threshold)[: n - len(above)]])
        rows_N, kept_N = places if rows_N is None else rows_N[places], kept_N[places]
    order = np.argsort(-kept_N, kind="stable")
    best: np.ndarray = order if rows_N is None else rows_N[order]
    return best


class _Tally:
    """One cap of one request: how many chosen items have each value, and what is kept out by that."""

    def __init__(self, name: str, attribute: Attribute, most: int) -> None:
        self.name = name
        self._attribute, self._most = attribute, most
        self._times: Counter[int] = Counter()
        self._is_full_S = np.zeros(attribute.num_sets, dtype=bool)

    def add(self, row: int) -> bool:
        """Count a chosen item; say whether that keeps others out from now on."""
        numbers = self._attribute.numbers(row)
        self._times.update(numbers)
        full = [number for number in numbers if self._times[number] == self._most]
        for number in full:
            self._is_full_S[self._attribute.sets_with(number)] = True
        return bool(full)

    def admits(self, rows_N: np.ndarray) -> np.ndarray:
        """Return (N,) bool: the item has no value of which the answer holds enough."""
        admits_N: np.ndarray = ~self._is_full_S.take(self._attribute.sets_X.take(rows_N))
        return admits_N


def _choose(scores_X: np.ndarray, rows_N: np.ndarray | None, k: int, tallies: list[_Tally]) -> list[int]:
    """Go down the ranking of `rows_N` in rounds; a round ranks a few of the rows that are still possible."""
    chosen: list[int] = []
    open_N = np.arange(len(scores_X)) if rows_N is None else rows_N
    ahead = max(_AHEAD * k, _AT_LEAST)
    while len(open_N):
        ranked = best_rows(scores_X, open_N, ahead)
        _take(ranked, k, tallies, chosen)
        if len(chosen) == k:
            break
        open_N = _admitted(open_N[_is_after(scores_X, open_N, ranked[-1])], tallies)
        ahead *= _GROWTH
    return chosen


def _take(ranked: np.ndarray, k: int, tallies: list[_Tally], chosen: list[int]) -> None:
    """Choose from `ranked`, of which all rows are admitted: always the first, then drop what it keeps out."""
    while len(chosen) < k and len(ranked):
        row, ranked = int(ranked[0]), ranked[1:]
        chosen.append(row)
        if sum(tally.add(row) for tally in tallies):  # not any(): every tally has to count
            ranked = _admitted(ranked, tallies)


def _admitted(rows_N: np.ndarray, tallies: list[_Tally]) -> np.ndarray:
    for tally in tallies:
        rows_N = rows_N[tally.admits(rows_N)]
    return rows_N


def _count_passed_over(
    scores_X: np.ndarray, eligible: Eligible, chosen: list[int], k: int, tallies: list[_Tally]
) -> dict[str, int]:
    """Count by cap what ranks before the last chosen row, or anywhere where the caps allowed fewer than `k`."""
    if len(chosen) == k:
        rows_N = np.flatnonzero(scores_X >= scores_X[chosen[-1]])
        rows_N = rows_N[~_is_after(scores_X, rows_N, chosen[-1])]
        rows_N = rows_N if eligible.mask_X is None else rows_N[eligible.mask_X[rows_N]]
    else:
        rows_N = np.arange(len(scores_X)) if eligible.mask_X is None else np.flatnonzero(eligible.mask_X)
    rows_N = rows_N[~np.isin(rows_N, chosen)]
    counts = {}
    for tally in tallies:
        admits_N = tally.admits(rows_N)
        counts[tally.name] = len(rows_N) - int(np.count_nonzero(admits_N))
        rows_N = rows_N[admits_N]
    return counts


def _is_after(scores_X: np.ndarray, rows_N: np.ndarray, row: int) -> np.ndarray:
    """Return (N,) bool: ranks after `row`."""
    scores_N = scores_X[rows_N]
    is_after_N: np.ndarray = (scores_N < scores_X[row]) | ((scores_N == scores_X[row]) & (rows_N > row))
    return is_after_N


def _verdicts(
    rules: Rules, seen_rows: Sequence[int] | np.ndarray, items: ItemAttributes
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each rule that the request holds and what it keeps, (X,) bool, in the order of counting."""
    if rules.exclude_seen:
        yield "seen", ~_mark(seen_rows, items.num_items)
    if len(rules.exclude):
        yield "exclude", ~_mark(rules.exclude, items.num_items)
    if rules.allow is not None:
        yield "allow", _mark(rules.allow, items.num_items)
    for name, (any_of, none_of) in rules.attributes.items():
        yield f"attributes.{name}", items.attribute(name).marks(any_of, none_of)
    if rules.first_seen_from is not None:
        yield "first_seen", _first_seen(items) >= rules.first_seen_from


def _mark(rows: Sequence[int] | np.ndarray, num_items: int) -> np.ndarray:
    """Return (X,) bool: the row is among `rows`."""
    marks_X = np.zeros(num_items, dtype=bool)
    known = np.asarray(rows, dtype=np.int64)
    marks_X[known[known >= 0]] = True
    return marks_X


def _first_seen(items: ItemAttributes) -> np.ndarray:
    if items.first_seen_X is None:
        raise InputError(
            "this catalogue does not say when its items were first seen",
            where="first_seen_from",
            todo="Leave it out, or build the catalogue again: `dvc repro`",
        )
    return items.first_seen_X


def _rows(eligible: Eligible) -> np.ndarray | None:
    return None if eligible.mask_X is None else np.flatnonzero(eligible.mask_X)


def check_k(k: int) -> None:
    """Raise InputError where an answer of `k` items makes no sense."""
    if k < 1:
        raise InputError("k is out of range", observed=k, expected="1 or more")


def _check_caps(caps: Mapping[str, int]) -> None:
    for name, most in caps.items():
        if most < 1:
            raise InputError("a cap is out of range", where=f"caps.{name}", observed=most, expected="1 or more")
