"""Made files, archives and a loopback web server for the tests of ingestion."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

U_DATA = "1\t10\t5\t881250949\n2\t20\t3\t891717742\n1\t20\t4\t881250949\n"
U_ITEM = (
    "10|Mis\xe9rables, Les (1995)|01-Jan-1995||http://made/|0|1|0|1\n"
    "20|Naked Gun 33 1/3 (1994)|01-Jan-1994||http://made/|0|0|0|0\n"
)
U_GENRE = "unknown|0\nAction|1\nChildren's|2\nSci-Fi|3\n\n"
RATINGS_DAT = "1::10::5::978300760\n2::20::3::978302109\n1::20::4::978301968\n"
MOVIES_DAT = "10::Mis\xe9rables, Les (1995)::Drama|Musical\n20::Mission:: Impossible :: II (2000)::Action\n"
RATINGS_CSV = "userId,movieId,rating,timestamp\n1,10,3.5,1112486027\n2,20,4.0,1112484676\n1,20,0.5,1112484819\n"
MOVIES_CSV = 'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n20,Solo (2006),Drama\n'

ARCHIVES: dict[str, dict[str, bytes]] = {
    "ml-100k": {
        "ml-100k/u.data": U_DATA.encode(),
        "ml-100k/u.item": U_ITEM.encode("latin-1"),
        "ml-100k/u.genre": U_GENRE.encode(),
        "ml-100k/README": b"terms",
    },
    "ml-1m": {
        "ml-1m/ratings.dat": RATINGS_DAT.encode(),
        "ml-1m/movies.dat": MOVIES_DAT.encode("latin-1"),
        "ml-1m/users.dat": b"1::F::1::10::48067\n",
    },
    "ml-20m": {
        "ml-20m/ratings.csv": RATINGS_CSV.encode(),
        "ml-20m/movies.csv": MOVIES_CSV.encode(),
        "ml-20m/tags.csv": b"userId,movieId,tag,timestamp\n",
    },
    "movietweetings": {
        "ratings.dat": b"1::0104257::8::1365029107\n2::1074638::7::1366576639\n1::1074638::10::1365029200\n",
        "movies.dat": "0104257::Fant\xf4mas - \xc0 l'ombre (1913)::Crime|Drama\n1074638::Skyfall (2012)::\n".encode(),
    },
}


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class MadeFile:
    """A file that exists only in a test: data row 0 is line 2."""

    shown = "made.csv"
    notes: Sequence[str] = ()

    def column_names(self) -> list[str]:
        return ["id"]

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError(names)

    def place_of(self, row: int) -> str:
        return f"line {row + 2}"


@dataclass
class Site:
    """What a loopback server answers, per path: bytes, or a list of statuses to go through before the bytes."""

    url: str
    pages: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cut_short: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[Site]:
    """Run a web server on a free port of the loopback interface."""
    site = Site("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.asked.append(path)
            pending = site.statuses.get(path, [])
            status = pending.pop(0) if pending else 200 if path in site.pages else 404
            body = site.pages.get(path, b"") if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + (10 if path in site.cut_short else 0)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shared_archive(name: str) -> Path:
    """Return a real archive that lies beside the repository; skips the test where it does not."""
    import os

    folder = Path(os.environ.get("HSTUFLOW_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}; set HSTUFLOW_SHARED_DATA to a folder that has it")
    return folder / name
