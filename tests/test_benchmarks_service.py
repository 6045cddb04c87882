"""The service's benchmark: the load it makes, what it counts, and that it stays on this machine."""

import csv
import http.server
import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from benchmarks import bench_service, load


@contextmanager
def serving(statuses, items=10):
    """A server that answers with these statuses in turn, then with the last one; so many items each."""
    left = list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status = left.pop(0) if len(left) > 1 else left[0]
            body = json.dumps({"items": [0] * items}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/recommend"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(capsys, tmp_path, url, bodies, *options):
    (tmp_path / "bodies.json").write_text(json.dumps(bodies))
    assert load.main(["--url", url, "--bodies", str(tmp_path / "bodies.json"), *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_requests_start_by_the_clock_and_every_outcome_is_counted(capsys, tmp_path):
    with serving([429, 503, 200]) as url:
        found = run(capsys, tmp_path, url, [{"k": 10}], "--seconds", "0.5", "--rate", "100")
    assert found["statuses"] == {"200": 48, "429": 1, "503": 1}
    assert found["wrong"] == 0
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]


def test_an_answer_with_the_wrong_number_of_items_is_wrong(capsys, tmp_path):
    with serving([200]) as url:
        found = run(capsys, tmp_path, url, [{"k": 9}, {"candidates": [1] * 10}], "--seconds", "0.2", "--rate", "50")
    assert found["wrong"] == 5


def test_an_answer_without_items_is_wrong(capsys, tmp_path):
    with serving([200], items=0) as url:
        found = run(capsys, tmp_path, url, [{"k": 9}], "--seconds", "0.1", "--rate", "50")
    assert found["wrong"] == 5


def test_a_service_that_is_not_there_is_counted_and_does_not_end_the_load(capsys, tmp_path):
    with serving([200]) as url:
        pass
    found = run(capsys, tmp_path, url, [{"k": 10}], "--seconds", "0.1", "--rate", "50")
    assert found["statuses"] == {"ClientConnectorError": 5}


def test_load_goes_to_loopback_only(capsys):
    with pytest.raises(SystemExit):
        load.main(["--url", "http://example.org/recommend", "--bodies", "x.json", "--seconds", "1"])
    assert "loopback only" in capsys.readouterr().err


def test_the_model_s_own_share_is_measured_on_a_packaged_shape(tmp_path):
    checkpoint = bench_service.write_model(tmp_path, 60)
    rows = list(bench_service.measure_model(SimpleNamespace(items=60, rounds=3), tmp_path, checkpoint))
    assert [row["case"][:6] for row in rows] == ["model'", *["encode"] * 8, *["stored"] * 3]
    assert rows[0]["facts"] == "exact"
    assert all(row["p50_ms"] > 0 for row in rows)


def test_a_start_alone_is_one_row(tmp_path, monkeypatch):
    class Process:
        def memory_info(self):
            return SimpleNamespace(rss=5 << 20)

        def children(self, recursive):
            return [self, self]

    class Served:
        def __enter__(self):
            return bench_service.Server("http://127.0.0.1:1", Process(), 2.5)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(bench_service, "serving", lambda folder: Served())
    results = tmp_path / "service.csv"
    assert bench_service.main(["--items", "60", "--start-only", "--results", str(results)]) == 0
    with results.open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["items"], row["facts"]) == ("60", "ready after 2.5 s, 15 MB in all processes")


@pytest.mark.slow
def test_the_whole_benchmark_runs_against_a_real_service(tmp_path):
    results = tmp_path / "service.csv"
    assert bench_service.main(["--items", "2000", "--seconds", "1", "--rounds", "2", "--results", str(results)]) == 0
    with results.open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert "ready after" in rows["start"]["facts"]
    assert rows["one request, 200 events, HTTP"]["facts"].startswith("200: ")
    assert rows["a stored user, 200 events, HTTP"]["facts"].startswith("200: ")
    flood = rows["5 times the capacity"]["facts"]
    assert {part.split(":")[0] for part in flood.split(", ")} <= {"200", "429", "503", "504"}
