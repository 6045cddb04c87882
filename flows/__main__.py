"""`python -m flows`: the training flow from a shell; ends in the closing table or in one line that says what failed."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer

from components.errors import HstuflowError
from components.settings import IngestMode, SourceName, TimestampUnit
from flows.commands import child_environment
from flows.run_log import use_short_lines
from flows.server import find_free_port, require_answer, running_server


def run(
    source: Annotated[SourceName | None, typer.Option(help="which reader")] = None,
    mode: Annotated[IngestMode | None, typer.Option(help="append: keep what is held, add the new files")] = None,
    path: Annotated[str | None, typer.Option(help="file, folder, glob or URL")] = None,
    query: Annotated[str | None, typer.Option(help="SQL of the source database; {night} is a day")] = None,
    night: Annotated[str | None, typer.Option(help="that day, 2024-03-05; default: yesterday, UTC")] = None,
    columns: Annotated[str | None, typer.Option(help="user_id=userId,item_id=movieId,timestamp=ts,...")] = None,
    timestamp_unit: Annotated[TimestampUnit | None, typer.Option(help="auto decides by magnitude")] = None,
    items: Annotated[str | None, typer.Option(help="item table: file or URL")] = None,
    item_columns: Annotated[str | None, typer.Option(help="item_id=id,title=name,genres=tags")] = None,
    synthetic: Annotated[str | None, typer.Option(help="users=156250,items=20000,months=36,seed=1,...")] = None,
    replace: Annotated[bool, typer.Option(help="let a different source replace what data/ holds")] = False,
    warm_start: Annotated[bool, typer.Option(help="start training from the champion's weights")] = False,
    share: Annotated[bool, typer.Option(help="push to the DVC remote, commit and push the pins")] = False,
) -> None:
    """Run the training flow: log -> validated, trained, evaluated, packaged and promoted model."""
    parameters = dict(locals())
    use_short_lines()
    wait_until_healthy = start_server()
    from flows.training import training_flow  # imports prefect, 2-4 s: not for --help, and while the server starts

    try:
        wait_until_healthy()
        training_flow(**parameters)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(130)
    sys.exit(subprocess.run([sys.executable, "-m", "components", "summary"], env=child_environment()).returncode)


def start_server() -> Callable[[], None]:
    """Start a server for this run unless PREFECT_API_URL names one; return a function that waits for it.

    Raises:
        StateError: nothing answers at PREFECT_API_URL.
    """
    if api := os.environ.get("PREFECT_API_URL"):
        require_answer(api)
        return lambda: None
    stack = ExitStack()
    # Registered before Prefect is imported, so called after Prefect has sent its last logs and events.
    atexit.register(stack.close)
    server = stack.enter_context(running_server(find_free_port(), "--no-scheduler", "--no-late-runs"))
    return server.wait_until_healthy


def main() -> None:
    """Run, and say in one line what failed."""
    try:
        typer.run(run)
    except HstuflowError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
