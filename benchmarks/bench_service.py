"""How fast the service answers, what it stands, and what it does beyond that: a real `bentoml serve` on loopback.

    python -m benchmarks.bench_service                                  # 3,706 items, one worker, about 3 minutes
    python -m benchmarks.bench_service --items 100000 --seconds 20
    python -m benchmarks.bench_service --items 1000000 --share-only     # the model's own share, without HTTP
    python -m benchmarks.bench_service --items 1000000 --start-only     # start to ready and memory, no load
    python -m benchmarks.bench_service --rectools OTHER_VENV/bin/python # one user: RecTools beside ours, no load

The model has random weights in the shape of recipes/ml-1m.yaml (2 blocks, D 50, N 200), which changes no time, and is
packaged and served like any other. The load comes from a process of its own (benchmarks/load.py). The model's own share
is measured in this process, one thread, without HTTP. Rows are added to benchmarks/results/service.csv; a row's
`target` is what docs/serving.md promises on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import recording
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.files import write_json
from components.recommender import Recommender
from components.serving.engine import Engine
from components.serving.history_store import StoredEvent
from components.serving.rules import Wanted

SHAPE = {
    "max_len": 200,
    "dim": 50,
    "num_blocks": 2,
    "num_heads": 1,
    "head_dim_qk": 50,
    "head_dim_v": 50,
    "dropout": 0.2,
    "bias": "position+time",
    "bias_per_head": False,
    "attention": "pointwise",
    "feed_forward": "none",
    "gated_residual": False,
    "head": "dot",
    "mixture_query_vectors": 1,
    "mixture_item_vectors": 1,
    "request_time_dropout": 0.0,
    "backend": "auto",
}
RECTOOLS_MODELS = ("hstu", "sasrec")
EVENTS, CANDIDATES, K, BODIES = 200, 1_000, 10, 64
MOST_SECONDS_TO_READY = 300
COLUMNS = ("case", "items", "p50_ms", "p99_ms", "per_s", "facts", "target")


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    process: psutil.Process
    seconds_to_ready: float

    @property
    def megabytes(self) -> float:
        """Resident memory of all its processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes) / 2**20


