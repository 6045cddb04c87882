"""Timing versions of the same work fairly: they take turns, and a ratio compares times of the same rounds.

    measured = take_turns({"ours": version, "theirs": other}, clock, rounds=20)

A version is a function that is given `mark` and calls it before its first phase, between phases and after the last.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

Mark = Callable[[], None]
Version = Callable[[Mark], None]

_WARM_UP_ROUNDS = 2  # the first one compiles
_FEWEST_ROUNDS = 5
_RESAMPLES = 1_000
_GEMM_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_GEMM_ROUNDS = 5


class Clock(Protocol):
    """Reads times around phases."""

    name: str

    def get_ready(self) -> None:
        """Called before the first mark."""

    def now(self) -> Any:  # noqa: ANN401 - a number or an event
        """Return a mark."""

    def milliseconds(self, marks: list[Any]) -> list[float]:
        """Return the time between each two marks."""


class CpuClock:
    """CPU time of the process with one thread, so that other work on the machine hurts little; wall time with more."""

    def __init__(self, num_threads: int) -> None:
        self.name, self.now = ("cpu time", time.process_time) if num_threads == 1 else ("wall time", time.perf_counter)

    def get_ready(self) -> None:
        """See `Clock`."""

    def milliseconds(self, marks: list[float]) -> list[float]:
        """See `Clock`."""
        return [1e3 * (end - start) for start, end in pairwise(marks)]


class CudaClock:
    """Events in the stream; `flush_l2` empties the cache before each run.

    With `is_ahead` the host gets a head start, so that device time alone is counted: what kernels are judged by.
    Without it, waiting for launches counts: what a training step takes.
    """

    def __init__(self, *, is_ahead: bool, flush_l2: bool = False) -> None:
        self.name = ("device time" if is_ahead else "stream time") + (", L2 flushed" if flush_l2 else "")
        self._is_ahead = is_ahead
        # More than twice the 50 MB of an H100 or H200.
        self._ballast = torch.empty(2**27, dtype=torch.uint8, device="cuda") if flush_l2 else None

    def get_ready(self) -> None:
        """See `Clock`."""
        torch.cuda.synchronize()
        if self._ballast is not None:
            self._ballast.zero_()
        if self._is_ahead:
            torch.cuda._sleep(2_000_000)  # cycles, about 1 ms; launching forward and backward takes a part of that

    def now(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, marks: list[torch.cuda.Event]) -> list[float]:
        """See `Clock`."""
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(marks)]


@dataclass
class Measured:
    """Milliseconds of each version's phases, (rounds, phases), and why the versions that failed did."""

    times: dict[str, np.ndarray] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def take_turns(
    versions: Mapping[str, Version], clock: Clock, *, rounds: int, seconds: float = float("inf")
) -> Measured:
    """Run every version once a round, each round beginning with another one; `seconds` may end it before `rounds`.

    A version that raises is reported and left out; the others go on.
    """
    measured, names = Measured(), list(versions)
    taken: dict[str, list[list[float]]] = {name: [] for name in names}
    started = time.monotonic()
    for number in range(_WARM_UP_ROUNDS + rounds):
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if name not in measured.failures:
                with reporting(name, measured.failures):
                    taken[name].append(_time_once(versions[name], clock))
        if number + 1 >= _WARM_UP_ROUNDS + _FEWEST_ROUNDS and time.monotonic() - started > seconds:
            break
    measured.times = {name: np.array(taken[name][_WARM_UP_ROUNDS:]) for name in names if name not in measured.failures}
    return measured


def _time_once(version: Version, clock: Clock) -> list[float]:
    marks: list[Any] = []

    def mark() -> None:
        if not marks:
            clock.get_ready()
        marks.append(clock.now())

    version(mark)
    return clock.milliseconds(marks)


@contextmanager
def reporting(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Print what is raised inside and keep it in `failures`: the sweep goes on, and its exit status tells."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise whatever they like
        traceback.print_exc()
        failures[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class Spread(NamedTuple):
    """Percentiles of times, in ms."""

    median: float
    p20: float
    p80: float


def spread_of(times: np.ndarray) -> Spread:
    """Return the percentiles of (rounds,) times."""
    return Spread(*(float(value) for value in np.percentile(times, (50, 20, 80))))


class Ratio(NamedTuple):
    """How many times as long, with a 95% interval."""

    value: float
    low: float
    high: float


def paired_ratio(times: np.ndarray, baseline: np.ndarray) -> Ratio:
    """Return the ratio of the medians of two (rounds,); for its interval both are resampled by the same rounds."""
    rounds = np.random.default_rng(0).integers(len(times), size=(_RESAMPLES, len(times)))
    ratios = np.median(times[rounds], axis=1) / np.median(baseline[rounds], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Ratio(float(np.median(times) / np.median(baseline)), float(low), float(high))


def matmul_ceiling(dtype: torch.dtype, device: torch.device, clock: Clock) -> float:
    """Return the FLOP/s of the best square matrix product of this machine: the ceiling that percentages refer to."""
    best = 0.0
    for size in _GEMM_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

        def product(mark: Mark, a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            mark()
            torch.mm(a, b)
            mark()

        milliseconds = min(_time_once(product, clock)[0] for _ in range(_GEMM_ROUNDS))
        best = max(best, 2 * size**3 / (milliseconds / 1e3))
    return best
