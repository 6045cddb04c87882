"""Zip archives and folders as named members; nothing is ever written where a member's name says."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from components.errors import InputError
from components.sources.cells import shorten
from components.sources.fetch import LocalFile
from components.sources.text import BLOCK, looks_like_html, opened_file

_AGAIN = "Fetch the archive again"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


def unpack(archive: LocalFile, wanted: Mapping[str, str], scratch: Path) -> dict[str, LocalFile]:
    """Copy members of a zip into `scratch` under names of our own; `wanted` maps a key to the member's full name.

    Raises:
        InputError: a member cannot be read to its end, or its checksum is wrong.
    """
    files = {}
    with zipfile.ZipFile(archive.path) as opened:
        for key, member in wanted.items():
            target = scratch / f"{len(list(scratch.iterdir()))}-member"
            try:
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, BLOCK)
            except _BROKEN as error:
                where = f"{archive.shown}/{member}"
                raise InputError("is corrupt", where=where, observed=shorten(str(error)), todo=_AGAIN) from None
            files[key] = LocalFile(target, f"{archive.shown}/{member}", PurePosixPath(member).name)
    return files


def list_members(archive: LocalFile) -> list[str]:
    """Return the files in a zip archive.

    Raises:
        InputError: empty, a web page, not a zip, cut short, or a member that points outside.
    """
    with opened_file(archive) as raw:
        head = raw.read(64)
    if not head:
        raise InputError("is empty", where=archive.shown, expected="a zip archive", todo=_AGAIN)
    if looks_like_html(head):
        raise InputError("is a web page, not an archive", where=archive.shown, observed=shorten(head), todo=_AGAIN)
    try:
        with zipfile.ZipFile(archive.path) as opened:
            infos = opened.infolist()
    except _BROKEN as error:
        raise InputError(
            "is not a whole zip archive", where=archive.shown, observed=shorten(str(error)), todo=_AGAIN
        ) from None
    for info in infos:
        if _points_outside(info):
            raise InputError(
                "has a member that points outside its folder",
                where=archive.shown,
                observed=shorten(info.filename),
                todo="Do not trust this archive",
            )
    return [info.filename for info in infos if not info.is_dir()]


def _points_outside(info: zipfile.ZipInfo) -> bool:
    posix, windows = PurePosixPath(info.filename), PureWindowsPath(info.filename)
    parts = (*posix.parts, *windows.parts)
    return posix.is_absolute() or bool(windows.anchor) or ".." in parts or stat.S_ISLNK(info.external_attr >> 16)


def rewritten(file: LocalFile, scratch: Path, transform: Callable[[bytes], bytes]) -> LocalFile:
    """Return a copy of `file` in which `transform` changed each block of whole lines; line numbers must stay."""
    target = scratch / f"{len(list(scratch.iterdir()))}-rewritten"
    with file.path.open("rb") as source, target.open("wb") as sink:
        while block := source.read(BLOCK):
            sink.write(transform(block + source.readline()))
    return LocalFile(target, file.shown, file.name)
