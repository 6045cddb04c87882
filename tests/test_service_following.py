"""A real `bentoml serve` that follows the champion while it is asked: promotions, rollbacks, and what cannot be served.

Two models whose catalogues have no item in common, so that an answer shows by its items which model gave it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from made_challenges import write_challenge
from made_checkpoints import write_judged
from made_items import structure
from made_ports import free_port
from made_services import await_metric, stop, wait_until_ready

from components import packaging, registry
from components.files import read_json, write_json
from components.serving.history_store import open_store
from components.serving.request_log import read_rows
from components.settings import PackageSettings

HISTORY = [{"item_id": f"{name}-{number}", "timestamp": 1_000 + number} for number in range(6) for name in "ab"]
SWAPS = 6

pytestmark = pytest.mark.slow


class Workspace:
    """A folder with a registry, a BentoML store, and two promoted models: first a's, then b's."""

    def __init__(self, root):
        self.root, self.registry, self.pointer = root, root / "registry", root / "registry" / "champion.json"
        self.tags = {}
        for seed, name in enumerate("ab"):
            shutil.rmtree(root / "artifacts", ignore_errors=True)
            structure(write_judged(root, [f"{name}-{number}" for number in range(40)], seed=seed), 40)
            folders = {"artifacts": root / "artifacts", "reports": root / "reports"}
            packaging.package(PackageSettings(model="hstu", name="hstuflow"), **folders)
            write_challenge(root)
            registry.promote(**folders, registry=self.registry)
            self.tags[name] = read_json(self.pointer)["model_tag"]

    def model(self, name):
        return self.root / "bentoml" / "models" / self.tags[name].replace(":", "/")

    def switch(self):
        """Roll back, or promote again."""
        if read_json(self.pointer)["model_tag"] == self.tags["b"]:
            registry.rollback(registry=self.registry)
        else:
            folders = {"artifacts": self.root / "artifacts", "reports": self.root / "reports"}
            write_challenge(self.root)
            registry.promote(**folders, registry=self.registry, again=True)
        return read_json(self.pointer)["model_tag"]

    def add_model(self, name, change):
        """Put a changed copy of b's model into the store under another tag, and return the tag."""
        copy = self.model("b").parent / name
        shutil.copytree(self.model("b"), copy)
        description = (copy / "model.yaml").read_text()
        (copy / "model.yaml").write_text(description.replace(f"version: {self.model('b').name}", f"version: {name}"))
        change(copy)
        return f"hstuflow:{name}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("following")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(root / "bentoml"))
        patch.setattr(packaging, "find_commit", lambda: packaging.Commit("c" * 40, 1_760_000_000))
        yield Workspace(root)


@contextlib.contextmanager
def serving(workspace, name):
    """Serve a's Bento, which follows the pointer; all services of a workspace share one file of histories."""
    port, root, log = free_port(), workspace.root, workspace.root / f"{name}.log"
    environment = os.environ | {"BENTOML_DO_NOT_TRACK": "True", "HSTUFLOW_FOLLOW": str(workspace.pointer)}
    environment["HSTUFLOW_REQUESTS"] = str(root / "requests")
    environment["HSTUFLOW_HISTORIES"] = f"sqlite:///{root / 'histories.db'}"
    first = json.loads((workspace.registry / "decisions.jsonl").read_text().splitlines()[0])["tag"]
    command = [sys.executable, "-m", "bentoml", "serve", first, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_ready(client, server, log)
                client.pid = server.pid
                yield client
        finally:
            stop(server)


@pytest.fixture(scope="module")
def client(workspace):
    with serving(workspace, "server") as client:
        yield client


def ask(client, **request):
    answer = client.post("/recommend", json={"request_time": 5_000, "k": 5} | request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def await_model(client, tag):
    while client.get("/info").json()["model"]["tag"] != tag:
        time.sleep(0.05)


def await_refusal(client, tag):
    while (found := client.get("/info").json()["champion"])["tag"] != tag or found["refused"] is None:
        time.sleep(0.05)
    return found["refused"]


def check_whole(answer, tags):
    """Raise unless all items of an answer are of the model that it names."""
    (name,) = [name for name, tag in tags.items() if tag == answer["model"]["tag"]]
    assert len(answer["items"]) == 5, answer
    assert {item["item_id"][0] for item in answer["items"]} == {name}, answer
    assert all(item[0] != name for item in answer["unknown_items"]), answer
    return name


def test_at_its_start_a_follower_serves_the_champion_and_not_what_its_bento_holds(client, workspace):
    answer = ask(client, history=HISTORY)
    assert check_whole(answer, workspace.tags) == "b"
    first = read_json(workspace.pointer)["previous"]
    assert (answer["model"]["bento"], answer["model"]["tag"]) == (first, workspace.tags["b"])
    info = client.get("/info").json()
    assert info["champion"] == {"tag": workspace.tags["b"], "refused": None}
    assert 0 < info["model_since"] <= time.time()


def test_promotions_and_rollbacks_under_load_fail_no_request_and_mix_no_answer(client, workspace):
    events = [event | {"event_id": str(number)} for number, event in enumerate(HISTORY)]
    assert client.post("/events", json={"user_id": "ann", "events": events}).json()["new"] == len(HISTORY)
    ended, seen, problems = threading.Event(), [], []
    asked = [{"history": HISTORY}, {"user_id": "ann"}, {"history": []}, {"history": HISTORY[:1], "k": 5}]

    def load(request):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.is_set():
                try:
                    seen.append(check_whole(ask(own, **request), workspace.tags))
                except (AssertionError, ValueError, httpx.HTTPError) as problem:
                    problems.append(problem)

    threads = [threading.Thread(target=load, args=(request,)) for request in asked]
    for thread in threads:
        thread.start()
    try:
        for _ in range(SWAPS):
            await_model(client, workspace.switch())
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert {"a", "b"} == set(seen)
    metrics = await_metric(client, f"hstuflow_model_swaps_total {SWAPS}.0")
    assert "hstuflow_model_swaps_failed_total 0.0" in metrics or "swaps_failed" not in metrics
    assert "hstuflow_model_since_timestamp_seconds" in metrics


def test_every_answer_leaves_a_row_which_a_forgotten_user_takes_along(client, workspace):
    def rows():
        files = sorted((workspace.root / "requests").glob("*/*.jsonl"))
        return {row["request_id"]: row for file in files for row in read_rows(file)}

    headers = {"X-Request-ID": "look-for-me"}
    event = {"event_id": "1", "item_id": "a-3", "timestamp": 1_000}
    client.post("/events", json={"user_id": "forgotten", "events": [event]})
    answer = client.post("/recommend", json={"user_id": "forgotten", "k": 3, "request_time": 5_000}, headers=headers)
    while "look-for-me" not in rows():
        time.sleep(0.05)
    row = rows()["look-for-me"]
    assert row["items"] == [item["item_id"] for item in answer.json()["items"]]
    assert (row["model"], row["user_id"]) == (answer.json()["model"]["tag"], "forgotten")
    assert client.delete("/users/forgotten").json() == {"deleted": 1}
    assert "look-for-me" not in rows()
    assert 'hstuflow_request_log_rows_total{result="written"}' in client.get("/metrics").text


def break_weights(model):
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])


