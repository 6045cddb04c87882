"""Text files made plain before anybody parses them: decompressed, on local disk, checked for what no table holds.

One pass at about 1 GB/s; Arrow's readers would take NUL bytes for text, an HTML page for one strange column, and a gzip
cut in the middle for a short log.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from components.errors import InputError
from components.sources.fetch import LocalFile

BLOCK = 1 << 22  # bytes

GZIP_MAGIC = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")


@dataclass(frozen=True)
class PlainText:
    """A checked, uncompressed text file. `odd_quotes`: it has an odd number of quotation marks."""

    path: Path
    shown: str
    encoding: str  # "utf8", or "latin-1" where the bytes are not UTF-8
    odd_quotes: bool


def plain_text(file: LocalFile, scratch: Path) -> PlainText:
    """Check `file`, and decompress it into `scratch` where it is gzip.

    Raises:
        InputError: empty, UTF-16, NUL bytes, an HTML page, a zip archive, corrupt or truncated gzip.
    """
    with opened_file(file) as raw:
        is_gzip = raw.read(2) == GZIP_MAGIC
    if file.name.endswith(".gz") and not is_gzip and not file.downloaded:  # servers may send .gz already unpacked
        raise InputError("is not gzip although its name says so", where=file.shown, todo="Fetch or pack the file again")
    if not is_gzip:
        return _check(file.shown, file.path, _blocks(file.path))
    target = scratch / f"{len(list(scratch.iterdir()))}-{file.name.removesuffix('.gz')}"
    with target.open("wb") as sink:
        return _check(file.shown, target, _gunzipped(file, sink))


def looks_like_html(head: bytes) -> bool:
    """Return whether a file starts like a web page, such as an error or a login page saved under another name."""
    return head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:20].lower().startswith(_HTML)


def _check(shown: str, path: Path, blocks: Iterator[bytes]) -> PlainText:
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding, quotes, lines, size = "utf8", 0, 0, 0
    for block in blocks:
        if size == 0:
            _check_head(shown, block)
        if b"\0" in block:
            line = lines + block[: block.index(b"\0")].count(b"\n") + 1
            raise InputError("holds a NUL byte", where=f"{shown}, line {line}", todo="Save the table as UTF-8 text")
        if encoding == "utf8" and not _decodes(decoder, block):
            encoding = "latin-1"
        quotes += block.count(b'"')
        lines += block.count(b"\n")
        size += len(block)
    if size == 0:
        raise InputError("is empty", where=shown, expected="a header line and events")
    if encoding == "utf8" and not _decodes(decoder, b"", final=True):
        encoding = "latin-1"
    return PlainText(path, shown, encoding, quotes % 2 == 1)


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True


def _check_head(shown: str, head: bytes) -> None:
    if head.startswith(_UTF16):
        raise InputError("is UTF-16 text", where=shown, expected="UTF-8", todo="Save it as UTF-8")
    if looks_like_html(head):
        raise InputError("is a web page, not a table", where=shown, observed=_first_line(head), expected="a table")
    if head.startswith(b"PK\x03\x04"):
        raise InputError(
            "is a zip archive", where=shown, expected="a table", todo="Unpack it, or use --source grouplens"
        )


def _first_line(head: bytes) -> str:
    return repr(head.decode("latin-1").strip().splitlines()[0][:60])


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block


def _gunzipped(file: LocalFile, sink: IO[bytes]) -> Iterator[bytes]:
    todo = "Fetch or pack the file again"
    try:
        with gzip.open(file.path, "rb") as stream:
            while block := stream.read(BLOCK):
                sink.write(block)
                yield block
    except EOFError:
        raise InputError("is a gzip that ends in the middle", where=file.shown, todo=todo) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError("is a corrupt gzip", where=file.shown, observed=str(error), todo=todo) from None


def opened_file(file: LocalFile) -> IO[bytes]:
    """Open `file`; raises InputError where this user may not."""
    try:
        return file.path.open("rb")
    except OSError as error:
        raise InputError("cannot be read", where=file.shown, observed=error.strerror) from None
