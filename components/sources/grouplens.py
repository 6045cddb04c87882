"""MovieLens archives as GroupLens publishes them, and what else has their layout (MovieTweetings).

    u.data, u.item           ml-100k                      tabs; bars, one 0/1 column per genre, Latin-1
    ratings.dat, movies.dat  ml-1m, ml-10m, MovieTweetings   '::', also inside titles; Latin-1 or UTF-8
    ratings.csv, movies.csv  ml-20m and later, ml-latest  commas and a header

The archive comes by path or URL; a folder or glob of the unpacked files will do too. A known checksum binds what is
downloaded; a local file that differs (re-packed, assembled from copies) is read, and the manifest says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from components.errors import InputError, SettingsError
from components.settings import IngestSettings
from components.sources.archive import list_members, rewritten, unpack
from components.sources.cells import TableFile
from components.sources.columns import find_columns
from components.sources.delimited import DelimitedFile
from components.sources.events import ItemTable, read_events, read_item_table
from components.sources.fetch import LocalFile, is_url, local_files
from components.sources.log import SourceLog
from components.sources.text import BLOCK, plain_text

TERMS = "https://grouplens.org/datasets/movielens/"
TERMS_NOTE = f"MovieLens data is for research only and must not be passed on; terms of use: {TERMS}"

# md5 of each archive, from the .md5 file that GroupLens keeps beside it. ml-latest changes, so it has none.
MD5 = {
    "ml-100k.zip": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m.zip": "ce571fd55effeba0271552578f2648bd",
    "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m.zip": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m.zip": "d472be332d4daa821edc399621853b57",
}

ACTION = "rate"
SEPARATOR = "\x1f"  # stands for '::', which Arrow cannot split at
EVENT_HEADER = ("user_id", "item_id", "rating", "timestamp")
ITEM_HEADER = ("item_id", "title", "genres")
_CSV_EVENTS = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
_CSV_ITEMS = {"item_id": "movieId", "title": "title", "genres": "genres"}
_LAYOUTS = (("u.data", "u.item", "u.genre"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))


def read_grouplens(settings: IngestSettings, scratch: Path) -> SourceLog:
    """Read the archive, folder or files at `settings.path`.

    Raises:
        InputError: no known layout, a corrupt archive, a download with another checksum, a cell that cannot be read.
        SourceUnreachableError: the host cannot be reached.
    """
    if settings.path is None:
        raise SettingsError("is missing", where="--path", expected="an archive such as ml-1m.zip, by path or URL")
    name = PurePosixPath(settings.path).name or "ml-1m.zip"
    todo = f"Download {name} by other means and pass `--source grouplens --path {name}`"
    found = local_files(settings.path, scratch, todo=todo)
    notes = _checksum_notes(found) if is_url(settings.path) or len(found) == 1 else []
    members = _members(found, settings.path, scratch)
    events_file, columns = _events_file(members, scratch)
    events = read_events([(events_file, columns)], unit="s", action=ACTION)
    items = _item_table(members, scratch)
    return SourceLog(events, items, notes=[*notes, *events_file.notes], terms=_terms(name))


def _terms(name: str) -> str:
    return TERMS_NOTE if name.lower().startswith("ml-") else "terms of use: see the README in the archive"


def md5_of(path: Path) -> str:
    """Return the md5 of a file, the checksum that GroupLens publishes; it binds a download, it guards no secret."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _checksum_notes(found: Sequence[LocalFile]) -> list[str]:
    notes = []
    for file in found:
        expected = MD5.get(file.name)
        observed = md5_of(file.path) if expected or file.downloaded else None
        if observed == expected:
            continue
        if expected and file.downloaded:
            raise InputError(
                "is not the archive that GroupLens published",
                where=file.shown,
                observed=f"md5 {observed}",
                expected=expected,
                todo="Download it again; a file of your own is read by its local path",
            )
        if expected:
            notes.append(f"{file.name}: md5 {observed} is not that of the official archive ({expected})")
        else:
            notes.append(f"{file.name}: md5 {observed}, no official checksum is known")
    return notes


