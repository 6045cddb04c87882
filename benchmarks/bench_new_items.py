"""What the vectors of inserted items are worth: held-out items of a trained model get theirs from title and attributes.

    python -m benchmarks.bench_new_items --checkpoint CHECKPOINT --sequences SEQUENCES     # 2 minutes at 1,000 users
    python -m benchmarks.bench_new_items --sizes 3706 1000000                              # what an insertion costs

Each fifth of the items is held out in turn: the map is fitted to the others, and the held-out rows of the table are
replaced by mapped ones, by those of length 1, by those without the spread too, by random ones, by the mean, or left as
they are. Where the next
item is a held-out one it is ranked in the whole catalogue, history filtered, ties at their expected rank. Exposure is
the share of all top-10 places that held-out items take; `true` has what they deserve. What they take others lose:
`hr@10_all` is over all targets, held out or not. Histories keep their events of
held-out items, whose rows stand for them there too. Rows are added to benchmarks/results/new_items.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import recording
from benchmarks.made_service import SHAPE
from benchmarks.recording import Row
from components.catalogue import Catalogue, NewItem
from components.console import setup_logging
from components.dataset import Sequences, load_sequences, make_batch
from components.model import build_model
from components.recommender import Recommender
from components.serving.attributes import ItemAttributes
from components.serving.item_map import FOLDS, ItemMap, describe_items, fit_item_map

COLUMNS = (
    "case",
    "num_items",
    "targets",
    "hr@10",
    "hr@10_all",
    "ndcg@10",
    "median_rank",
    "exposure",
    "never_shown",
    "milliseconds",
)
_TOP, _BATCH = 10, 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, append and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sequences", type=Path, help="those that the checkpoint was trained on")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="catalogues to insert into")
    parser.add_argument("--data", default="made", help="the data set's name, for the rows")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "new_items.csv")
    options = parser.parse_args(arguments)
    setup_logging()
    torch.set_num_threads(1)
    run = recording.describe_run(
        "benchmarks.bench_new_items", sys.argv[1:] if arguments is None else arguments, torch.device("cpu"), 1
    )
    found = (
        list(judge(Recommender.load(options.checkpoint), load_sequences(options.sequences), options.users))
        if options.checkpoint
        else []
    )
    found += [time_insertion(size) for size in options.sizes]
    rows = [{"data": options.data, **dict.fromkeys(COLUMNS, ""), **row, **run} for row in found]
    recording.append_rows(options.results, rows)
    return recording.close(options.results, rows, COLUMNS, {})


def judge(recommender: Recommender, sequences: Sequences, num_users: int) -> Iterator[Row]:
    """Yield a row for each way of making a held-out item's vector."""
    table_XD = recommender.model.embedding.item.weight.detach().clone()
    fold_X = np.random.default_rng(0).permutation(len(table_XD)) % FOLDS
    users = _choose_users(sequences, num_users)
    for case, (rows_XD, length_X) in _ways(recommender, table_XD, fold_X).items():
        tally = _Tally(len(table_XD))
        for fold in range(FOLDS):
            held_X = torch.from_numpy(fold_X == fold)
            with torch.no_grad():
                recommender.model.embedding.item.weight.copy_(torch.where(held_X[:, None], rows_XD, table_XD))
            for start in range(0, len(users), _BATCH):
                factor_X = np.where(held_X.numpy(), length_X, 1.0)
                _rank(recommender, sequences, users[start : start + _BATCH], held_X.numpy(), factor_X, tally)
        yield {"case": case, "num_items": len(table_XD), **tally.row()}


def _ways(recommender: Recommender, table_XD: Tensor, fold_X: np.ndarray) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Return (X, D) and the factors (X,) of scores for each case, row x of them made without the items of x's fold."""
    norm = table_XD.norm(dim=1).median()
    mapped_XD, narrow_XD, mean_XD = table_XD.clone(), table_XD.clone(), table_XD.clone()
    ones_X = np.ones(len(table_XD))
    length_X = ones_X.copy()
    items = list(describe_items(recommender.catalogue))
    for fold in range(FOLDS):
        held = np.flatnonzero(fold_X == fold)
        item_map = _fit_without(recommender, table_XD.numpy(), np.flatnonzero(fold_X != fold))
        narrow = dataclasses.replace(item_map, worth=dataclasses.replace(item_map.worth, spread=1.0))
        mapped_XD[held] = item_map.vectors(items[row] for row in held)
        narrow_XD[held] = narrow.vectors(items[row] for row in held)
        length_X[held] = item_map.worth.length
        mean_D = torch.nn.functional.normalize(table_XD[torch.from_numpy(fold_X != fold)]).mean(0)
        mean_XD[held] = mean_D / mean_D.norm() * norm
    random_XD = torch.nn.functional.normalize(torch.randn(table_XD.shape, generator=torch.Generator().manual_seed(0)))
    return {
        "true": (table_XD, ones_X),
        "mapped": (mapped_XD, length_X),
        "mapped, length 1": (mapped_XD, ones_X),
        "mapped, spread 1": (narrow_XD, ones_X),
        "mean": (mean_XD, ones_X),
        "random": (random_XD * norm, ones_X),
    }


