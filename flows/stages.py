"""The one task that runs a DVC stage: stream its log, say whether it was stale, publish its report.

    for stage in list_stages():
        run_stage(stage)

DVC decides what is stale, so there is one cache, and what the schedule ran is what `dvc repro` reproduces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish
from flows.commands import CommandFailedError, run_command

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

HOUR = 3600.0
# Generous: a stage that hangs must not block the next night. A person's `dvc repro` has no limit.
TIMEOUT_SECONDS = {"train": 12 * HOUR, "evaluate": 3 * HOUR}
# dvc's words when another dvc holds the workspace (dvc/lock.py, dvc/rwlock.py).
_LOCK_CONTENTION = ("Unable to acquire lock", "is busy, it is being blocked by")


def list_stages() -> list[str]:
    """Return the addresses of all stages of dvc.yaml, matrix cells included, in the order `dvc repro` runs them."""
    from dvc.repo import Repo  # 0.5-2 s: only where it is needed
    from dvc.repo.reproduce import plan_repro

    with Repo() as repo:
        return [stage.addressing for stage in plan_repro(repo.index.graph) if not stage.is_data_source]


def is_stale(target: str) -> bool:
    """Ask DVC whether a stage or a .dvc file differs from its lock: 20 ms; `dvc status` takes more than a second."""
    from dvc.repo import Repo

    with Repo() as repo:
        return bool(repo.status(targets=[target]))


def waits_for_lock(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry only where another dvc holds the workspace; a stage that failed by itself would fail again."""
    from dvc.lock import LockError

    error = state.result(raise_on_failure=False)
    if isinstance(error, CommandFailedError):
        return any(words in line for line in error.lines for words in _LOCK_CONTENTION)
    return isinstance(error, LockError)


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=5,
    retry_delay_seconds=[10, 30, 60, 300, 900],
    retry_condition_fn=waits_for_lock,
)
def run_stage(stage: str) -> str:
    """Bring one stage up to date through `dvc repro --single-item`; return what happened in a few words."""
    try:
        outcome = _repro(stage) if is_stale(stage) else "up to date"
    except CommandFailedError:
        publish(stage)  # what validation found is in its report
        raise
    get_run_logger().info(outcome)
    publish(stage)
    return outcome


def run_stages(following: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """Run all stages in order, and what follows some of them; return stage -> outcome. The first failure ends it."""
    outcomes = {}
    for stage in list_stages():
        timeout = TIMEOUT_SECONDS.get(stage.split("@")[0], HOUR)
        outcomes[stage] = run_stage.with_options(timeout_seconds=timeout)(stage)
        if stage in following:
            following[stage]()
    return outcomes


def _repro(stage: str) -> str:
    start = time.monotonic()
    run_command(["dvc", "repro", "--single-item", stage], name=stage, log=get_run_logger().info)
    return f"ran in {time.monotonic() - start:.0f} s"
