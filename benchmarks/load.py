"""A load generator of bounded length, on loopback only; bench_service runs it in a process of its own.

    python -m benchmarks.load --url http://127.0.0.1:3000/recommend --bodies bodies.json --seconds 10 --connections 8
    python -m benchmarks.load --url http://127.0.0.1:3000/recommend --bodies bodies.json --seconds 60 --rate 150

Without --rate every connection asks again as soon as it is answered: what comes out is the capacity. With it, requests
start by the clock whether earlier ones are answered or not, and a latency counts from the moment the request was due:
a service that stalls cannot slow its own load down and so hide the stall. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_CONNECTIONS = 512  # open at once in an overload; more due requests wait in the generator, and their clock runs


@dataclass
class Outcome:
    """What became of the requests; a latency in milliseconds for each that was answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0  # answered with 200, but not with as many items as were asked for
    started: list[float] = field(default_factory=list)  # seconds since the beginning, of answers with 200
    latencies: list[float] = field(default_factory=list)

    def describe(self, seconds: float) -> dict[str, Any]:
        """Return the figures; percentiles are over answers with 200."""
        latencies = np.array(self.latencies or [np.nan])
        last = latencies[np.array(self.started or [0.0]) >= seconds - 5] if self.latencies else latencies
        quantile = {f"p{q}_ms": round(float(np.quantile(latencies, q / 100)), 2) for q in (50, 90, 99)}
        return quantile | {
            "max_ms": round(float(latencies.max()), 2),
            "p99_last_5_s_ms": round(float(np.quantile(last, 0.99)), 2) if len(last) else None,
            "answered_per_s": round(len(self.latencies) / seconds, 1),
            "statuses": dict(sorted(self.statuses.items())),
            "wrong": self.wrong,
        }


@dataclass(frozen=True)
class Load:
    """Requests to send, in turn."""

    url: str
    bodies: Sequence[dict[str, Any]]
    seconds: float

    async def ask(self, session: aiohttp.ClientSession, number: int, due: float, begun: float, out: Outcome) -> None:
        """Send one request; what happens to it is counted, whatever that is."""
        body = self.bodies[number % len(self.bodies)]
        try:
            async with session.post(self.url, json=body) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            out.statuses[type(error).__name__] += 1
            return
        out.statuses[str(response.status)] += 1
        if response.status == 200:
            out.started.append(due - begun)
            out.latencies.append(1e3 * (time.perf_counter() - due))
            expected = len(body["candidates"]) if "candidates" in body else body["k"]
            out.wrong += len(answer["items"]) != expected


async def ask_in_turn(load: Load, connections: int) -> Outcome:
    """Let each connection ask as often as it is answered."""
    out, begun = Outcome(), time.perf_counter()

    async def keep_asking(session: aiohttp.ClientSession, first: int) -> None:
        number = first
        while (now := time.perf_counter()) < begun + load.seconds:
            await load.ask(session, number, now, begun, out)
            number += connections

    async with _session(connections) as session:
        await asyncio.gather(*(keep_asking(session, first) for first in range(connections)))
    return out


async def ask_by_the_clock(load: Load, rate: float) -> Outcome:
    """Start `rate` requests a second."""
    out, begun = Outcome(), time.perf_counter()
    async with _session(_MOST_CONNECTIONS) as session, asyncio.TaskGroup() as tasks:
        for number in range(int(rate * load.seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(load.ask(session, number, due, begun, out))
    return out


def _session(connections: int) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), timeout=timeout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON list of request bodies, sent in turn")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests a second, by the clock")
    args = parser.parse_args(arguments)
    if urlsplit(args.url).hostname not in _LOOPBACK:
        parser.error(f"--url is {args.url}: load goes to loopback only, http://127.0.0.1:<port>/...")
    load = Load(args.url, json.loads(args.bodies.read_text()), args.seconds)
    running = ask_by_the_clock(load, args.rate) if args.rate else ask_in_turn(load, args.connections)
    print(json.dumps(asyncio.run(running).describe(args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