def need_other_code(model):
    facts = read_json(model / "checkpoint.json")
    write_json(model / "checkpoint.json", facts | {"settings": facts["settings"] | {"mixture_of_experts": 4}})


@pytest.mark.parametrize(
    ("name", "change", "refused"),
    [
        ("missing", shutil.rmtree, "is not in the BentoML store"),
        ("broken", break_weights, "does not fit the model that checkpoint.json describes"),
        ("newer", need_other_code, "needs the code of another version"),
        ("odd", lambda model: (model / "item_map.json").write_text("{"), "cannot be read"),
        ("nameless", lambda model: (model / "model.yaml").write_text("- of another kind"), "it cannot be loaded"),
    ],
)
def test_a_champion_that_cannot_be_served_changes_nothing_until_it_can_be(client, workspace, name, change, refused):
    before = ask(client, history=HISTORY)
    champion = read_json(workspace.pointer)
    tag = workspace.add_model(name, change)
    write_json(workspace.pointer, champion | {"model_tag": tag})
    assert await_refusal(client, tag) == f"{tag}: {refused}"
    assert ask(client, history=HISTORY) == before
    log = [
        line for line in (workspace.root / "server.log").read_text().splitlines() if "champion is not served" in line
    ]
    assert len([line for line in log if refused in line]) == 1
    mended = workspace.model("b").parent / name
    shutil.rmtree(mended, ignore_errors=True)
    workspace.add_model(name, lambda model: None)
    await_model(client, tag)
    while client.get("/info").json()["champion"] != {"tag": tag, "refused": None}:
        time.sleep(0.05)
    write_json(workspace.pointer, champion)
    await_model(client, champion["model_tag"])


def test_a_damaged_pointer_changes_nothing(client, workspace):
    before, whole = ask(client, history=HISTORY), workspace.pointer.read_bytes()
    workspace.pointer.write_text("<<<<<<< HEAD\n")
    assert await_refusal(client, None) == "the pointer: the pointer is damaged"
    assert ask(client, history=HISTORY) == before
    workspace.pointer.write_bytes(whole)
    while client.get("/info").json()["champion"]["refused"] is not None:
        time.sleep(0.05)


def test_a_killed_worker_comes_back_with_the_champion(client, workspace):
    champion = workspace.switch()
    await_model(client, champion)
    kill_worker(client)
    await_ready(client)
    assert ask(client, history=HISTORY)["model"]["tag"] == champion


def kill_worker(client):
    (worker,) = [p for p in psutil.Process(client.pid).children(recursive=True) if "worker" in " ".join(p.cmdline())]
    worker.kill()


def await_ready(client):
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)


def test_two_services_on_one_file_lose_nothing_acknowledged_though_a_worker_is_killed_under_load(client, workspace):
    acknowledged, unclear, events = [], [], 40

    def send(url, name):
        with httpx.Client(base_url=url, timeout=60) as own:
            for number in range(events):
                event = {"event_id": f"{name}-{number}", "item_id": f"a-{number % 40}", "timestamp": 2_000 + number}
                try:
                    answer = own.post("/events", json={"user_id": "bea", "events": [event]})
                    answer.raise_for_status()
                    acknowledged.append(event["event_id"])
                except httpx.HTTPError:
                    unclear.append(event["event_id"])

    with serving(workspace, "second") as second:
        urls = [client.base_url, second.base_url]
        senders = [threading.Thread(target=send, args=(urls[n % 2], f"sender{n}")) for n in range(4)]
        for sender in senders:
            sender.start()
        while len(acknowledged) < events:
            time.sleep(0.01)
        kill_worker(second)
        for sender in senders:
            sender.join()
        await_ready(second)
        store = open_store(f"sqlite:///{workspace.root / 'histories.db'}")
        kept = [event.event_id for event in store.read("bea", limit=1_000).events]
        store.close()
        assert len(kept) == len(set(kept))
        assert set(acknowledged) <= set(kept) <= {*acknowledged, *unclear}
        answers = [ask(one, user_id="bea") for one in (client, second)]
        assert [item["item_id"] for item in answers[0]["items"]] == [item["item_id"] for item in answers[1]["items"]]
        assert second.delete("/users/bea").status_code == 200
        assert ask(client, user_id="bea")["source"] == "popular"
