"""How fast the service answers, what it stands, and what it does beyond that: a real `bentoml serve` on loopback.

    python -m benchmarks.bench_service                                  # 3,706 items, one worker, about 3 minutes
    python -m benchmarks.bench_service --items 100000 --seconds 20
    python -m benchmarks.bench_service --items 1000000 --share-only     # the model's own share, without HTTP
    python -m benchmarks.bench_service --items 1000000 --start-only     # start to ready and memory, no load
    python -m benchmarks.bench_service --rectools OTHER_VENV/bin/python # one user: RecTools beside ours, no load

The model has random weights (benchmarks/made_service.py), which changes no time. Its own share is measured in this
process, one thread, without HTTP. Rows are added to benchmarks/results/service.csv; a row's `target` is what
docs/serving.md promises on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import torch

from benchmarks import recording
from benchmarks.made_service import EVENTS, K, Server, make_bodies, run_load, serving, write_model
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.recommender import Recommender
from components.serving.engine import Engine
from components.serving.history_store import StoredEvent
from components.serving.rules import Wanted

RECTOOLS_MODELS = ("hstu", "sasrec")
CANDIDATES = 1_000
CHECKPOINT = Path("artifacts", "checkpoints", "time_split", "hstu")
COLUMNS = ("case", "items", "p50_ms", "p99_ms", "per_s", "facts", "target")


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
        stored = run_load(server, "/recommend", store_histories(server, recommend), folder, seconds=args.seconds / 4)
        yield _row("a stored user, 200 events, HTTP", stored, "")
        if args.rectools:
            yield from measure_rectools(args, folder, alone, stored)
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


def store_histories(server: Server, bodies: Sequence[Row]) -> list[Row]:
    """Send each request's history to /events; return the requests that name the user instead."""
    named = []
    for number, body in enumerate(bodies):
        events = [{"event_id": str(n), **event} for n, event in enumerate(body["history"])]
        kept = httpx.post(f"{server.url}/events", json={"user_id": f"user {number}", "events": events})
        kept.raise_for_status()
        rest = {name: value for name, value in body.items() if name != "history"}
        named.append(rest | {"user_id": f"user {number}"})
    return named


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


def measure_rectools(args: argparse.Namespace, folder: Path, http: Row, stored: Row) -> Iterator[Row]:
    """Yield RecTools' time for one user, in another interpreter, as multiples of what ours take for the like.

    CPU time of one thread on both sides; the routes' is their client's waiting time, as their work is in several
    processes. RecTools looks a user up in its dataset and encodes the history at every call; `recommend` is given the
    history and encodes it, a stored user is looked up and was encoded before, but for the time of the request.
    """
    script = str(recording.RESULTS.parent / "rectools_one_user.py")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for model in RECTOOLS_MODELS:
        command = [args.rectools, script, f"--model={model}", f"--items={args.items}", f"--events={EVENTS}", f"--k={K}"]
        done = subprocess.run(command, env=one_thread, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        ours = time_ours(args, folder) | {"HTTP": http["p50_ms"], "HTTP, stored user": stored["p50_ms"]}
        for case, measured in found["cases"].items():
            quantiles = _quantiles(measured["milliseconds"])
            times = [f"{quantiles['p50_ms'] / one:.0f} times {what} ({one:.2f} ms)" for what, one in ours.items()]
            yield {
                "case": f"RecTools {found['rectools']} {model}, {case}",
                **quantiles,
                "facts": f"{', '.join(times)}, {len(measured['milliseconds'])} calls",
                "target": "50 times",
            }


def time_ours(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return the median CPU milliseconds of an answer to a history, and to a stored user with nothing new."""
    torch.set_num_threads(1)
    recommender, history = Recommender.load(folder / CHECKPOINT), made_history(args.items)
    user = StoredUser(recommender, folder / "rectools.db", history)
    works: dict[str, Callable[[], object]] = {
        "recommend": lambda: recommender.recommend(history, K, 10**6),
        "a stored user": user.ask,
    }
    found = {
        what: float(np.median(_time(work, args.rounds, time.process_time)[1:]))  # the first encodes the stored user
        for what, work in works.items()
    }
    user.engine.close()
    return found


class StoredUser:
    """A user of an engine over SQLite, who asks a second later each time."""

    def __init__(self, recommender: Recommender, store: Path, history: Sequence[tuple[int, int]]) -> None:
        self.engine = Engine(recommender, store_url=f"sqlite:///{store}")
        self.num_events, self.now = 0, 10**6
        self.add_events([item for item, _ in history])

    def add_events(self, items: Sequence[int]) -> None:
        """Append events, a second apart."""
        numbered = enumerate(items, self.num_events)
        self.engine.append("ann", [StoredEvent(str(n), item, n) for n, item in numbered])
        self.num_events += len(items)

    def read(self) -> None:
        """Read the history alone."""
        self.engine.read(user_id="ann", request_time=self.now)

    def ask(self) -> None:
        """Read, encode and answer."""
        self.now += 1
        glance = self.engine.look(user_id="ann", request_time=self.now)
        glance.recommender.answer(glance.y_1D, glance.seen_rows, K)


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

    user = StoredUser(recommender, folder / "histories.db", history)
    user.ask()
    both, model = [], []
    for number in range(args.rounds):
        user.add_events([number % args.items])
        _, read = _time(user.read, 2)  # the first after an event takes .3 ms more, and `ask` reads after it, too
        both += _time(user.ask, 1)
        model.append(both[-1] - read)
    facts = f"{user.engine.states.counts.encoded if user.engine.states else 0} windows encoded whole"
    yield {"case": "stored, one new event: model and store", **_quantiles(both), "facts": facts}
    target = "p50 1.5 ms"
    yield {"case": "stored, one new event: the model's share", **_quantiles(model), "facts": facts, "target": target}
    yield {"case": "stored, nothing new: model and store", **_quantiles(_time(user.ask, args.rounds))}
    user.engine.close()


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
