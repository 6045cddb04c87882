"""Tell people what needs them: a run that failed or crashed, a model that was refused, a service that has drifted.

    HSTUFLOW_WEBHOOK=https://... python -m flows.nightly

The address gets {"text": one sentence, "event": failed | refused | drifted, "where": name of the run or tag} by POST,
which Slack, Mattermost and most chat systems show as it is. It comes from the environment only, as it usually holds a
secret, and is written nowhere. Nobody to tell is no failure: a night never fails for its alert.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Literal

from prefect.logging import get_logger

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

WEBHOOK = "HSTUFLOW_WEBHOOK"
_SECONDS = 10.0  # the night must not hang where the chat system does
_log = get_logger("hstuflow.alerts")

Event = Literal["failed", "refused", "drifted"]


def alert(event: Event, where: str, text: str) -> bool:
    """Send one alert; return whether it arrived. Without HSTUFLOW_WEBHOOK it is only logged."""
    _log.warning("%s: %s: %s", event, where, text)
    url = os.environ.get(WEBHOOK, "").strip()
    if not url:
        return False
    body = json.dumps({"text": f"hstuflow, {where}: {text}", "event": event, "where": where}).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - the operator's
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        _log.error("the alert did not arrive: %s answered %d", WEBHOOK, error.code)
    except (OSError, ValueError, http.client.HTTPException) as error:  # their messages may show the address
        _log.error("the alert did not arrive: %s cannot be reached (%s)", WEBHOOK, type(error).__name__)
    return False


def alert_of_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Alert of a run that failed or crashed: Prefect's hook `on_failure` and `on_crashed`."""
    alert("failed", f"{flow.name} {flow_run.name}", state.message or state.name or "ended without a word")
