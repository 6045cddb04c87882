"""`python -m flows.nightly`: a Prefect server, a worker and the deployment of prefect.yaml, until Ctrl-C.

The server keeps its database in .prefect/ and its log in .prefect/server.log; the worker writes to the terminal.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from components.errors import HstuflowError, StateError
from flows.commands import ending, run_command, start
from flows.run_log import use_short_lines

HOST = "127.0.0.1"  # Prefect's API has no password
POOL = "hstuflow"  # as in prefect.yaml
SERVER_LOG = Path(".prefect/server.log")
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def nightly(port: Annotated[int, typer.Option(help="where the server listens")] = 4200) -> None:
    """Start a Prefect server and a worker, deploy prefect.yaml, and keep them running until Ctrl-C."""
    api = f"http://{HOST}:{port}/api"
    os.environ |= {"PREFECT_API_URL": api, "DO_NOT_TRACK": "1"}
    use_short_lines()
    require_free(port)
    SERVER_LOG.parent.mkdir(exist_ok=True)
    with SERVER_LOG.open("w") as log, running(["server", "start", "--host", HOST, "--port", str(port)], log) as server:
        wait_until_healthy(api, server)
        deploy()
        with running(["worker", "start", "--pool", POOL, "--type", "process"], sys.stdout) as worker:
            say(f"Prefect's UI     http://{HOST}:{port}")
            say(f"run it now       PREFECT_API_URL={api} .venv/bin/prefect deployment run hstuflow/nightly")
            say("stop             Ctrl-C")
            try:
                wait_for_first_end(server=server, worker=worker)
            except KeyboardInterrupt:
                say("stopping")


def require_free(port: int) -> None:
    """Raise StateError where something listens on `port`: it would answer in the new server's place."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise StateError("is in use", where=f"port {port}", todo=f"Stop what runs there, or PORT={port + 1}")


def wait_until_healthy(api: str, server: subprocess.Popen[str]) -> None:
    """Wait for the server's first answer: 10 s, or 45 on a busy machine; raises StateError where it ends before."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=5):  # noqa: S310 - our own http address
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise StateError("Prefect's server ended", observed=f"exit status {server.returncode}", todo=f"See {SERVER_LOG}")


def deploy() -> None:
    """Create the work pool and the deployments of prefect.yaml, or bring them up to date."""
    run_command([*PREFECT, "work-pool", "create", POOL, "--type", "process", "--overwrite"], name="work pool", log=str)
    run_command([*PREFECT, "deploy", "--all"], name="deploy", log=str)


@contextmanager
def running(arguments: list[str], output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a Prefect command for as long as the block lasts."""
    with start([*PREFECT, *arguments], output) as child:
        try:
            yield child
        finally:
            with ending(child, signal.SIGTERM):
                child.wait()


def wait_for_first_end(**children: subprocess.Popen[str]) -> None:
    """Wait until one of the children ends by itself and raise StateError for it."""
    while True:
        for name, child in children.items():
            if child.poll() is not None:
                raise StateError(f"the {name} ended", observed=f"exit status {child.returncode}", todo="Start it again")
        time.sleep(1)


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run until Ctrl-C or SIGTERM, and say in one line what failed."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        typer.run(nightly)
    except HstuflowError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
