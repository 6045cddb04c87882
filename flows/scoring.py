"""The scoring flow: the champion's top k for every user of the log, as Parquet.

python -m prefect deployment run hstuflow-scoring/scoring     by the worker of `make nightly`
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.alerts import alert_of_failure
from flows.artifacts import publish_scores
from flows.commands import run_command
from flows.run_log import hide_expected_tracebacks
from flows.stages import HOUR


@flow(name="hstuflow-scoring", persist_result=False, on_failure=[alert_of_failure], on_crashed=[alert_of_failure])
def scoring_flow(k: int = 20, out: str = "artifacts/scores", replace: bool = True) -> None:
    """Write the top k of every user by the champion.

    Args:
        k: items a user.
        out: folder of the Parquet parts.
        replace: start again where the folder holds answers of another model or log; parts of the same are kept.
    """
    hide_expected_tracebacks()
    score(k, out, replace)


@task(task_run_name="score", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=12 * HOUR)
def score(k: int, out: str, replace: bool) -> None:
    """Run the command; killed, the next run goes on where it stood."""
    options = ["--k", str(k), "--out", out, *(["--replace"] if replace else [])]
    run_command([sys.executable, "-m", "components", "score", *options], name="score", log=get_run_logger().info)
    publish_scores(Path(out) / "manifest.json")
