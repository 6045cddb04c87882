"""What approximate search costs and misses: faiss' candidates, and what the service makes of the chosen one.

    python -m benchmarks.bench_search                                            # 100,000 and 1,000,000 made items
    python -m benchmarks.bench_search --checkpoint DIR --sequences DIR           # a trained model's items and users too
    python -m benchmarks.bench_search --kinds PQ25x4fs PQ50x4fs SQ8 --items 100000
    python -m benchmarks.bench_search --answers --items 1000000                  # recall under rules, 8 minutes

Three sets of vectors of width 50: `random` unit vectors and queries; `bundles`, 500 items around each of many centres,
directions of unequal weight, queries near items; with a checkpoint `trained`, each of its item vectors repeated with
noise of .3 of its length, queries the encoded histories of its users. A row is one kind of index at the smallest depth
that finds .95 of the ten best: seconds to build, size, candidates, recall, milliseconds with exact scores of the
candidates. Kinds are faiss' factory strings; one thread. With --answers instead: the share of the service's answers
that scoring everything gives too, for more items and under rules; its index and depth are those of a start. Rows are
added to benchmarks/results/search.csv; a run that was stopped goes on behind its last row.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faiss
import numpy as np
import pyarrow as pa
import torch

from benchmarks import recording
from benchmarks.made_service import SHAPE
from benchmarks.recording import Row
from components.catalogue import read_catalogue
from components.console import log, setup_logging
from components.dataset import load_sequences, make_batch
from components.model import build_model
from components.recommender import Recommender, Wishes
from components.serving.rules import Wanted, best_rows
from components.serving.search import build, make_histories

COLUMNS = ("vectors", "items", "queries", "kind", "build_s", "megabytes", "candidates", "recall", "p50_ms", "p99_ms")
KINDS = ("PQ25x4fs", "PQ50x4fs", "SQ8", "RaBitQfs", "IVF1024,PQ50x4fs")
ANSWERS = ("k 10", "k 100", "10% allowed", "100 best excluded", "a quarter by attribute", "caps")
DEPTHS, BEST, DIM, QUERIES, WANTED = (100, 200, 400, 800, 1_600, 3_200, 6_400), 10, 50, 200, 0.95


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def make_random(num_items: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return item vectors and queries, all directions alike."""
    random = np.random.default_rng(0)
    return _unit(random.standard_normal((num_items, DIM))), {"random": _unit(random.standard_normal((QUERIES, DIM)))}


