"""Real services in tests: a port, the end of a start, and the end."""

import contextlib
import time

import httpx
import psutil


def stop(server):
    """End the server and its workers, which are no members of its process group."""
    if server.poll() is None:
        workers = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def wait_until_ready(client, server, log):
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            assert server.poll() is None, log.read_text()
        time.sleep(0.2)


def await_lines(log, text):
    """Return a log's lines with a text in them; a request's line comes after its answer."""
    while not (lines := [line for line in log.read_text().splitlines() if text in line]):
        time.sleep(0.05)
    return lines


def await_metric(client, text):
    """Return /metrics once it holds a text; what a request counts at its end comes after its answer."""
    while text not in (metrics := client.get("/metrics").text):
        time.sleep(0.05)
    return metrics
