"""MovieLens 100K from the wheel of RecBole 1.2.1: reachable wherever pip is, so a fresh clone needs nothing else.

The wheel is downloaded, never installed. The body of its `.inter` file is byte for byte the `u.data` of GroupLens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from components.errors import InputError, SourceUnreachableError
from components.sources.archive import list_members, unpack
from components.sources.cells import shorten
from components.sources.delimited import DelimitedFile
from components.sources.events import ItemTable, read_events
from components.sources.fetch import LocalFile
from components.sources.grouplens import (
    ACTION,
    EVENT_HEADER,
    SEPARATOR,
    TERMS_NOTE,
    md5_of,
    read_rewritten_items,
)
from components.sources.log import SourceLog
from components.sources.text import plain_text

WHEEL = "recbole==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
MD5_EVENTS = "6e47046882bad158b0efbb84cd5cb987"  # of u.data, that is of .inter without its header line
MD5_ITEMS = "fb748e97e64d9a35421d06d7083d0959"  # of .item
_LOCAL = "Check the network, or download ml-100k.zip from GroupLens and pass `--source grouplens --path ml-100k.zip`"


def read_movielens_100k(scratch: Path) -> SourceLog:
    """Download the wheel with pip and read the two files in it.

    Raises:
        SourceUnreachableError: pip cannot get the wheel.
        InputError: the wheel does not hold the known bytes.
    """
    wheel = download_wheel(scratch)
    members = unpack(wheel, _find(list_members(wheel), wheel), scratch)
    body = _without_header(members["inter"], scratch)
    _check(body, MD5_EVENTS)
    _check(members["item"], MD5_ITEMS)
    file = DelimitedFile(plain_text(body, scratch), "\t", EVENT_HEADER, quoted=False)
    events = read_events([(file, {name: name for name in EVENT_HEADER})], unit="s", action=ACTION)
    return SourceLog(events, _items(members["item"], scratch), terms=TERMS_NOTE)


def download_wheel(scratch: Path) -> LocalFile:
    """Return the wheel, fetched by this interpreter's pip from whatever index it is set up for."""
    folder = scratch / "wheel"
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        complaint = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise SourceUnreachableError(
            "cannot be downloaded with pip", where=WHEEL, observed=shorten(complaint[-1], 160), todo=_LOCAL
        )
    return LocalFile(wheels[0], wheels[0].name, wheels[0].name, downloaded=True)


def _find(members: list[str], wheel: LocalFile) -> dict[str, str]:
    wanted = {kind: f"{_FOLDER}/ml-100k.{kind}" for kind in ("inter", "item")}
    for member in wanted.values():
        if member not in members:
            raise InputError("has no such member", where=f"{wheel.shown}/{member}", todo=_LOCAL)
    return wanted


def _without_header(file: LocalFile, scratch: Path) -> LocalFile:
    target = scratch / "u.data"
    target.write_bytes(file.path.read_bytes().partition(b"\n")[2])
    return LocalFile(target, file.shown, file.name)


def _check(file: LocalFile, expected: str) -> None:
    observed = md5_of(file.path)
    if observed != expected:
        raise InputError(
            "does not hold the known bytes",
            where=file.shown,
            observed=f"md5 {observed}",
            expected=expected,
            todo=_LOCAL,
        )


def _items(file: LocalFile, scratch: Path) -> ItemTable:
    return read_rewritten_items(_without_header(file, scratch), scratch, _as_grouplens)


def _as_grouplens(line: bytes) -> bytes:
    """Turn id, title, year, genres between tabs into id, 'title (year)', 'genre|genre'."""
    fields = line.split(b"\t")
    if len(fields) != 4:
        return line
    item, title, year, genres = fields
    named = title + b" (" + year + b")" if year.isdigit() else title
    return SEPARATOR.encode().join((item, named, genres.replace(b" ", b"|")))
