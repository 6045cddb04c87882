"""A path as a person types it (file, folder, glob, or any fsspec URL) -> files on local disk, in a fixed order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.console import log
from components.errors import InputError, SourceUnreachableError

WAITS = (1.0, 4.0)  # seconds before the second and the third attempt


@dataclass(frozen=True)
class LocalFile:
    """A file to read: where it lies now, and how messages and rules about its name see it.

    relative: its place below the folder that was named, or before the first `*`; a single file's own name
    """

    path: Path
    shown: str
    name: str
    downloaded: bool = False
    relative: str = ""


def is_url(path: str) -> bool:
    """Return whether `path` names something fsspec has to fetch."""
    return "://" in path


def local_files(path: str, scratch: Path, *, todo: str | None = None) -> list[LocalFile]:
    """Return the files that `path` means, sorted by name; URLs are downloaded into `scratch`.

    `todo` says what a person can do when a URL cannot be reached.

    Raises:
        InputError: no such file, an empty folder, or a URL that answers "no".
        SourceUnreachableError: a URL failed three times.
    """
    if is_url(path):
        return _downloaded(path, scratch, todo or _take_it_by_hand(path))
    found = Path(path).expanduser()
    top = found if found.is_dir() else found.parent
    if found.is_dir():
        files = [file for file in sorted(found.rglob("*")) if file.is_file() and not _hidden(file.relative_to(found))]
    elif any(sign in path for sign in "*?[") and not found.exists():
        files, top = _globbed(path), _fixed_part(Path(path))
    else:
        files = [found]
    if not files:
        raise InputError("holds no files", where=path, todo="Check the path")
    for file in files:
        if not file.is_file():
            raise InputError("no such file", where=str(file), todo="Check the path")
    return [LocalFile(file, str(file), file.name, relative=file.relative_to(top).as_posix()) for file in files]


def _fixed_part(pattern: Path) -> Path:
    """Return the folder that all matches of a glob lie below."""
    magic = next(number for number, part in enumerate(pattern.parts) if any(sign in part for sign in "*?["))
    return Path(*pattern.parts[:magic])


def _globbed(pattern: str) -> list[Path]:
    anchor = Path(pattern).anchor
    files = sorted(file for file in Path(anchor or ".").glob(str(Path(pattern).relative_to(anchor))) if file.is_file())
    if not files:
        raise InputError("no file matches", where=pattern, todo="Check the pattern; quote it in a shell")
    return files


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _take_it_by_hand(url: str) -> str:
    return (
        f"Check the network, or download it by other means and pass `--path {Path(urlsplit(url).path).name or 'FILE'}`"
    )


def _downloaded(url: str, scratch: Path, todo: str) -> list[LocalFile]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:
        raise InputError("cannot be fetched", where=url, observed=str(error), expected="a URL fsspec knows") from None
    names = _retry(url, lambda: _expand(system, root), todo)
    if not names:
        raise InputError("holds no files", where=url, todo="Check the URL")
    top = root.split("*")[0].rpartition("/")[0] if "*" in root else root.rstrip("/")
    return list(_copies(system, names, url, scratch, todo, top))


def _expand(system: Any, root: str) -> list[str]:  # noqa: ANN401 - fsspec has no stubs
    """Return the remote files that `root` means. Over http a folder is only what ends in a slash."""
    if "*" in root:
        return sorted(system.glob(root))
    web = "http" in system.protocol
    if root.endswith("/") or (not web and system.isdir(root)):
        return sorted(name for name in system.find(root) if not name.rsplit("/", 1)[-1].startswith((".", "_")))
    return [root]


def _copies(
    system: Any,  # noqa: ANN401
    names: list[str],
    url: str,
    scratch: Path,
    todo: str,
    top: str,
) -> Iterator[LocalFile]:
    for number, name in enumerate(names):
        base = Path(urlsplit(name).path).name or "index.html"
        target = scratch / f"download-{number}-{base}"
        shown = name if is_url(name) else f"{url} ({base})" if len(names) > 1 else url
        _retry(shown, partial(system.get_file, name, str(target)), todo)
        relative = urlsplit(name.removeprefix(f"{top}/")).path if name != top else base
        yield LocalFile(target, shown, base, downloaded=True, relative=relative)


def _options(url: str) -> dict[str, Any]:
    if not url.startswith("http"):
        return {}
    import aiohttp  # its default of 5 minutes for a whole download is too short for ML-20M on a slow line

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}}


def _retry(where: str, action: Callable[[], Any], todo: str) -> Any:  # noqa: ANN401
    """Run `action` up to three times, waiting in between, while the failure may pass."""
    import aiohttp

    for wait in (*WAITS, None):
        try:
            return action()
        except (FileNotFoundError, PermissionError):
            raise InputError("no such file, or no right to read it", where=where, todo="Check the URL") from None
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            status = getattr(error, "status", 500)
            if 400 <= status < 500 and status not in (408, 429):
                raise InputError("is refused by its host", where=where, observed=f"status {status}") from None
            if wait is None:
                raise SourceUnreachableError(
                    "cannot be reached", where=where, observed=f"{type(error).__name__} {error}", todo=todo
                ) from None
            log.warning("%s: %s, trying again in %.0f s", where, type(error).__name__, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
