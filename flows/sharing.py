"""Hand a night's results on, so that another machine needs `git pull` and `dvc pull` and nothing else.

    dvc remote add --default storage s3://bucket/hstuflow      # or a folder; once, kept in .dvc/config
    make nightly                                               # with `share: true` in prefect.yaml

`dvc push` comes first: no commit may name data that the remote lacks. Committed are the pins of the log and the stages,
the parameters and the registry, in one commit a night, and pushed where the branch has an upstream. Credentials are
those that dvc and git find by themselves (environment, ~/.aws, ssh); none is stored here.
"""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.decisions import read_decisions
from components.errors import StateError
from flows.artifacts import REGISTRY
from flows.commands import CommandFailedError, run_command
from flows.stages import HOUR, waits_for_lock

STATE = ("data.dvc", "dvc.lock", "params.yaml", "registry")  # params.yaml: which model a warm start began with


@task(
    task_run_name="share",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=5,
    retry_delay_seconds=[10, 30, 60, 300, 900],
    retry_condition_fn=waits_for_lock,
    timeout_seconds=6 * HOUR,
)
def share() -> str:
    """Push data, models and reports to the default DVC remote, commit the pins, push the commit; say what happened.

    Raises:
        StateError: there is no default remote.
    """
    require_remote()
    _run("dvc", "push")
    state = [name for name in STATE if Path(name).exists()]
    _run("git", "add", *state)
    if not _run("git", "diff", "--cached", "--name-only", "--", *state):
        outcome = "nothing new to commit"
    else:
        _run("git", "commit", "--quiet", "--message", describe_night(), "--", *state)  # not what else is staged here
        outcome = "committed"
    if _has_upstream():
        _run("git", "push", "--quiet")
        outcome += ", pushed"
    get_run_logger().info(outcome)
    return outcome


def require_remote() -> None:
    """Raise StateError where `dvc push` would not know where to."""
    if not _run("dvc", "config", "core.remote"):  # status 0 all the same
        todo = "dvc remote add --default storage <folder or s3://bucket/prefix>"
        raise StateError("there is no default DVC remote to share with", where=".dvc/config", todo=todo)


def describe_night() -> str:
    """Return the commit's message: what was decided last."""
    decisions = read_decisions(REGISTRY)
    return f"Night: {decisions[-1]['tag']} {decisions[-1]['what']}" if decisions else "Night: nothing decided"


def _has_upstream() -> bool:
    try:
        _run("git", "rev-parse", "--abbrev-ref", "@{upstream}")
    except CommandFailedError:
        return False
    return True


def _run(*command: str) -> list[str]:
    return run_command(command, name=command[0], log=get_run_logger().info)
