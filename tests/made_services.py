"""Real services in tests: a port, the end of a start, and the end."""

import contextlib
import socket
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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(client, server, log):
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            assert server.poll() is None, log.read_text()
        time.sleep(0.2)
