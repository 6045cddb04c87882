"""What the service's sliding window costs in quality, and what it spares in time.

    python -m benchmarks.bench_windows --checkpoint artifacts/checkpoints/leave_one_out/hstu \
        --sequences artifacts/sequences/leave_one_out

A stored history is seen through a window of 3N/4 to N events (components/serving/user_states.py), where evaluation uses
the last N. The same test histories are ranked through both: `as served` with the window that each user has at that
moment, `shortest` with N - N/4 + 1 events for everybody who has more than N, which is the window right after it slid.
Differences are paired by user, the window minus the last N. The second part times an arriving event, ours against
encoding the window of N anew, in CPU time of one thread. Rows are added to benchmarks/results/windows.csv.

Shapes: T targets, N max_len.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import recording
from benchmarks.recording import Row
from components.checkpoint import load_model
from components.console import setup_logging
from components.dataset import load_sequences
from components.metrics import average_by_user, expected_hit_rate, expected_ndcg
from components.model.hstu import HSTU
from components.model.incremental import Encoder
from components.ranking.blocks import ModelScorer, rank_catalogue
from components.ranking.paired import compare_users
from components.ranking.targets import Targets, find_targets
from components.serving.user_states import window_start

if TYPE_CHECKING:
    from components.metrics import Ranks
    from components.model import SequenceModel

K = 10
METRICS: Mapping[str, Callable[[Ranks, int], Tensor]] = {"ndcg@10": expected_ndcg, "hr@10": expected_hit_rate}
COLUMNS = ("case", "metric", "users", "last_n", "windowed", "difference", "low", "high", "cpu_ms", "worst_ms")
_SAMPLES, _CONFIDENCE = 2_000, 0.95

Starts = Callable[[int, int], int]  # (events of a user, N) -> number of the window's oldest event


def shortest_start(total: int, max_len: int) -> int:
    """Return where a window begins that has just slid; the whole history as long as it fits."""
    return 0 if total <= max_len else total - (max_len - max_len // 4 + 1)


CASES: Mapping[str, Starts] = {"as served": window_start, "shortest": shortest_start}


@dataclass(frozen=True)
class WindowScorer:
    """A model that sees histories through other windows than the last N events."""

    scorer: ModelScorer
    max_len: int
    start: Starts

    def __call__(self, targets: Targets) -> Tensor:
        """Return (T, X)."""
        lengths = targets.history_lengths.tolist()
        starts = np.array([self.start(length, self.max_len) for length in lengths], dtype=np.int64)
        return self.scorer(replace(targets, firsts=targets.firsts + starts))


def measure_quality(model: SequenceModel, max_len: int, targets: Targets, num_items: int) -> Iterator[Row]:
    """Yield paired differences of each case: over the users whose window is another one, and over all."""
    last_n = ModelScorer(model, max_len)
    scorers = {"last n": last_n} | {name: WindowScorer(last_n, max_len, start) for name, start in CASES.items()}
    ranked = rank_catalogue(scorers, targets, num_items, block_bytes=32 << 20, what="ranking")
    for case, start in CASES.items():
        differs = np.array([_differs(length, max_len, start) for length in targets.history_lengths.tolist()])
        for users, chosen in (("another window", differs), ("all", np.ones_like(differs))):
            for metric, judge in METRICS.items():
                a_T, b_T = (judge(ranked[name]["filtered"], K) for name in (case, "last n"))
                yield {"case": f"{case}, {users}", "metric": metric, **_compare(a_T, b_T, targets, chosen)}


def _differs(length: int, max_len: int, start: Starts) -> bool:
    return start(length, max_len) != max(length - max_len, 0)


def _compare(a_T: Tensor, b_T: Tensor, targets: Targets, chosen: np.ndarray) -> Row:
    users_T = torch.from_numpy(targets.users[chosen])
    if len(users_T) == 0:
        return {"users": 0}
    a_U, b_U = (average_by_user(values_T[torch.from_numpy(chosen)], users_T)[1] for values_T in (a_T, b_T))
    found = compare_users(a_U, b_U, samples=_SAMPLES, confidence=_CONFIDENCE, seed=0)
    means = {"windowed": float(a_U.mean()), "last_n": float(b_U.mean())}
    interval = {name: f"{getattr(found, name):+.4f}" for name in ("difference", "low", "high")}
    return {"users": found.num_users, **means, **interval}


def measure_events(model: HSTU, max_len: int, rounds: int) -> Iterator[Row]:
    """Yield what an arriving event costs: sliding by quarters on average and at worst, and encoding the last N anew."""
    encoder, quarter = Encoder(model), max(max_len // 4, 1)
    shortest = max_len - quarter + 1  # after sliding; its last row waits for the request
    row = _milliseconds(_one_row(encoder, max_len - quarter // 2), rounds)
    slide, anew = (_milliseconds(_whole(encoder, length - 1), rounds) for length in (shortest, max_len))
    average = ((quarter - 1) * row + slide) / quarter
    yield {"case": "an event: one row, sliding by quarters", "cpu_ms": average, "worst_ms": slide}
    yield {"case": "an event: one row of a window that does not slide", "cpu_ms": row}
    yield {"case": "an event: the last N encoded anew", "cpu_ms": anew, "worst_ms": anew}


def _events(length: int) -> tuple[Tensor, Tensor, Tensor]:
    times = torch.arange(length) * 3_600
    return torch.arange(length), times, times + 3_600


def _whole(encoder: Encoder, length: int) -> Callable[[], object]:
    events = _events(length)
    return lambda: encoder.extend(None, *events)


def _one_row(encoder: Encoder, length: int) -> Callable[[], object]:
    items, times, following = _events(length)
    _, past = encoder.extend(None, items[:-1], times[:-1], following[:-1])
    return lambda: encoder.extend(past, items[-1:], times[-1:], following[-1:])


def _milliseconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds + 5):  # the first ones warm up
        started = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - started))
    return float(np.median(times[5:]))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sequences", type=Path, required=True, help="those that it was trained on")
    parser.add_argument("--rounds", type=int, default=200, help="of the timing")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "windows.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure quality, then time."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    torch.set_num_threads(1)
    model, facts = load_model(args.checkpoint)
    sequences = load_sequences(args.sequences)
    shape = f"{facts['settings']['num_blocks']} blocks, D {facts['settings']['dim']}, N {facts['settings']['max_len']}"
    run = recording.describe_run("benchmarks.bench_windows", arguments, torch.device("cpu"), 1)
    run |= {"data": facts["data_hash"][:8], "model": shape} | dict.fromkeys(COLUMNS, "")
    max_len = facts["settings"]["max_len"]
    rows = [run | row for row in measure_quality(model, max_len, find_targets(sequences, "test"), sequences.num_items)]
    rows += [run | row for row in measure_events(cast("HSTU", model), max_len, args.rounds)]
    recording.append_rows(args.results, rows)
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
