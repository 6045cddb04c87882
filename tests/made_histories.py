"""Redis servers of the tests' own, and a model of what a store of histories has to do."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_ports import free_port

from components.serving.history_store import StoredEvent

ROOT = Path(__file__).parent.parent
SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(SERVER is None, reason="needs redis-server or valkey-server: apt install redis-server")


class Server:
    """A Redis or Valkey server on a port of its own, whose files lie in `folder`."""

    def __init__(self, folder, *options):
        self.port = free_port()
        listen = () if "--tls-port" in options else ("--port", str(self.port))
        options = [str(self.port) if option == "PORT" else option for option in options]
        self.command = [SERVER, "--dir", str(folder), "--bind", "127.0.0.1", "--save", "", *listen, *options]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while not self.is_ready():
            assert self.process.poll() is None, "the server ended at once"
            time.sleep(0.01)

    def is_ready(self):
        """Whether it answers, and not that it is still loading its files; of TLS, whether it listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                if "--tls-port" in self.command:
                    return True
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        except (ConnectionRefusedError, ConnectionResetError):
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def running_server(folder, *options):
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.kill()


class Model:
    """One user's history in a list: what every store has to agree with."""

    def __init__(self, keep):
        self.keep, self.rows, self.arrived = keep, [], 0

    def append(self, events):
        before = self.arrived
        for event in events:
            if event.event_id not in {known.event_id for _, _, known in self.rows}:
                self.rows.append((event.timestamp, self.arrived, event))
                self.arrived += 1
        self.rows = sorted(self.rows, key=lambda row: row[:2])[-self.keep :]
        return self.arrived - before

    def forget(self):
        count, self.rows = len(self.rows), []
        return count

    @property
    def events(self):
        return tuple(event for _, _, event in self.rows)


def event(event_id, item_id=50, timestamp=0):
    return StoredEvent(event_id, item_id, timestamp)


def numbered(start, stop, prefix="e"):
    """Events e<start>, ... whose times ascend."""
    return [StoredEvent(f"{prefix}{i}", i, i) for i in range(start, stop)]


def ids(events):
    return [event.event_id for event in events]


def start_program(program, *arguments):
    """Start a Python program in the repository root."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def bytes_in(folder):
    """All bytes of all files in a folder."""
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
