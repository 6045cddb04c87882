"""Bring new events in and version them: `python -m components ingest`, then `dvc add data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.errors import SourceUnreachableError
from components.files import read_json
from flows.artifacts import publish_table
from flows.commands import CommandFailedError, run_command
from flows.stages import HOUR, is_stale, waits_for_lock

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

DATA = Path("data")


def is_unreachable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry only where the source could not be reached; a log that cannot be read stays so."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandFailedError) and error.status == SourceUnreachableError.exit_status


@task(
    task_run_name="ingest",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[5, 20, 60],
    retry_condition_fn=is_unreachable,
    timeout_seconds=6 * HOUR,
)
def ingest(options: list[str]) -> None:
    """Bring the event log into data/ and publish what changed."""
    before = _read_counts()
    run_command([sys.executable, "-m", "components", "ingest", *options], name="ingest", log=get_run_logger().info)
    after = _read_counts()
    rows = [{"what": name, "before": before.get(name, 0), "now": after[name]} for name in after]
    publish_table("log", rows, "The event log before and after ingestion.")


@task(
    task_run_name="version",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=5,
    retry_delay_seconds=[10, 30, 60, 300, 900],
    retry_condition_fn=waits_for_lock,
    timeout_seconds=HOUR,
)
def version_data() -> str:
    """Pin data/ in data.dvc; return what happened in a few words."""
    outcome = "up to date"
    if not Path("data.dvc").exists() or is_stale("data.dvc"):
        run_command(["dvc", "add", "data"], name="version", log=get_run_logger().info)
        outcome = "data.dvc pins the new log"
    get_run_logger().info(outcome)
    return outcome


def _read_counts() -> dict[str, int]:
    """Return the counts of data/manifest.json; none where there is no log yet."""
    manifest = DATA / "manifest.json"
    counts: dict[str, int] = read_json(manifest)["counts"] if manifest.exists() else {}
    return counts
