"""Remove a person from the log, from everything made of it, and from DVC's old versions; say which models are left.

    python -m components forget-user --user ann --dry-run     # what would go
    python -m components forget-user --user ann --store sqlite:///hstuflow-histories.db

1. The log is written anew without the person's rows; the key becomes empty and its number is never given again. A hash
   of it stays in the manifest, by which ingestion leaves the person out from then on.
2. What is made of the log and names people is removed (`_MADE_OF_IT`); the pipeline makes it again.
3. Cache and local remotes lose the objects that hold the person (`components/dvc_objects.py`), then `dvc add data`.
4. At the end all of that is searched. Models stay, and are listed with what to do: no weight names a person.

Killed at any moment, the same command does the rest. The log changes after all that is made of it; from then on the
person has no row and, where ids are text, no number, and only the hash in the manifest says who it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from components.console import log, print_table
from components.dvc_objects import Stores, find_objects, find_stores, hash_object, run_dvc
from components.errors import InputError, StateError
from components.files import replacing_folder
from components.interactions import read_key_table, read_manifest, write_keys
from components.lineage import find_models, print_models
from components.manifest import count_log, measure_part, write_manifest
from components.person import NOBODY, Person, find_person, holds, read_number
from components.sources.append import part_of
from components.sources.forgotten import hash_key

_MADE_OF_IT = (
    "artifacts/quarantine.parquet",
    "artifacts/validated",
    "artifacts/sequences",
    "artifacts/evaluation",
    "artifacts/runs",
    "artifacts/backtest",
    "artifacts/scores",
    "reports/data_docs",
    "reports/validation.json",
    "reports/report.html",
    "reports/monitoring.html",
    "reports/monitoring.json",
)


@dataclass(frozen=True)
class Forgotten:
    """What went, or would go: paths made of the log, DVC objects, events in the service's store, rows of its log.

    None for the last two: not asked.
    """

    person: Person
    paths: list[Path]
    objects: list[Path]
    models: list[dict[str, Any]]
    stored: int | None = None
    requests: int | None = None


def forget_user(
    key: str,
    *,
    root: Path,
    registry: Path,
    store: str | None = None,
    requests: Path | None = None,
    dry_run: bool = False,
) -> Forgotten:
    """Forget the user whom the source calls `key`, and print what went and what is still to do.

    root: the repository, the working directory; `store`: URL of the service's histories; `requests`: its log.

    Raises:
        InputError: the log has no such user, or nobody else.
        StateError: a training is in progress, dvc fails, or a file holds the person still.
    """
    data = root / "data"
    person, stores = _find_forgotten(key, data) or find_person(key, data), find_stores()
    paths = [path for name in _MADE_OF_IT if (path := root / name).exists()]
    models = find_models(person, root=root, registry=registry)
    if dry_run:
        found = [file for folder in stores.local for file in find_objects(folder, person)]
        forgotten = Forgotten(person, paths, found, models)
    else:
        _refuse_while_training(root / "artifacts" / "runs")
        objects = _remove(person, data, paths, stores)
        if (root / "data.dvc").exists():
            run_dvc("add", "data", "--quiet")
        counts = _forget_history(store, key), _forget_requests(requests, key)
        _search(person, root, stores)
        forgotten = Forgotten(person, paths, objects, models, *counts)
    _report(forgotten, stores, data, dry_run=dry_run)
    return forgotten


def _find_forgotten(key: str, data: Path) -> Person | None:
    """Return one whom a call that was stopped has taken out of the log: no rows, maybe since ever; None otherwise.

    Raises:
        InputError: the key is of another log, whose list this one has, and no id that this one can have.
    """
    if hash_key(key) not in read_manifest(data).get("forgotten", []):
        return None
    is_text = read_key_table(data, "user") is not None
    return Person(key, NOBODY if is_text else read_number(key), parts={}, first=0)


def _remove(person: Person, data: Path, paths: list[Path], stores: Stores) -> list[Path]:
    """Let the log without the person take the place of `data`, once all else is gone; return what DVC has no more."""
    if any(file.is_symlink() for file in data.rglob("*")):
        run_dvc("unprotect", "data")  # links into the cache, where they would lose their files
    with replacing_folder(data) as folder:
        _write_without(person, data, folder)
        keep = {hash_object(file) for file in folder.rglob("*") if file.is_file()}
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        objects = [file for store in stores.local for file in find_objects(store, person, keep)]
        for file in objects:
            file.unlink()
    return objects


def _write_without(person: Person, data: Path, folder: Path) -> None:
    """Write the log of `data` into `folder` without the person: the same bytes as if it had never had the rows."""
    shutil.copytree(data, folder, dirs_exist_ok=True)
    for name in person.parts:
        file = folder / "interactions" / name
        rows = pq.read_table(file)
        kept = rows.filter(pc.not_equal(rows["user_id"], person.id))
        file.unlink()
        if kept.num_rows:
            pq.write_table(kept, file, compression="zstd", store_schema=False)
        elif not any(file.parent.iterdir()):
            file.parent.rmdir()
    if not any((folder / "interactions").glob("*/*.parquet")):
        raise InputError("has nobody else's events", where=f"{data}/", todo="Remove the folder, and ingest another log")
    keys = read_key_table(folder, "user")
    if keys is not None:
        is_person = pc.equal(keys["id"], person.id)
        write_keys(folder, "user", keys.set_column(1, "key", pc.if_else(is_person, pa.scalar(""), keys["key"])))
    _rewrite_manifest(person, folder)


def _rewrite_manifest(person: Person, folder: Path) -> None:
    manifest = read_manifest(folder)
    source = {name: value for name, value in manifest.items() if name not in ("counts", "notes", "data_hash")}
    source["forgotten"] = sorted({*source.get("forgotten", []), hash_key(person.key)})
    if "files" in source:
        source["files"] = [entry | measure_part(folder, part_of(entry["name"])) for entry in source["files"]]
    write_manifest(folder, source, count_log(folder), manifest["notes"])


def _refuse_while_training(runs: Path) -> None:
    for lock in runs.glob("*.lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            raise StateError(
                "a training is in progress", where=str(lock), todo="Wait for its end, or stop it"
            ) from None


def _search(person: Person, root: Path, stores: Stores) -> None:
    """Raise StateError where a file of ours holds the person still."""
    places = [root / name for name in ("data", "artifacts", "reports", "registry")] + stores.local
    left = [file for place in places for file in _files(place) if holds(file, person)]
    if left:
        raise StateError(
            "holds the person still", where=str(left[0]), observed=f"{len(left)} files", todo="Remove them by hand"
        )


def _files(place: Path) -> Iterator[Path]:
    yield from (file for file in sorted(place.rglob("*")) if file.is_file())


def _forget_history(store: str | None, key: str) -> int | None:
    """Forget what the service's store knows of the person; return how many events that were."""
    if store is None:
        return None
    from components.serving.history_store import open_store

    opened = open_store(store)
    try:
        return opened.forget(key)
    finally:
        opened.close()


