"""Which column of a file is which canonical column, and what to say when it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from components.errors import InputError
from components.sources.cells import TableFile
from components.sources.delimited import SEPARATORS, DelimitedFile


def find_columns(
    file: TableFile,
    mapping: Mapping[str, str],
    required: Collection[str],
    optional: Collection[str] = (),
    *,
    option: str = "--columns",
) -> dict[str, str]:
    """Return canonical name -> the name in `file`; a name the mapping leaves out stands for itself.

    `option` is where a person gives the mapping.

    Raises:
        InputError: a required or a mapped column is not there, or is there twice.
    """
    names = file.column_names()
    found = {}
    for canonical in dict.fromkeys((*required, *optional)):
        wanted = mapping.get(canonical, canonical)
        matches = [name for name in names if name.strip() == wanted.strip()]
        if len(matches) > 1:
            raise InputError(f"has the column {wanted!r} {len(matches)} times", where=file.shown, expected="one")
        if matches:
            found[canonical] = matches[0]
        elif canonical in required or canonical in mapping:
            raise _no_such_column(file, names, canonical, wanted, option)
    return found


def _no_such_column(file: TableFile, names: list[str], canonical: str, wanted: str, option: str) -> InputError:
    other = _other_separator(file, names)
    if other is not None:
        return InputError(
            f"is separated by {other}",
            where=f"{file.shown}, line 1",
            observed=repr(names[0][:60]),
            expected=SEPARATORS[file.delimiter] if isinstance(file, DelimitedFile) else None,
            todo="Name a file with tabs .tsv, and save any other with commas as .csv",
        )
    close = difflib.get_close_matches(wanted.lower(), {name.lower(): name for name in names}, n=1)
    guess = next((name for name in names if close and name.lower() == close[0]), "YOUR_COLUMN")
    return InputError(
        f"has no column {wanted!r} for {canonical}",
        where=f"{file.shown}, line 1",
        observed=", ".join(names)[:120],
        expected=wanted,
        todo=f"Name yours: {option} {canonical}={guess},...",
    )


def _other_separator(file: TableFile, names: list[str]) -> str | None:
    """Return what separates the columns when the whole header looks like a single one."""
    if not isinstance(file, DelimitedFile) or len(names) > 1:
        return None
    counts = {shown: names[0].count(sign) for sign, shown in SEPARATORS.items() if sign != file.delimiter}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] >= 2 else None
