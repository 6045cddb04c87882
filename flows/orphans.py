"""Runs that Prefect has as running although nobody works on them: those of a worker that ended with its server.

Prefect counts a deployment's runs in its database, and keeps who holds a place in its server's memory (3.8). Where the
server ends during a run (Ctrl-C, kill -9, a reboot) nobody gives that place back: with a limit of one, each later run
was cancelled, and a cancelled run tells nobody. A run that is set to crashed gives it back.
"""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows.alerts import alert

_AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def end_orphans(pool: str) -> list[str]:
    """Set the runs at work in a pool that has no worker to crashed, and alert of each; return their names."""
    at_work = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK)))
    in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    ended = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=at_work, work_pool_filter=in_pool):
            sentence = "its worker was stopped during the run"
            client.set_flow_run_state(run.id, Crashed(message=sentence))
            alert("failed", run.name, f"{sentence}; the next one goes on from there")
            ended.append(run.name)
    return ended