def _fit_without(recommender: Recommender, table_XD: np.ndarray, kept: np.ndarray) -> ItemMap:
    """Fit to some items only, its own cross-validation and histories included."""
    catalogue, attributes = recommender.catalogue, recommender.catalogue.attributes
    part = SimpleNamespace(
        item_ids=[catalogue.item_ids[row] for row in kept],
        titles=[catalogue.titles[row] for row in kept],
        attributes=SimpleNamespace(names=attributes.names, values=lambda row, name: attributes.values(kept[row], name)),
    )
    item_map = fit_item_map(cast("Catalogue", part), table_XD[kept], recommender.ask_made(kept))
    if item_map is None:
        raise SystemExit("the metadata of this catalogue says nothing about its vectors")
    return item_map


class _Tally:
    """Ranks of held-out targets, and how often each held-out item was shown."""

    def __init__(self, num_items: int) -> None:
        self.ranks: list[float] = []
        self.hits_of_others: list[bool] = []
        self.shown_X = np.zeros(num_items, dtype=np.int64)
        self.places = 0

    def row(self) -> Row:
        ranks = np.array(self.ranks)
        is_hit = ranks < _TOP
        return {
            "targets": len(ranks),
            "hr@10": float(is_hit.mean()),
            "hr@10_all": float(np.mean([*is_hit, *self.hits_of_others])),
            "ndcg@10": float(np.where(is_hit, 1 / np.log2(ranks + 2), 0).mean()),
            "median_rank": float(np.median(ranks)) + 1,
            "exposure": float(self.shown_X.sum() / self.places),
            "never_shown": float((self.shown_X == 0).mean()),
        }


def _choose_users(sequences: Sequences, num_users: int) -> np.ndarray:
    """Return users with a history and a known first test item, always the same."""
    first = np.minimum(sequences.test_starts, len(sequences.items) - 1)
    has_target = (sequences.ends > sequences.test_starts) & (sequences.items[first] >= 0)
    users = np.flatnonzero(has_target & (sequences.test_starts > sequences.starts))
    return np.random.default_rng(1).permutation(users)[:num_users]


def _rank(
    recommender: Recommender,
    sequences: Sequences,
    users: np.ndarray,
    held_X: np.ndarray,
    factor_X: np.ndarray,
    tally: _Tally,
) -> None:
    parts = [slice(sequences.starts[user], sequences.test_starts[user]) for user in users]
    histories = [(sequences.items[part], sequences.timestamps[part]) for part in parts]
    times = [int(sequences.timestamps[part.stop]) for part in parts]
    batch = make_batch(histories, times, max_len=recommender.max_len)
    is_empty = batch.offsets.diff() == 0
    with torch.inference_mode():
        y_UD = recommender.model(batch)[(batch.offsets[1:] - 1).clamp(min=0)]
        scores_UX = recommender.model.score(y_UD).numpy() * factor_X.astype(np.float32)
    for scores_X, part, (items, _), empty in zip(scores_UX, parts, histories, is_empty.tolist(), strict=True):
        if not empty:
            _count(scores_X, items[items >= 0], int(sequences.items[part.stop]), held_X, tally)


def _count(scores_X: np.ndarray, seen: np.ndarray, target: int, held_X: np.ndarray, tally: _Tally) -> None:
    score = scores_X[target]
    scores_X[seen] = -np.inf
    scores_X[target] = score
    top = np.argpartition(-scores_X, _TOP)[:_TOP]
    tally.shown_X[top[held_X[top]]] += 1
    tally.places += _TOP
    rank = float((scores_X > score).sum() + ((scores_X == score).sum() - 1) / 2)
    if held_X[target]:
        tally.ranks.append(rank)
    else:
        tally.hits_of_others.append(rank < _TOP)


def time_insertion(num_items: int) -> Row:
    """Return how long a recommender of D 50 takes to get 100 more items: the least of 5."""
    model = build_model("hstu", cast("Any", SimpleNamespace(**SHAPE)), num_items).eval()
    keys = [str(number) for number in range(num_items)]
    catalogue = Catalogue(
        tuple(keys),
        tuple(keys),
        np.zeros(num_items, np.int64),
        {key: row for row, key in enumerate(keys)},
        ItemAttributes(num_items),
    )
    trained = Recommender(model, {"settings": SHAPE, "popular": [], "num_items": num_items}, catalogue)
    items = [NewItem(f"new-{number}", "A title", {}) for number in range(100)]
    rows_MD = torch.randn(100, 50)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        trained.with_items(items, rows_MD)
        seconds.append(time.perf_counter() - start)
    return {
        "case": "100 items into a running recommender",
        "num_items": num_items,
        "milliseconds": 1_000 * min(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