def _forget_requests(folder: Path | None, key: str) -> int | None:
    """Delete the person's rows of the service's log of requests; return how many those were."""
    if folder is None or not folder.exists():
        return None
    from components.serving.request_log import RequestLog

    opened = RequestLog(folder)
    try:
        return opened.forget(key)
    finally:
        opened.close()


def _report(forgotten: Forgotten, stores: Stores, data: Path, *, dry_run: bool) -> None:
    person = forgotten.person
    rows = [
        ("events in the log", f"{person.rows:,} in {len(person.parts)} files"),
        ("made of the log", ", ".join(map(str, forgotten.paths)) or "nothing"),
        ("objects of DVC", f"{len(forgotten.objects):,} in {', '.join(map(str, stores.local)) or 'no store'}"),
    ]
    if forgotten.stored is not None:
        rows.append(("events in the service's store", f"{forgotten.stored:,}"))
    if forgotten.requests is not None:
        rows.append(("rows of the log of requests", f"{forgotten.requests:,}"))
    print_table("would go" if dry_run else "gone", ["what", ""], rows)
    print_models(forgotten.models)
    for number, sentence in enumerate(_left_to_do(forgotten, stores, data), 1):
        log.info("%d. %s", number, sentence)


def _left_to_do(forgotten: Forgotten, stores: Stores, data: Path) -> Iterator[str]:
    """Yield what only a person can do."""
    manifest = read_manifest(data)
    names = {Path(part).name for part in forgotten.person.parts}
    files = [entry["name"] for entry in manifest.get("files", []) if f"{part_of(entry['name'])}.parquet" in names]
    source = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    source = source or manifest["path"] or "its files"
    yield f"The source has the person still ({source}); ingestion leaves the person out, other readers do not"
    if forgotten.stored is None:
        yield f"The service: curl -X DELETE localhost:3000/users/{quote(forgotten.person.key, safe='')}, or --store URL"
    for remote in stores.elsewhere:
        yield f"The remote {remote} is no local folder: dvc push, then dvc gc --workspace --cloud --remote {remote}"
    if any(model["saw"] != "no" for model in forgotten.models):
        yield "Train again without the person, with warm_start: null (params.yaml): make run"
        yield "Then `bentoml delete` and `bentoml models delete` the above"
    yield "git commit data.dvc; old commits' data.dvc, dvc.lock and experiments name versions that are gone"
