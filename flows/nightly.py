"""`python -m flows.nightly`: a Prefect server, a worker and the deployment of prefect.yaml, until Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

from components.errors import HstuflowError, StateError
from flows.commands import run_command
from flows.run_log import use_short_lines
from flows.server import HOST, LOG, PREFECT, Server, answers, running, running_server

POOL = "hstuflow"  # as in prefect.yaml
MAX_RESTARTS = 5  # of the server, in a row: a minute, with pauses of 1, 2, 4, ... seconds


def nightly(port: Annotated[int, typer.Option(help="where the server listens")] = 4200) -> None:
    """Start a Prefect server and a worker, deploy prefect.yaml, and keep them running until Ctrl-C."""
    use_short_lines()
    with running_server(port) as server:
        from flows.orphans import end_orphans  # imports prefect, 2-4 s: while the server starts

        server.wait_until_healthy()
        deploy()
        for run in end_orphans(POOL):
            say(f"ended as crashed {run}, which was running when this was stopped; the next run goes on from there")
        with running(["worker", "start", "--pool", POOL, "--type", "process"], sys.stdout) as worker:
            say(f"Prefect's UI     http://{HOST}:{port}")
            say(
                f"run it now       PREFECT_API_URL=http://{HOST}:{port}/api "
                ".venv/bin/prefect deployment run hstuflow/nightly"
            )
            say("stop             Ctrl-C")
            try:
                keep(server, worker)
            except KeyboardInterrupt:
                say("stopping")


def deploy() -> None:
    """Create this machine's work pool and its deployments of prefect.yaml, or bring them up to date."""
    run_command([*PREFECT, "work-pool", "create", POOL, "--type", "process", "--overwrite"], name="work pool", log=str)
    names = [part for name in list_deployments(POOL) for part in ("--name", name)]
    run_command([*PREFECT, "deploy", *names], name="deploy", log=str)


def list_deployments(pool: str) -> list[str]:
    """Return the deployments that prefect.yaml gives to a work pool."""
    deployments = YAML(typ="safe").load(Path("prefect.yaml"))["deployments"]
    return [deployment["name"] for deployment in deployments if deployment["work_pool"]["name"] == pool]


def keep(server: Server, worker: subprocess.Popen[str]) -> None:
    """Start the server again where it ends, until the worker ends by itself; then, or in vain, raise StateError.

    The worker and a run in progress go on without a server, and find it again (docs/operations.md, "Faults").
    """
    restarts = 0  # since it last answered
    while worker.poll() is None:
        time.sleep(2**restarts)
        if server.restart_if_ended():
            restarts += 1
            say(f"Prefect's server ended and is started again; see {LOG}")
        elif restarts and answers(server.api) is None:
            restarts = 0
        if restarts > MAX_RESTARTS:
            raise StateError(f"Prefect's server ended {restarts} times in a row", todo=f"See {LOG}, then start again")
    raise StateError("the worker ended", observed=f"exit status {worker.returncode}", todo="Start it again")


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
