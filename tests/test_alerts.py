"""Alerts: what arrives at the webhook, and that a night does not depend on its arrival."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger

from flows import monitoring, scoring, training
from flows.alerts import WEBHOOK, alert, alert_of_failure

SECRET = "T0K3N"


@pytest.fixture
def webhook(monkeypatch):
    """A server that keeps what is posted to it; `status` is what it answers."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.received = 200, received
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/{SECRET}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_is_one_sentence_with_what_and_where(webhook):
    assert alert("refused", "hstuflow:1", "worse than the champion")
    body = {"text": "hstuflow, hstuflow:1: worse than the champion", "event": "refused", "where": "hstuflow:1"}
    assert webhook.received == [(f"/{SECRET}", "application/json", body)]


def test_a_failed_run_alerts_with_its_own_sentence(webhook):
    state = SimpleNamespace(message="Flow run encountered an exception: train: loss is not finite", name="Failed")
    alert_of_failure(training.training_flow, SimpleNamespace(name="brave-newt"), state)
    [(_, _, body)] = webhook.received
    assert (body["event"], body["where"]) == ("failed", "hstuflow brave-newt")
    assert "train: loss is not finite" in body["text"]


@pytest.mark.parametrize("flow", [training.training_flow, monitoring.monitoring_flow, scoring.scoring_flow])
def test_failures_and_crashes_of_the_flows_alert(flow):
    assert flow.on_failure_hooks == [alert_of_failure]
    assert flow.on_crashed_hooks == [alert_of_failure]


def test_without_a_webhook_an_alert_is_logged_and_nothing_else(monkeypatch, caplog):
    monkeypatch.delenv(WEBHOOK, raising=False)
    assert not alert("drifted", "the service", "unknown items 0.4")
    assert "drifted: the service: unknown items 0.4" in caplog.text


@pytest.mark.parametrize("status", [404, 500])
def test_a_webhook_that_refuses_is_no_failure_and_its_address_stays_secret(webhook, caplog, status):
    webhook.status = status
    assert not alert("failed", "night", "why")
    assert f"answered {status}" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/T0K3N",
        "no address T0K3N",
        "ftp//T0K3N",
        "http://127.0.0.1:{port}/T0K3N /x",
        "http://127.0.0.1:T0K3N/",
        "http://127.0.0.1:{port}/T0K3N/\N{SNOWMAN}",
        "http://[T0K3N/",
    ],
)
def test_a_webhook_that_cannot_be_reached_is_no_failure_and_its_address_stays_secret(monkeypatch, caplog, address):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv(WEBHOOK, address.format(port=probe.getsockname()[1]))  # bound, and nobody listens
        assert not alert("failed", "night", "why")
    assert "the alert did not arrive" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("answer", [b"T0K3N what is this?\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200])
def test_a_webhook_that_speaks_no_http_is_no_failure_and_what_it_says_is_not_logged(monkeypatch, caplog, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}")
        assert not alert("failed", "night", "why")
        thread.join()
    assert "the alert did not arrive" in caplog.text
    assert SECRET not in caplog.text


def write_decisions(folder, *whats):
    lines = [
        {"time": "t", "what": what, "tag": f"hstuflow:{number}", "candidate": {}, "champion": None, "reasons": ["slow"]}
        for number, what in enumerate(whats)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ([], ["refused"], ["hstuflow:0"]),
        (["refused"], ["refused"], []),  # the same model as last night: told already
        (["promoted"], ["promoted", "refused"], ["hstuflow:1"]),
        ([], ["promoted"], []),
    ],
)
def test_a_refusal_alerts_once(webhook, tmp_path, monkeypatch, before, after, refused):
    write_decisions(tmp_path / "registry", *before)
    monkeypatch.setattr(training, "REGISTRY", tmp_path / "registry")
    monkeypatch.setattr(training, "run_command", lambda *_, **__: write_decisions(tmp_path / "registry", *after))
    monkeypatch.setattr(training, "publish", lambda _: None)
    with disable_run_logger():
        training.promote.fn()
    assert [body["where"] for _, _, body in webhook.received] == refused
