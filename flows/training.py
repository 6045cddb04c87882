"""The training flow: ingestion -> the DVC stages -> challenge -> promotion (-> sharing).

    python -m flows                                       what `make run` does
    python -m prefect deployment run hstuflow/nightly     the same by the worker of `make nightly`

This file only says which step follows which; every step is a process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from components.decisions import read_decisions
from components.locks import alone
from components.settings import IngestMode, SourceName, TimestampUnit
from flows.alerts import alert, alert_of_failure
from flows.artifacts import ARTIFACTS, REGISTRY, publish
from flows.commands import run_command
from flows.ingestion import ingest, version_data
from flows.run_log import hide_expected_tracebacks
from flows.sharing import require_remote
from flows.sharing import share as share_night
from flows.stages import HOUR, run_stages


@flow(name="hstuflow", persist_result=False, on_failure=[alert_of_failure], on_crashed=[alert_of_failure])
def training_flow(
    source: SourceName | None = None,
    mode: IngestMode | None = None,
    path: str | None = None,
    query: str | None = None,
    night: str | None = None,
    columns: str | None = None,
    timestamp_unit: TimestampUnit | None = None,
    items: str | None = None,
    item_columns: str | None = None,
    synthetic: str | None = None,
    replace: bool = False,
    warm_start: bool = False,
    share: bool = False,
) -> dict[str, str]:
    """Bring the log up to date, run every stale stage, promote the model unless gate or challenge refused it.

    One run at a time in a repository: a second one says whom it waits for, and waits.

    Args:
        source: which reader; nothing given keeps the log that data/ holds, or fetches the one of params.yaml.
        mode: `append` keeps what data/ holds and adds the files that are new, of the source table.
        path: file, folder, glob or URL of the log.
        query: SQL of the source database, in which `{night}` stands for a day.
        night: that day, 2024-03-05; yesterday (UTC) where none is given.
        columns: canonical name=name in your table, as in `user_id=uid,item_id=sku,timestamp=ts`.
        timestamp_unit: unit of the log's timestamps; auto decides by magnitude.
        items: file or URL of an item table.
        item_columns: as columns, for the item table.
        synthetic: size of the source synthetic, as in `users=1000,items=500,seed=1`.
        replace: let a different source replace what data/ holds.
        warm_start: where the log is new, let training start from the champion (components/warm_start.py).
        share: at the end push to the DVC remote, and commit and push the pins and the registry (flows/sharing.py).

    Returns:
        Stage -> `up to date` or `ran in n s`.
    """
    hide_expected_tracebacks()
    if share:
        require_remote()  # now, and not after hours of training
    given = {
        "source": source,
        "mode": mode,
        "path": path,
        "query": query,
        "night": night,
        "columns": columns,
        "timestamp-unit": timestamp_unit,
        "items": items,
        "item-columns": item_columns,
        "synthetic": synthetic,
    }
    with alone(ARTIFACTS, f"the flow run {flow_run.name}", say=get_run_logger().info):
        ingest(ingest_options(given, replace=replace))
        version_data()
        outcomes = run_stages({"sequences": choose_start} if warm_start else {})
        challenge()
        promote()
        if share:
            share_night()
    return outcomes


def ingest_options(given: Mapping[str, str | None], *, replace: bool) -> list[str]:
    """Return the command-line options of `python -m components ingest` for the flow's parameters."""
    options = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    return [*options, *(["--replace"] if replace else [])]


@task(task_run_name="warm start", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=HOUR)
def choose_start() -> None:
    """Write the champion's tag into params.yaml, where training can start from it."""
    run_command([sys.executable, "-m", "components", "warm-start"], name="warm start", log=get_run_logger().info)


@task(task_run_name="challenge", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=3 * HOUR)
def challenge() -> None:
    """Judge the packaged model beside the champion; whatever comes of it is for `promote`."""
    run_command([sys.executable, "-m", "components", "challenge"], name="challenge", log=get_run_logger().info)
    publish("challenge")


@task(task_run_name="promote", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=HOUR)
def promote() -> None:
    """Make the packaged model the champion unless gate or challenge refused it; alert of a new refusal."""
    before = len(read_decisions(REGISTRY))
    run_command([sys.executable, "-m", "components", "promote"], name="promote", log=get_run_logger().info)
    publish("promote")
    for decision in read_decisions(REGISTRY)[before:]:
        if decision["what"] == "refused":
            alert("refused", decision["tag"], "; ".join(decision["reasons"]))