def write_model(folder: Path, num_items: int) -> Path:
    """Write a checkpoint of random weights and what packaging wants beside it; return the checkpoint."""
    from safetensors.torch import save_file

    from components.model import build_model

    checkpoint = folder / "artifacts" / "checkpoints" / "time_split" / "hstu"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(0)
    model = build_model("hstu", cast("Any", SimpleNamespace(**SHAPE)), num_items)
    save_file(model.state_dict(), checkpoint / "weights.safetensors")
    numbers = np.arange(num_items)
    genres = np.array(["Action|Comedy", "Comedy", "Drama|Thriller", "Drama"])[numbers % 4]
    catalogue = {
        "item_id": numbers,
        "key": numbers.astype(str),
        "title": [f"Item {number}" for number in numbers],
        "genres": genres,
        "count": numbers[::-1] + 1,
        "first_seen": numbers,
        "last_seen": numbers + 1,
    }
    pq.write_table(pa.table(catalogue), checkpoint / "catalogue.parquet")
    split = {"key_type": "int", "valid_end": 1, "train_end": 0}
    facts = {"model": "hstu", "protocol": "time_split", "settings": SHAPE, "num_items": num_items, "popular": [0]}
    write_json(checkpoint / "checkpoint.json", facts | {"data_hash": "none", "split": split})
    reports = folder / "reports"
    write_json(reports / "gate.json", {"verdict": "accepted", "model": "hstu", "protocol": "time_split"})
    ndcg = {"value": 0.0, "low": 0.0, "high": 0.0}
    write_json(reports / "metrics.json", {"time_split": {"hstu": {"ndcg@10": ndcg}}})
    return checkpoint


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Package the model of `folder`, import the Bento into a store there, and serve it."""
    from components import packaging
    from components.settings import PackageSettings

    environment = os.environ | {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    packaged = packaging.package(
        PackageSettings(model="hstu", name="hstuflow"), artifacts=folder / "artifacts", reports=folder / "reports"
    )
    bentoml = [sys.executable, "-P", "-m", "bentoml"]
    export = str(folder / "artifacts" / "hstuflow.bento")
    subprocess.run([*bentoml, "import", export], env=environment, check=True, capture_output=True, cwd=folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [*bentoml, "serve", packaged["tag"], "--host", "127.0.0.1", "--port", str(port)]
    started = time.monotonic()
    with (folder / "server.log").open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, server, folder / "server.log")
        yield Server(url, psutil.Process(server.pid), time.monotonic() - started)
    finally:
        workers = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait()
        _, left = psutil.wait_procs(workers, timeout=10)
        for worker in left:
            worker.kill()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + MOST_SECONDS_TO_READY
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the service did not start:\n{output.read_text()}")


def make_bodies(num_items: int, **more: object) -> list[dict[str, Any]]:
    """Return requests of EVENTS events each."""
    random = np.random.default_rng(0)
    bodies = []
    for _ in range(BODIES):
        items, times = random.integers(num_items, size=EVENTS).tolist(), random.integers(10**9, size=EVENTS).tolist()
        history = [{"item_id": item, "timestamp": when} for item, when in zip(items, sorted(times), strict=True)]
        bodies.append({"history": history, "request_time": 10**9, **more})
    return bodies


def run_load(server: Server, route: str, bodies: Sequence[dict[str, Any]], folder: Path, **options: float) -> Row:
    """Run benchmarks/load.py against a route; return what it prints."""
    file = folder / "bodies.json"
    file.write_text(json.dumps(bodies))
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.load", f"--url={server.url}{route}", f"--bodies={file}", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=recording.RESULTS.parent.parent)
    found: Row = json.loads(done.stdout)
    return found


def measure_http(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Serve the model and yield a row a case."""
    with serving(folder) as server:
        memory = f"ready after {server.seconds_to_ready:.1f} s, {server.megabytes:.0f} MB in all processes"
        yield {"case": "start", "facts": memory, "target": "20 s, 1,024 MB"}
        if args.start_only:
            return
        recommend = make_bodies(args.items, k=K)
        run_load(server, "/recommend", recommend, folder, seconds=min(2.0, args.seconds))  # warm
        alone = run_load(server, "/recommend", recommend, folder, seconds=args.seconds / 4)
        yield _row("one request, 200 events, HTTP", alone, "p50 10 ms, p99 25 ms")
        if args.rectools:
            yield from measure_rectools(args, folder / "artifacts" / "checkpoints" / "time_split" / "hstu", alone)
            return
        candidates = np.random.default_rng(1).permutation(args.items)[:CANDIDATES].tolist()
        ranked = run_load(
            server, "/rank", make_bodies(args.items, candidates=candidates), folder, seconds=args.seconds / 4
        )
        yield _row(f"/rank, {len(candidates):,} candidates, HTTP", ranked, "p50 12 ms")
        most = run_load(server, "/recommend", recommend, folder, seconds=args.seconds / 4, connections=8)
        yield _row("capacity, 8 connections", most, "")
        capacity = most["answered_per_s"]
        steady = run_load(server, "/recommend", recommend, folder, seconds=args.seconds, rate=0.7 * capacity)
        yield _row("70% of the capacity", steady, "0 errors, p99 100 ms")
        flood = run_load(server, "/recommend", recommend, folder, seconds=args.seconds / 2, rate=5 * capacity)
        yield _row("5 times the capacity", flood, "only 200, 429, 503, 504; 0 wrong")
        after = run_load(server, "/recommend", recommend, folder, seconds=5, rate=0.3 * capacity)
        yield _row("the 5 s after that, 30%", after, "p99 as before")


def _row(case: str, found: Row, target: str) -> Row:
    facts = ", ".join(f"{status}: {count:,}" for status, count in found["statuses"].items())
    facts += f", {found['wrong']} wrong" if found["wrong"] else ""
    return {
        "case": case,
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "per_s": found["answered_per_s"],
        "facts": facts,
        "target": target,
    }


def measure_rectools(args: argparse.Namespace, checkpoint: Path, http: Row) -> Iterator[Row]:
    """Yield RecTools' time for one user, in another interpreter, as multiples of our model's and our HTTP route's.

    CPU time of one thread on both sides; the route's is its client's waiting time, as its work is in several processes.
    """
    torch.set_num_threads(1)
    recommender, history = Recommender.load(checkpoint), made_history(args.items)
    script = str(recording.RESULTS.parent / "rectools_one_user.py")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for model in RECTOOLS_MODELS:
        command = [args.rectools, script, f"--model={model}", f"--items={args.items}", f"--events={EVENTS}", f"--k={K}"]
        done = subprocess.run(command, env=one_thread, check=True, capture_output=True, text=True)
        ours = float(np.median(_time(lambda: recommender.recommend(history, K, 10**6), args.rounds, time.process_time)))
        found = json.loads(done.stdout)
        for case, measured in found["cases"].items():
            quantiles = _quantiles(measured["milliseconds"])
            times = [f"{quantiles['p50_ms'] / one:.0f} times {what}" for one, what in _ours(ours, http)]
            facts = f"{', '.join(times)}, {len(measured['milliseconds'])} calls"
            yield {
                "case": f"RecTools {found['rectools']} {model}, {case}",
                **quantiles,
                "facts": facts,
                "target": "50 times",
            }


def _ours(milliseconds: float, http: Row) -> list[tuple[float, str]]:
    return [(milliseconds, f"recommend ({milliseconds:.2f} ms)"), (http["p50_ms"], f"HTTP ({http['p50_ms']:.2f} ms)")]