def make_bundles(num_items: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return items around centres, and queries near items."""
    random, weight_D = np.random.default_rng(0), np.arange(1, DIM + 1) ** -0.5
    centres = random.standard_normal((num_items // 500, DIM)) * weight_D
    near = centres[random.integers(len(centres), size=num_items)]
    items = _unit(near + 0.5 * random.standard_normal((num_items, DIM)) * weight_D)
    noise = 0.6 * random.standard_normal((QUERIES, DIM)) * weight_D / np.linalg.norm(weight_D)
    return items, {"near items": _unit(items[random.integers(num_items, size=QUERIES)] + noise)}


def make_trained(num_items: int, checkpoint: Path, sequences: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a trained model's items with others beside each, and two kinds of queries: of its users, and made ones."""
    random, recommender, log_ = np.random.default_rng(0), Recommender.load(checkpoint), load_sequences(sequences)
    vectors = recommender.vectors_XD.numpy()
    copies = np.repeat(vectors, -(-num_items // len(vectors)), axis=0)[:num_items]
    items = _unit(copies + 0.3 * random.standard_normal(copies.shape) / copies.shape[1] ** 0.5)
    users = random.choice(len(log_.starts), QUERIES, replace=False)
    rows = [slice(log_.starts[user], log_.test_starts[user]) for user in users]
    own = [(log_.items[part].astype(np.int64), log_.timestamps[part]) for part in rows]
    made = make_histories(vectors, recommender.catalogue.counts, recommender.max_len)

    def encode(histories: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        batch = make_batch(histories, [int(t[-1]) + 3_600 for _, t in histories], max_len=recommender.max_len)
        with torch.inference_mode():
            return recommender.model(batch)[batch.offsets[1:] - 1].numpy()

    return items, {"users": encode(own), "made histories": encode(made)}


def measure(kind: str, items: np.ndarray, queries: dict[str, np.ndarray]) -> Iterator[Row]:
    """Build one kind of index and yield a row for each set of queries."""
    started = time.perf_counter()
    index = faiss.index_factory(items.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(items[np.random.default_rng(0).permutation(len(items))[:100_000]])
    index.add(items)
    if kind.startswith("IVF"):
        faiss.extract_index_ivf(index).nprobe = 64
    seconds = round(time.perf_counter() - started, 1)
    built = {"build_s": seconds, "megabytes": round(faiss.serialize_index(index).nbytes / 2**20)}
    for name, rows in queries.items():
        best = [best_rows(items @ query, None, BEST) for query in rows]
        for depth in DEPTHS:
            found = _search(index, items, rows, best, depth)
            if found["recall"] >= WANTED:
                break
        yield {"queries": name, "kind": kind} | built | found


def measure_exact(items: np.ndarray, queries: dict[str, np.ndarray]) -> Iterator[Row]:
    """Yield what scoring everything costs."""
    for name, rows in queries.items():
        times = [_seconds(lambda query=query: best_rows(items @ query, None, BEST)) for query in rows[:50]]
        yield {"queries": name, "kind": "exact", "candidates": len(items), "recall": 1.0} | _quantiles(times)


def measure_answers(items: np.ndarray, queries: Mapping[str, np.ndarray], done: Set[tuple[str, ...]]) -> Iterator[Row]:
    """Yield the recall of the service's answers for each set of queries and each of ANSWERS, but for those done."""
    todo = [(name, case) for name in queries for case in ANSWERS if (name, f"answers, {case}") not in done]
    if not todo:
        return
    started = time.perf_counter()
    served = make_recommender(items, list(queries.values())[-1])
    built = {"build_s": round(time.perf_counter() - started, 1)}
    exact = copy.copy(served)
    exact.search = None
    allowed = np.random.default_rng(0).permutation(len(items))[: len(items) // 10].tolist()
    for name, case in todo:
        hits = wanted = 0
        few = QUERIES // (8 if case == "10% allowed" else 2)  # finding 100,000 ids takes a second
        for y_1D in torch.from_numpy(queries[name][:few]).split(1):
            k, wishes = _wishes(case, allowed, exact, y_1D)
            found, right = ({one.item_id for one in r.answer(y_1D, [], k, **wishes).items} for r in (served, exact))
            hits, wanted = hits + len(found & right), wanted + len(right)
        depth = served.search.depth if served.search and case != "caps" else len(items)
        facts = {"queries": name, "kind": f"answers, {case}", "candidates": depth, "recall": round(hits / wanted, 4)}
        yield built | facts


def _wishes(case: str, allowed: list[int], exact: Recommender, y_1D: torch.Tensor) -> tuple[int, Wishes]:
    """Return k and the rules of a case; what is excluded are the very best, as what users have seen often is."""
    rules: dict[str, Callable[[], Wishes]] = {
        "10% allowed": lambda: {"allow": allowed},
        "100 best excluded": lambda: {"exclude": [item.item_id for item in exact.answer(y_1D, [], 100).items]},
        "a quarter by attribute": lambda: {"attributes": {"side": Wanted(("0",))}},
        "caps": lambda: {"caps": {"side": 3}},
    }
    return 100 if case == "k 100" else BEST, rules[case]() if case in rules else {}


def make_recommender(items: np.ndarray, queries: np.ndarray) -> Recommender:
    """Return one whose items have these vectors, searched as the service does, and one attribute that goes with them.

    `side` is which of the first four numbers of an item's vector is the largest.
    """
    num_items, dim = items.shape
    shape = SHAPE | {"dim": dim, "head_dim_qk": dim, "head_dim_v": dim}
    model = build_model("hstu", cast("Any", SimpleNamespace(**shape)), num_items).eval()
    with torch.no_grad():
        model.embedding.item.weight.copy_(torch.from_numpy(items))
    numbers = np.arange(num_items)
    keys, sides = numbers.astype(str), items[:, :4].argmax(1).astype(str)
    table = pa.table({"key": keys, "title": keys, "count": numbers[::-1] + 1, "side": sides})
    facts = {"settings": shape, "popular": []}
    return Recommender(model, facts, read_catalogue(table, key_type="int"), build(items, queries[:64]))


def _search(index: faiss.Index, items: np.ndarray, queries: np.ndarray, best: list[np.ndarray], depth: int) -> Row:
    times, hits = [], 0
    for query, right in zip(queries, best, strict=True):
        started = time.perf_counter()
        found = index.search(query[None], depth)[1][0]
        found = found[found >= 0]
        chosen = found[best_rows(items[found] @ query, None, BEST)]
        times.append(time.perf_counter() - started)
        hits += len(np.intersect1d(chosen, right))
    return {"candidates": depth, "recall": round(hits / BEST / len(queries), 4)} | _quantiles(times)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _quantiles(seconds: Sequence[float]) -> Row:
    return {name: round(1e3 * float(np.quantile(seconds, q)), 2) for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--answers", action="store_true", help="recall of the service's answers, no kinds of indexes")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sequences", type=Path)
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "search.csv")
    return parser.parse_args(arguments)


def _measure_all(
    args: argparse.Namespace,
    make: Callable[[int], tuple[np.ndarray, dict[str, np.ndarray]]],
    num_items: int,
    done: Set[tuple[str, ...]],
) -> Iterator[Row]:
    """Yield the rows of one set of vectors that are not done."""
    items, queries = make(num_items)
    if args.answers:
        yield from measure_answers(items, queries, done)
        return
    for kind in ("exact", *args.kinds):
        left = {name: rows for name, rows in queries.items() if (name, kind) not in done}
        if left:
            yield from measure_exact(items, left) if kind == "exact" else measure(kind, items, left)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything; a row is appended when it is done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    facts = recording.describe_run("benchmarks.bench_search", arguments, torch.device("cpu"), 1)
    makers: dict[str, Callable[[int], tuple[np.ndarray, dict[str, np.ndarray]]]] = {
        "random": make_random,
        "bundles": make_bundles,
    }
    if args.checkpoint:
        makers["trained"] = lambda num_items: make_trained(num_items, args.checkpoint, args.sequences)
    done = recording.find_done(args.results, facts, ("vectors", "items", "queries", "kind"))
    rows = []
    for num_items in args.items:
        for vectors, make in makers.items():
            done_here = {found[2:] for found in done if found[:2] == (vectors, str(num_items))}
            for row in _measure_all(args, make, num_items, done_here):
                rows.append(facts | dict.fromkeys(COLUMNS, "") | {"vectors": vectors, "items": num_items} | row)
                recording.append_rows(args.results, rows[-1:])
                log.info("%s", "  ".join(f"{name} {rows[-1][name]}" for name in COLUMNS))
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
