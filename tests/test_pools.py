"""Work pools elsewhere: what a run's container or Kubernetes job will be. No cluster, no server."""

import json
from pathlib import Path

import kubernetes_validate
import prefect
import pytest
from prefect.utilities.templating import apply_values
from ruamel.yaml import YAML

from components.errors import InputError, StateError
from flows import pools
from flows.nightly import POOL, list_deployments
from flows.pools import CLAIM, STORE, VARIABLES, Kind, extend, make_pool

BUNDLED = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"


def prefects_own(kind):
    return json.loads(BUNDLED.read_text())[f"prefect-{kind}"][kind.value]["default_base_job_configuration"]


def deployment(kind):
    [found] = [
        one for one in YAML(typ="safe").load(Path("prefect.yaml"))["deployments"] if one["name"] == f"nightly-{kind}"
    ]
    return found


def render(kind):
    """Return the job of a run as the worker makes it: defaults of the template, then the deployment's variables."""
    template = extend(prefects_own(kind), kind)
    values = {name: one.get("default") for name, one in template["variables"]["properties"].items()}
    values |= deployment(kind)["work_pool"]["job_variables"] | {
        "name": "brave-newt",
        "command": "prefect flow-run execute",
    }
    return apply_values(template["job_configuration"], {name: one for name, one in values.items() if one is not None})


def test_this_machine_gets_its_own_deployments_only():
    assert list_deployments(POOL) == ["nightly", "monitoring", "scoring"]
    assert [list_deployments(f"{POOL}-{kind}") for kind in Kind] == [["nightly-docker"], ["nightly-kubernetes"]]


@pytest.mark.parametrize("kind", list(Kind))
def test_the_variables_of_a_deployment_are_those_that_its_pool_knows(kind):
    assert set(deployment(kind)["work_pool"]["job_variables"]) <= set(prefects_own(kind)["variables"]["properties"])


@pytest.mark.parametrize("kind", list(Kind))
def test_the_store_of_champions_outlives_a_run(kind):
    job = render(kind)
    assert job["env"]["BENTOML_HOME"] == STORE
    if kind is Kind.DOCKER:
        assert job["volumes"] == [f"{CLAIM}:{STORE}"]
    else:
        pod = job["job_manifest"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "bentoml", "mountPath": STORE}]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == CLAIM


def test_the_kubernetes_job_is_one_that_kubernetes_takes():
    job = render(Kind.KUBERNETES)["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    # What Prefect's worker does before it sends the job (KubernetesWorkerJobConfiguration.prepare_for_flow_run).
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = container["args"].split()
    for misplaced in ("parallelism", "completions"):  # Prefect's template has them in the pod, where they mean nothing
        pod.pop(misplaced)
    kubernetes_validate.validate(job, "1.34", strict=True)
    container["volumeMounts"][0]["mountpath"] = container["volumeMounts"][0].pop("mountPath")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


def test_prefects_template_is_not_changed_in_place():
    before = prefects_own(Kind.KUBERNETES)
    extend(before, Kind.KUBERNETES)
    assert before == prefects_own(Kind.KUBERNETES)


def test_a_pool_is_made_of_the_extended_template_and_then_deployed_to(monkeypatch):
    commands, templates = [], []

    def run_command(arguments, **_):
        words = arguments[arguments.index("--no-prompt") + 1 :]
        commands.append(words[:2])
        if "--file" in words:
            Path(words[-1]).write_text(json.dumps(prefects_own(Kind.DOCKER)))
        if "--base-job-template" in words:
            templates.append(json.loads(Path(words[words.index("--base-job-template") + 1]).read_text()))

    monkeypatch.setattr(pools, "run_command", run_command)
    asked = []
    monkeypatch.setattr(pools, "require_answer", asked.append)
    for name in VARIABLES:
        monkeypatch.setenv(name, f"the {name}")
    make_pool(Kind.DOCKER)
    assert asked == ["the PREFECT_API_URL"]
    assert commands == [["work-pool", "get-default-base-job-template"], ["work-pool", "create"], ["deploy", "--name"]]
    assert templates == [extend(prefects_own(Kind.DOCKER), Kind.DOCKER)]


@pytest.mark.parametrize("missing", [VARIABLES[:1], VARIABLES[1:], VARIABLES])
def test_without_a_server_an_image_or_a_repository_nothing_is_deployed(monkeypatch, missing):
    monkeypatch.setattr(pools, "run_command", pytest.fail)
    for name in VARIABLES:
        monkeypatch.setenv(name, "" if name in missing else "x")
    with pytest.raises(InputError, match=rf"^the environment: {', '.join(missing)} must be set\. Export"):
        make_pool(Kind.KUBERNETES)


def test_a_server_that_is_not_there_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(pools, "run_command", pytest.fail)
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9/api")
    with pytest.raises(StateError, match="no Prefect server answers"):
        make_pool(Kind.DOCKER)
