"""A Prefect server of this repository's own, which ends with the process that started it, kill -9 included.

    with running_server(4200) as server:                 # PREFECT_API_URL now names it
        import flows.training                            # 3 s, while the server starts
        server.wait_until_healthy()                      # 6-45 s, the more the busier the machine

Prefect's own temporary server stays behind when its flow is killed (tried). The database is .prefect/prefect.db, the
log .prefect/server.log; no telemetry (pyproject.toml, [tool.prefect]). Imports no prefect.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from components.errors import StateError
from flows.commands import ending, start

HOST = "127.0.0.1"  # Prefect's API asks for no password
LOG = Path(".prefect/server.log")
SECONDS_TO_START = 300.0
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


class Server:
    """A server of ours, once `running_server` has started it."""

    def __init__(self, port: int, options: tuple[str, ...], log: IO[str]) -> None:
        self.api = f"http://{HOST}:{port}/api"
        self._log, self._arguments = log, ["server", "start", "--host", HOST, "--port", str(port), *options]
        self._stack = ExitStack()
        self._start()

    def wait_until_healthy(self) -> None:
        """Return once it answers; raises StateError where it ended, or does not answer within SECONDS_TO_START."""
        must_answer = time.monotonic() + SECONDS_TO_START
        while self._process.poll() is None:
            reason = answers(self.api)
            if reason is None:
                return
            if time.monotonic() > must_answer:
                raise StateError("Prefect's server does not answer", where=self.api, observed=reason, todo=f"See {LOG}")
            time.sleep(0.2)
        observed = f"exit status {self._process.returncode}"
        raise StateError("Prefect's server ended", observed=observed, todo=f"See {LOG}")

    def restart_if_ended(self) -> bool:
        """Start it again where it has ended, on the same port and database; tell whether it had."""
        if self._process.poll() is None:
            return False
        self._start()
        return True

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def _start(self) -> None:
        self._stack.close()
        self._process = self._stack.enter_context(running(self._arguments, self._log))


@contextmanager
def running_server(port: int, *options: str) -> Iterator[Server]:
    """Start a server on `port` and point PREFECT_API_URL at it; end it at last.

    Raises:
        StateError: something else listens on `port`, or the log cannot be written.
    """
    require_free(port)
    with _open_log() as log:
        server = Server(port, options, log)
        os.environ |= {"PREFECT_API_URL": server.api, "DO_NOT_TRACK": "1"} | _past_proxies()
        try:
            yield server
        finally:
            server.close()


def _open_log() -> IO[str]:
    """Open the log of all servers of this repository, of which a nightly and a run by hand may have one each."""
    try:
        LOG.parent.mkdir(exist_ok=True)
        return LOG.open("a")
    except OSError as error:
        todo = "Make room for Prefect's database and log there"
        raise StateError("cannot be written", where=str(LOG), observed=error.strerror, todo=todo) from error


def _past_proxies() -> dict[str, str]:
    """Return the environment in which our own server is asked directly, whatever proxy there is for others."""
    found = {name: os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    return {name: value if value == "*" else f"{value},{HOST}".strip(",") for name, value in found.items()}


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


def require_answer(api: str) -> None:
    """Raise StateError where no server answers at `api`, which a person named."""
    reason = answers(api)
    if reason is not None:
        raise StateError(
            "no Prefect server answers",
            where=f"PREFECT_API_URL={api}",
            observed=reason,
            todo="Start that server (its address ends in /api), or unset PREFECT_API_URL: a run by hand then has a "
            "server of its own",
        )


def answers(api: str) -> str | None:
    """Ask a server whether it is there; return None where it is, otherwise why not."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5):  # noqa: S310 - ours, or the one a person named
            return None
    except urllib.error.HTTPError as error:  # of these statuses: it wants a password, which Prefect has
        return None if error.code in (401, 403) else f"status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
