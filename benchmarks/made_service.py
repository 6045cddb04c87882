"""A real `bentoml serve` of a model with random weights, and load for it: what several benchmarks ask for.

    write_model(folder, num_items)
    with serving(folder) as server:
        run_load(server, "/recommend", make_bodies(num_items, k=10), folder, seconds=2)

The model has the shape of recipes/ml-1m.yaml (2 blocks, D 50, N 200), and is packaged and served like any other. The
load comes from a process of its own (benchmarks/load.py).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
from components.files import write_json

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
EVENTS, K, BODIES = 200, 10, 64
MOST_SECONDS_TO_READY = 300


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
