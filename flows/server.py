"""A Prefect server of this repository's own, which ends with the process that started it, kill -9 included.

    with running_server(4200) as wait_until_healthy:     # PREFECT_API_URL now names it
        import flows.training                            # 3 s, while the server starts
        wait_until_healthy()                             # 6-45 s, the more the busier the machine

Prefect's own temporary server stays behind when its flow is killed (tried). The database is .prefect/prefect.db, the
log .prefect/server.log; no telemetry (pyproject.toml, [tool.prefect]). Imports no prefect.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from components.errors import StateError
from flows.commands import ending, start

HOST = "127.0.0.1"  # Prefect's API asks for no password
LOG = Path(".prefect/server.log")
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@contextmanager
def running_server(port: int, *options: str) -> Iterator[Callable[[], None]]:
    """Start a server on `port`, point PREFECT_API_URL at it, yield a function that waits for it; end it at last.

    Raises:
        StateError: something else listens on `port`, or (by the function) the server ended.
    """
    require_free(port)
    api = f"http://{HOST}:{port}/api"
    os.environ |= {"PREFECT_API_URL": api, "DO_NOT_TRACK": "1"}
    LOG.parent.mkdir(exist_ok=True)
    arguments = ["server", "start", "--host", HOST, "--port", str(port), *options]
    with LOG.open("w") as log, running(arguments, log) as server:
        yield partial(_wait_until_healthy, api, server)


@contextmanager
def running(arguments: list[str], output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a Prefect command for as long as the block lasts."""
    with start([*PREFECT, *arguments], output) as child:
        try:
            yield child
        finally:
            with ending(child, signal.SIGTERM):
                child.wait()


def find_free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(port: int) -> None:
    """Raise StateError where something listens on `port`: it would answer in the new server's place."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise StateError(
                "is in use", where=f"port {port}", todo=f"Stop what runs there, or make nightly PORT={port + 1}"
            )


def _wait_until_healthy(api: str, server: subprocess.Popen[str]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=5):  # noqa: S310 - our own http address
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise StateError("Prefect's server ended", observed=f"exit status {server.returncode}", todo=f"See {LOG}")
