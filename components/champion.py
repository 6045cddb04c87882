"""registry/champion.json, read, and the lock under which it is written.

    champion = read_champion(registry)        # None where nothing was promoted yet
    with locked(registry): ...                # one promotion or rollback at a time

The lock is registry/.lock, which git ignores (components/locks.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import StateError
from components.files import read_json
from components.locks import held

_NAMES = {"tag", "model_tag", "verdict", "data_hash", "previous"}


@contextmanager
def locked(registry: Path) -> Iterator[None]:
    """Hold the registry; where another process does, say so and wait until it is done, which takes seconds."""
    with held(registry / ".lock", lambda: f"another promotion or rollback, which holds {registry}"):
        yield


def read_champion(registry: Path) -> dict[str, Any] | None:
    """Return registry/champion.json, None where nothing was promoted yet.

    Raises:
        StateError: it is damaged; it is versioned in git, so a merge may leave its markers in it.
    """
    pointer = registry / "champion.json"
    if not pointer.exists():
        return None
    todo = f"Run `git checkout HEAD {pointer}`, or remove it and run `python -m components challenge`, then `promote`"
    champion = read_state(pointer, todo)
    observed = set(champion) if isinstance(champion, dict) else set()
    if not observed >= _NAMES:
        raise StateError(
            "lacks keys", where=str(pointer), observed=sorted(observed), expected=sorted(_NAMES), todo=todo
        )
    return dict(champion)


def read_state(file: Path, todo: str = "Run `dvc repro`") -> Any:  # noqa: ANN401 - JSON
    """Read a JSON file that an earlier step left; raises StateError where it is missing or no JSON."""
    if not file.exists():
        raise StateError("is missing", where=str(file), todo=todo)
    try:
        return read_json(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise StateError("is not JSON", where=str(file), observed=str(error), todo=todo) from error
