"""What approximate search costs and misses: faiss' candidates, and what the service makes of the chosen one.

    python -m benchmarks.bench_search                                            # 100,000 and 1,000,000 made items
    python -m benchmarks.bench_search --checkpoint DIR --sequences DIR           # a trained model's items and users too
    python -m benchmarks.bench_search --kinds PQ25x4fs PQ50x4fs SQ8 --items 100000

Three sets of vectors of width 50: `random` unit vectors and queries; `bundles`, 500 items around each of many centres,
directions of unequal weight, queries near items; with a checkpoint `trained`, each of its item vectors repeated with
noise of .3 of its length, queries the encoded histories of its users. A row is one kind of index at the smallest depth
that finds .95 of the ten best: seconds to build, size, candidates, recall, milliseconds with exact scores of the
candidates. Kinds are faiss' factory strings; one thread. Rows are added to benchmarks/results/search.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks import recording
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.dataset import load_sequences, make_batch
from components.recommender import Recommender
from components.serving.rules import best_rows
from components.serving.search import make_histories

COLUMNS = ("vectors", "items", "queries", "kind", "build_s", "megabytes", "candidates", "recall", "p50_ms", "p99_ms")
KINDS = ("PQ25x4fs", "PQ50x4fs", "SQ8", "RaBitQfs", "IVF1024,PQ50x4fs")
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
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sequences", type=Path)
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "search.csv")
    return parser.parse_args(arguments)


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
    rows = []
    for num_items in args.items:
        for vectors, make in makers.items():
            items, queries = make(num_items)
            nothing = dict.fromkeys(COLUMNS, "") | {"vectors": vectors, "items": num_items}
            for found in [measure_exact(items, queries), *(measure(kind, items, queries) for kind in args.kinds)]:
                for row in found:
                    rows.append(facts | nothing | row)
                    recording.append_rows(args.results, rows[-1:])
                    log.info("%s", "  ".join(f"{name} {rows[-1][name]}" for name in COLUMNS))
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