def made_history(num_items: int) -> list[tuple[int, int]]:
    """Return EVENTS events of random items, a second apart."""
    items = np.random.default_rng(0).integers(num_items, size=EVENTS).tolist()
    return list(zip(items, range(EVENTS), strict=True))


def measure_model(args: argparse.Namespace, folder: Path, checkpoint: Path) -> Iterator[Row]:
    """Yield the model's own share of a request, and of one to a stored history that has just got an event."""
    torch.set_num_threads(1)
    recommender = Recommender.load(checkpoint)
    history = made_history(args.items)
    times = _time(lambda: recommender.recommend(history, K, 10**6), args.rounds)
    target = "p50 3 ms; 5 at 100k; 8 at 1M items"
    yield {"case": "model's share: 200 events", **_quantiles(times), "facts": _searched(recommender), "target": target}
    yield from measure_rules(args, recommender, history)

    engine = Engine(recommender, store_url=f"sqlite:///{folder / 'histories.db'}")
    engine.append("ann", [StoredEvent(str(n), item, n) for n, (item, _) in enumerate(history)])
    number = EVENTS

    def ask_after_an_event() -> None:
        glance = engine.look(user_id="ann", request_time=10**6)
        recommender.answer(glance.y_1D, glance.seen_rows, K)

    both, model = [], []
    ask_after_an_event()
    for _ in range(args.rounds):
        engine.append("ann", [StoredEvent(str(number), number % args.items, number)])
        number += 1
        [read] = _time(lambda: engine.read(user_id="ann", request_time=10**6), 1)
        both += _time(ask_after_an_event, 1)
        model.append(both[-1] - read)
    engine.close()
    facts = f"{engine.states.counts.encoded if engine.states else 0} windows encoded whole"
    yield {"case": "stored, one new event: model and store", **_quantiles(both), "facts": facts}
    target = "p50 1.5 ms"
    yield {"case": "stored, one new event: the model's share", **_quantiles(model), "facts": facts, "target": target}


def measure_rules(
    args: argparse.Namespace, recommender: Recommender, history: Sequence[tuple[int, int]]
) -> Iterator[Row]:
    """Yield the same share with rules, and that of other routes: what is not searched scores the whole catalogue."""
    rows, times = recommender.read(history)
    y_1D = recommender.encode(rows, times, 10**6)
    some = np.random.default_rng(1).permutation(args.items)[:CANDIDATES].tolist()
    works: dict[str, Callable[[], object]] = {
        "answer": lambda: recommender.answer(y_1D, rows, K),
        "answer, k 100": lambda: recommender.answer(y_1D, rows, 100),
        "answer, a filter that keeps half": lambda: recommender.answer(
            y_1D, rows, K, attributes={"genres": Wanted(("Drama",))}
        ),
        "answer, 1,000 allowed": lambda: recommender.answer(y_1D, rows, K, allow=some),
        "answer, caps": lambda: recommender.answer(y_1D, rows, K, caps={"genres": 3}),
        "rank 1,000": lambda: recommender.rank(y_1D, some),
        "similar": lambda: recommender.similar(some[0], K),
        "popular": lambda: recommender.answer(None, rows, K),
    }
    for name, work in works.items():
        work()
        yield {"case": f"encoded already: {name}", **_quantiles(_time(work, min(args.rounds, 100)))}


def _searched(recommender: Recommender) -> str:
    search = recommender.search
    return f"{search.depth} candidates, recall@10 {search.recall:.3f}" if search else "exact"


def _time(work: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return milliseconds of each round."""
    found = []
    for _ in range(rounds):
        started = clock()
        work()
        found.append(1e3 * (clock() - started))
    return found


def _quantiles(times: Sequence[float]) -> Row:
    return {name: round(float(np.quantile(times, q)), 2) for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=3_706)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the steady load; others are parts of it")
    parser.add_argument("--rounds", type=int, default=500, help="of the model's own share")
    parser.add_argument("--share-only", action="store_true", help="measure the model's own share, without HTTP")
    parser.add_argument("--start-only", action="store_true", help="measure start to ready and memory, without load")
    parser.add_argument(
        "--rectools", help="a Python that has rectools[torch], to time beside ours; not needed otherwise"
    )
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "service.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything; a row is appended when it is done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    facts = recording.describe_run("benchmarks.bench_service", arguments, torch.device("cpu"), 1)
    nothing = dict.fromkeys(COLUMNS, "") | {"items": args.items}
    rows = []
    with tempfile.TemporaryDirectory(prefix="hstuflow-service-") as name:
        checkpoint = write_model(Path(name), args.items)
        share, http = measure_model(args, Path(name), checkpoint), measure_http(args, Path(name))
        for measure in [share] * (not args.start_only) + [http] * (not args.share_only):
            for row in measure:
                rows.append(facts | nothing | row)
                recording.append_rows(args.results, rows[-1:])
                log.info("%s: p50 %s ms, p99 %s ms %s", *(rows[-1][c] for c in ("case", "p50_ms", "p99_ms", "facts")))
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
