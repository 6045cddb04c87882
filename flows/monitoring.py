"""The monitoring flow: compare what the service saw with training, publish it, and train where it has drifted.

python -m prefect deployment run hstuflow-monitoring/monitoring     by the worker of `make nightly`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment

from components.files import read_json
from flows.alerts import alert, alert_of_failure
from flows.artifacts import publish
from flows.commands import run_command
from flows.run_log import hide_expected_tracebacks
from flows.stages import HOUR

TRAINING = "hstuflow/nightly"  # flow and deployment of prefect.yaml
REPORT = Path("reports/monitoring.json")


@flow(name="hstuflow-monitoring", persist_result=False, on_failure=[alert_of_failure], on_crashed=[alert_of_failure])
def monitoring_flow(requests: str = "requests", train: bool = True) -> str:
    """Compare the log of requests with training; where a figure is past its limit, start the nightly deployment.

    Args:
        requests: folder of the log of requests: HSTUFLOW_REQUESTS of the service.
        train: start the training; without, the report and its artifacts say that it is time.

    Returns:
        What came of it, in a few words.
    """
    hide_expected_tracebacks()
    if not any(Path(requests).glob("*/*.jsonl")):
        get_run_logger().info("there is no log of requests at %s: start the service with HSTUFLOW_REQUESTS", requests)
        return "no log of requests"
    past = compare(requests)
    if not past:
        return "nothing is past its limit"
    alert("drifted", "the service", f"past the limit: {', '.join(past)}; see {REPORT.with_suffix('.html')}")
    if train:
        start_training(past)
    return f"past the limit: {', '.join(past)}"


@task(task_run_name="monitor", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=HOUR)
def compare(requests: str) -> list[str]:
    """Write and publish the report; return the figures past their limit."""
    command = [sys.executable, "-m", "components", "monitor", "--requests", requests]
    run_command(command, name="monitor", log=get_run_logger().info)
    publish("monitor")
    found: dict[str, Any] = read_json(REPORT)
    return list(found["past"])


@task(task_run_name="train", cache_policy=NO_CACHE, persist_result=False)
def start_training(past: list[str]) -> None:
    """Start the nightly deployment and do not wait for it; while one runs, Prefect cancels the second."""
    run_deployment(TRAINING, timeout=0, as_subflow=False)
    get_run_logger().info("past the limit: %s; started %s", ", ".join(past), TRAINING)
