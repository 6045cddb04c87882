"""A real PostgreSQL server on a free port of loopback, in a folder of its own, for as long as a test wants it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_ports import free_port

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))[-1:]
_PG_CTL = str(_PROGRAMS[0]) if _PROGRAMS else shutil.which("pg_ctl")
# It refuses to run as root; Debian's package brings a user for it.
_USER = "postgres" if os.geteuid() == 0 else None

needs_postgresql = pytest.mark.skipif(_PG_CTL is None, reason="PostgreSQL is not installed (Debian: postgresql)")


class PostgreSQL:
    """What a test does with the server: SQL by its own shell."""

    def __init__(self, folder: Path, password: str) -> None:
        self._folder, self.port = folder, free_port()
        (folder / "password").write_text(password)
        self._environment = os.environ | {"PGPASSWORD": password}

    def url(self, database: str = "postgres") -> str:
        """Return the address without the password, as a person would write it into params.yaml."""
        return f"postgresql://owner@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Create the cluster where there is none yet, and start it."""
        if not (self._folder / "data").exists():
            access = ["--auth=scram-sha-256", f"--pwfile={self._folder / 'password'}", "--username=owner"]
            self._control("initdb", "-o", f"{' '.join(access)} --encoding=UTF8")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off"
        self._control("start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop it at once, clients or not."""
        self._control("stop", "-w", "-m", "immediate")

    def run(self, statement: str) -> None:
        """Run SQL statements."""
        psql = str(Path(str(_PG_CTL)).with_name("psql"))
        command = [psql, self.url(), "--quiet", "--set=ON_ERROR_STOP=1", "--command", statement]
        subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True)

    def _control(self, *arguments: str) -> None:
        command: Sequence[str] = [str(_PG_CTL), *arguments, "-D", str(self._folder / "data")]
        done = subprocess.run(command, user=_USER, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def running_postgresql(password: str) -> Iterator[PostgreSQL]:
    """Start a server; at the end it is stopped and its folder removed."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:  # short: its socket's path has at most 107 bytes
        folder = Path(name)
        if _USER is not None:
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
        server = PostgreSQL(folder, password)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