def _members(found: Sequence[LocalFile], path: str, scratch: Path) -> dict[str, LocalFile]:
    """Return the members of a known layout by their plain names."""
    names = {name for layout in _LAYOUTS for name in layout}
    if len(found) == 1 and found[0].name not in names:
        return unpack(found[0], _pick(list_members(found[0]), path), scratch)
    by_name = {file.name: file for file in found}
    return {key: by_name[name] for key, name in _pick(list(by_name), path).items()}


def _pick(listed: Sequence[str], path: str) -> dict[str, str]:
    for layout in _LAYOUTS:
        chosen = {PurePosixPath(full).name: full for full in listed if PurePosixPath(full).name in layout}
        if layout[0] in chosen:
            return chosen
    raise InputError(
        "has no layout that is known",
        where=path,
        observed=", ".join(sorted(listed)[:5]) or "no files",
        expected=" or ".join(layout[0] for layout in _LAYOUTS),
        todo="For a table of your own use --source table",
    )


def _events_file(members: dict[str, LocalFile], scratch: Path) -> tuple[TableFile, dict[str, str]]:
    same = {name: name for name in EVENT_HEADER}
    if "u.data" in members:
        return DelimitedFile(plain_text(members["u.data"], scratch), "\t", EVENT_HEADER, quoted=False), same
    if "ratings.dat" in members:
        file = rewritten(members["ratings.dat"], scratch, lambda block: block.replace(b"::", SEPARATOR.encode()))
        return DelimitedFile(plain_text(file, scratch), SEPARATOR, EVENT_HEADER, quoted=False), same
    table = DelimitedFile(plain_text(members["ratings.csv"], scratch), ",")
    return table, find_columns(table, _CSV_EVENTS, EVENT_HEADER, option="--source table --columns")


def _item_table(members: dict[str, LocalFile], scratch: Path) -> ItemTable:
    if "movies.csv" in members:
        table = DelimitedFile(plain_text(members["movies.csv"], scratch), ",")
        return read_item_table([(table, find_columns(table, _CSV_ITEMS, ITEM_HEADER, option="--item-columns"))])
    if "movies.dat" in members:
        return read_rewritten_items(members["movies.dat"], scratch, _split_at_outer_colons)
    if "u.item" in members:
        genres = _genre_names(members.get("u.genre"))
        return read_rewritten_items(members["u.item"], scratch, lambda line: _genres_from_flags(line, genres))
    return ItemTable()


def read_rewritten_items(file: LocalFile, scratch: Path, line: Callable[[bytes], bytes]) -> ItemTable:
    """Read an item file after `line` has turned each of its lines into id, title, genres between SEPARATORs."""

    def transform(block: bytes) -> bytes:
        return b"\n".join(line(text.rstrip(b"\r")) if text.strip() else b"" for text in block.split(b"\n"))

    text = plain_text(rewritten(file, scratch, transform), scratch)
    table = DelimitedFile(text, SEPARATOR, ITEM_HEADER, quoted=False)
    return read_item_table([(table, {name: name for name in ITEM_HEADER})])


def _split_at_outer_colons(line: bytes) -> bytes:
    """Split id::title::genres, where the title may hold '::' itself."""
    first, _, rest = line.partition(b"::")
    title, between, genres = rest.rpartition(b"::")
    return SEPARATOR.encode().join((first, title, genres)) if between else line


def _genres_from_flags(line: bytes, names: Sequence[bytes]) -> bytes:
    """Turn id|title|date|video date|url|0|1|... into id, title and the names of the genres whose flag is 1."""
    fields = line.split(b"|")
    if len(fields) != 5 + len(names):
        return line
    genres = b"|".join(name for name, flag in zip(names, fields[5:], strict=True) if flag == b"1")
    return SEPARATOR.encode().join((fields[0], fields[1], genres))


_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
)


def _genre_names(file: LocalFile | None) -> list[bytes]:
    if file is None:
        return _GENRES.encode().split(b"|")
    return [line.split(b"|")[0] for line in file.path.read_bytes().splitlines() if b"|" in line]
