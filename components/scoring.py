"""Top-k for every user of the log, by the champion, as Parquet: for mails, caches and other systems without a service.

    python -m components score --k 20 --out artifacts/scores

    <out>/manifest.json          what the parts are of: model_tag, data_hash, k, at, users_a_part, num_users; finished
    <out>/part-00000.parquet     a row a user: user_id string, source (model | popular), item_ids list<string>,
                                 scores list<float> (empty where popular)

A user is answered as POST /recommend answers the user's whole history at the time `at`, by default that of the log's
last event, so the same command gives the same rows. A part arrives by a rename, so a part that is there is whole:
killed at any moment, the same command goes on after the last one. Parts of another model, log or k are never mixed:
that is refused, unless they are to be replaced. Memory is that of one part: histories are memory-mapped sequences.
Shapes: U users of a batch, D width.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.bento_store import find_tagged
from components.console import Progress, log, print_header, print_table
from components.dataset import Sequences, load_sequences, make_batch
from components.errors import StateError
from components.files import read_json, reading, replacing_file, write_json
from components.interactions import hash_log, read_key_table
from components.recommender import Answer, Recommender

USERS_A_PART = 5_000
_EVENTS_A_BATCH = 8_192  # activations of one batch: about 8 KB an event at D = 50
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("item_ids", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Histories:
    """All users' events as one model reads them."""

    sequences: Sequences
    rows_X: (
        np.ndarray
    )  # catalogue row of the sequences -> that of the model, -1 where it does not know the item; last -1
    user_ids: Sequence[str]  # as the log had them
    at: int  # seconds: when the answers are to be shown

    def read(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a user's rows and times, int64 in time order; -1 for items that the model does not know."""
        events = slice(self.sequences.starts[user], self.sequences.ends[user])
        return self.rows_X[self.sequences.items[events]], self.sequences.timestamps[events]


def score(
    *,
    k: int,
    out: Path,
    data: Path,
    artifacts: Path,
    registry: Path,
    tag: str | None = None,
    at: int | None = None,
    users_a_part: int = USERS_A_PART,
    replace: bool = False,
) -> dict[str, Any]:
    """Write the missing parts; return the manifest. `replace`: parts of something else go first.

    Raises:
        StateError: no champion, or it is not in the store; sequences of another log; or `out` holds parts of something
            else, and `replace` is not set.
    """
    folder = _find_model(registry, tag)
    recommender = Recommender.load(folder)
    histories = read_histories(recommender, data=data, artifacts=artifacts, at=at)
    num_users = len(histories.user_ids)
    manifest = {
        "model_tag": f"{folder.parent.name}:{folder.name}",
        "data_hash": histories.sequences.split["data_hash"],
        "k": k,
        "at": histories.at,
        "users_a_part": users_a_part,
        "num_users": num_users,
    }
    _prepare(out, manifest, replace=replace)
    parts = [range(first, min(first + users_a_part, num_users)) for first in range(0, num_users, users_a_part)]
    missing = {n: users for n, users in enumerate(parts) if not _part(out, n).exists()}
    print_header("score", {name: str(value) for name, value in manifest.items()} | {"parts to do": str(len(missing))})
    began, sources = time.monotonic(), _write_parts(recommender, histories, k, out, missing)
    write_json(out / "manifest.json", manifest | {"finished": True})
    _print(out, len(parts), len(missing), sources, time.monotonic() - began)
    return manifest


def read_histories(recommender: Recommender, *, data: Path, artifacts: Path, at: int | None) -> Histories:
    """Return the log's histories in the model's rows, memory-mapped.

    Raises:
        StateError: the sequences are missing, or those of another log than `data`.
    """
    folder = artifacts / "sequences" / recommender.facts["protocol"]
    sequences = load_sequences(folder)
    data_hash = hash_log(data, artifacts / "quarantine.parquet")
    if sequences.split["data_hash"] != data_hash:
        raise StateError(
            "are those of another log",
            where=str(folder),
            observed=sequences.split["data_hash"][:12],
            expected=data_hash and data_hash[:12],
            todo="Run `dvc repro sequences`",
        )
    with reading(folder / "catalogue.parquet", todo="Run `dvc repro sequences`"):
        keys = pq.read_table(folder / "catalogue.parquet", columns=["key"])["key"].to_pylist()
    rows_X = np.array([*(recommender.catalogue.find(key) for key in keys), -1], np.int64)  # [-1]: unknown there already
    last = int(sequences.timestamps.max()) if len(sequences.timestamps) else 0
    return Histories(sequences, rows_X, _own_ids(data, sequences.user_ids), last if at is None else at)


def score_users(recommender: Recommender, histories: Histories, users: range, k: int) -> Iterator[Answer]:
    """Yield the answer to each user in turn; several histories are encoded at once."""
    for batch in _batch_users(histories, users, recommender.max_len):
        found = [histories.read(user) for user in batch]
        encoded = _encode(recommender, found, histories.at)
        for (rows, _), y_1D in zip(found, encoded, strict=True):
            yield recommender.answer(y_1D, rows, k)


def _encode(
    recommender: Recommender, found: Sequence[tuple[np.ndarray, np.ndarray]], at: int
) -> list[torch.Tensor | None]:
    """Return (1, D) for each history, None where the model knows nothing of it."""
    known = [number for number, (rows, _) in enumerate(found) if (rows >= 0).any()]
    encoded: list[torch.Tensor | None] = [None] * len(found)
    if known:
        times = [max(at, int(found[number][1][-1])) for number in known]  # nobody is asked before their own last event
        batch = make_batch([found[number] for number in known], times, max_len=recommender.max_len)
        with torch.inference_mode():
            y_UD = recommender.model(batch)[batch.offsets[1:] - 1]
        for place, number in enumerate(known):
            encoded[number] = y_UD[place : place + 1]
    return encoded


def _batch_users(histories: Histories, users: range, max_len: int) -> Iterator[list[int]]:
    """Yield users in order, as many at a time as have _EVENTS_A_BATCH events together, one at least."""
    batch: list[int] = []
    events = 0
    for user in users:
        length = min(int(histories.sequences.ends[user] - histories.sequences.starts[user]), max_len)
        if batch and events + length > _EVENTS_A_BATCH:
            yield batch
            batch, events = [], 0
        batch.append(user)
        events += length
    if batch:
        yield batch


def _write_parts(
    recommender: Recommender, histories: Histories, k: int, out: Path, missing: dict[int, range]
) -> Counter[str]:
    """Write these parts; return how many users got which source."""
    sources: Counter[str] = Counter()
    with Progress("users", total=sum(map(len, missing.values()))) as progress:
        for number, users in missing.items():
            columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
            for user, answer in zip(users, score_users(recommender, histories, users, k), strict=True):
                columns["user_id"].append(histories.user_ids[user])
                columns["source"].append(answer.source)
                columns["item_ids"].append([str(item.item_id) for item in answer.items])
                columns["scores"].append([item.score for item in answer.items if item.score is not None])
                progress.advance(part=number)
            sources.update(columns["source"])
            with replacing_file(_part(out, number)) as temporary:
                pq.write_table(pa.table(columns, SCHEMA), temporary, compression="zstd", store_schema=False)
    return sources


def _prepare(out: Path, manifest: dict[str, Any], *, replace: bool) -> None:
    """Let `out` be of this manifest: new, or one to be continued.

    Raises:
        StateError: it holds something else.
    """
    file = out / "manifest.json"
    if not file.exists():
        # What a killed writer left of the manifest is hidden, and goes with the next write.
        if out.exists() and any(not file.name.startswith(".") for file in out.iterdir()):
            raise StateError("holds something, but no manifest", where=str(out), todo="Name another folder with --out")
        write_json(file, manifest | {"finished": False})
        return
    with reading(file, todo="Name another folder with --out"):
        before = read_json(file)
        differing = [name for name in manifest if before[name] != manifest[name]]
    if differing and not replace:
        raise StateError(
            "holds answers of something else",
            where=str(out),
            observed=", ".join(f"{name} {before[name]}" for name in differing),
            expected=", ".join(f"{name} {manifest[name]}" for name in differing),
            todo="Name another folder with --out, or use --replace",
        )
    if differing:
        write_json(file, before | {"finished": False})
        for part in out.glob("part-*.parquet"):
            part.unlink()
        write_json(file, manifest | {"finished": False})


def _find_model(registry: Path, tag: str | None) -> Path:
    if tag is not None:
        return find_tagged(tag)
    pointer = registry / "champion.json"
    if not pointer.exists():
        raise StateError("nothing was promoted yet", where=str(pointer), todo="Run `make run`, or name a model: --tag")
    with reading(pointer, todo=f"Run `git checkout HEAD {pointer}`"):
        return find_tagged(read_json(pointer)["model_tag"])


def _own_ids(data: Path, user_ids: np.ndarray) -> list[str]:
    """Return the users' ids as the log had them."""
    keys = read_key_table(data, "user")
    if keys is None:
        return [str(user) for user in user_ids.tolist()]
    places = np.argsort(keys["id"].to_numpy(), kind="stable")
    found = places[np.searchsorted(keys["id"].to_numpy(), user_ids, sorter=places)]
    return [str(key) for key in keys["key"].take(pa.array(found)).to_pylist()]


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05}.parquet"


def _print(out: Path, num_parts: int, num_new: int, sources: Counter[str], seconds: float) -> None:
    users = sum(sources.values())
    size = sum(file.stat().st_size for file in out.glob("part-*.parquet")) / 2**20
    rows = [
        ["users now, by the model", f"{sources['model']:,}"],
        ["users now, popular items", f"{sources['popular']:,}"],
        ["parts, of which new", f"{num_parts}, {num_new}"],
        ["megabytes", f"{size:.1f}"],
        ["seconds, users a second", f"{seconds:.1f}, {users / max(seconds, 1e-9):,.0f}"],
    ]
    print_table(f"{out}", ["", ""], rows)
    log.info("scores written to %s", out)
