"""Work pools on other machines: `python -m flows.pools kubernetes` makes one and deploys the night to it.

    export PREFECT_API_URL=http://prefect.example.org/api HSTUFLOW_IMAGE=... HSTUFLOW_REPOSITORY=...
    python -m flows.pools docker
    python -m flows.pools kubernetes --render       # only print the job that a run will be

Prefect's own job template, and what hstuflow needs beside it: the BentoML store, which holds the champions, on a volume
that outlives the run (a claim `hstuflow-bentoml`), and on Kubernetes the secret `hstuflow` (credentials of the DVC
remote, HSTUFLOW_WEBHOOK) as environment. The deployment `nightly-<kind>` of prefect.yaml says the rest.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from components.errors import HstuflowError, InputError
from flows.commands import run_command
from flows.server import PREFECT, require_answer

STORE, CLAIM, SECRET = "/bentoml", "hstuflow-bentoml", "hstuflow"  # BENTOML_HOME in the container, volume, secret


VARIABLES = ("PREFECT_API_URL", "HSTUFLOW_IMAGE", "HSTUFLOW_REPOSITORY")


class Kind(StrEnum):
    """Where runs go."""

    DOCKER = "docker"
    KUBERNETES = "kubernetes"


def make_pool(
    kind: Kind, render: Annotated[bool, typer.Option("--render", help="only print the job template")] = False
) -> None:
    """Make or renew the work pool hstuflow-<kind> and deploy nightly-<kind> to it.

    Raises:
        InputError: a variable is missing.
        StateError: no server answers at PREFECT_API_URL.
    """
    if not render:
        require_answer(_require_variables()["PREFECT_API_URL"])
    template = extend(read_template(kind), kind)
    if render:
        sys.stdout.write(json.dumps(template, indent=2) + "\n")
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(template, file)
        file.flush()
        options = ["--type", kind.value, "--base-job-template", file.name, "--overwrite"]
        run_command([*PREFECT, "work-pool", "create", f"hstuflow-{kind}", *options], name="work pool", log=say)
    run_command([*PREFECT, "deploy", "--name", f"nightly-{kind}"], name="deploy", log=say)
    say(f"next: prefect worker start --pool hstuflow-{kind}, where {kind} is within reach (pip install prefect-{kind})")


def _require_variables() -> dict[str, str]:
    """Return what a deployment needs of the environment: without it Prefect deploys to a server that ends at once."""
    found = {name: os.environ.get(name, "").strip() for name in VARIABLES}
    missing = [name for name, value in found.items() if not value]
    if missing:
        todo = 'Export them as docs/operations.md has it, "Docker, Kubernetes"; --render needs none'
        raise InputError(f"{', '.join(missing)} must be set", where="the environment", todo=todo)
    return found


def read_template(kind: Kind) -> dict[str, Any]:
    """Return Prefect's own template for this kind of pool, asked of the server."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "template.json"
        command = ["work-pool", "get-default-base-job-template", "--type", kind.value, "--file", str(file)]
        run_command([*PREFECT, *command], name="template", log=str)
        template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return template


def extend(template: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Return the template with the volume of the BentoML store and, on Kubernetes, the secret."""
    changed: dict[str, Any] = json.loads(json.dumps(template))
    if kind is Kind.DOCKER:
        changed["variables"]["properties"]["volumes"]["default"] = [f"{CLAIM}:{STORE}"]
        return changed
    pod = changed["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "bentoml", "persistentVolumeClaim": {"claimName": CLAIM}}]
    pod["containers"][0] |= {
        "volumeMounts": [{"name": "bentoml", "mountPath": STORE}],
        "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
    }
    return changed


def say(line: object) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        typer.run(make_pool)
    except HstuflowError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
