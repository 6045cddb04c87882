"""The step from log to sequences: order, split, number the items, write memory-mapped Arrow.

    python -m components sequences

Files and columns: the head of components/dataset.py. Whatever is fitted (catalogue, counts) is fitted on the training
part. Arrow IPC without compression, because only that can be memory-mapped.
Shapes: E events, U users, X items.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.console import log, print_table
from components.event_log import Log, build_catalogue, number_items, read_log
from components.files import replacing_folder, write_json
from components.interactions import hash_log, read_keys, read_manifest
from components.settings import SequencesSettings
from components.splits import Split, split_by_time, split_leave_one_out

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class PartFacts:
    """What the closing table says about one part of a split."""

    events: int
    users: int
    items: int
    cold_share: float  # events whose item train never saw
    tied_share: float  # events that share their time with another event of the same user


def build_sequences(
    settings: SequencesSettings, protocols: Iterable[str], *, data: Path, quarantine: Path, out: Path
) -> None:
    """Write out/<protocol>/ for each protocol asked for, atomically and nothing else.

    Raises:
        StateError: there is no log, nothing is left of it, or a part of a split would be empty.
    """
    events = read_log(data, quarantine)
    data_hash = hash_log(data, quarantine)
    with replacing_folder(out) as folder:
        for protocol in protocols:
            split = _split(protocol, events, settings)
            facts = _write_protocol(folder / protocol, protocol, events, split, data, data_hash)
            _print_split(protocol, split, facts)
    log.info("sequences written to %s; next: python -m components train", out)


def find_ties(events: Log) -> np.ndarray:
    """Return (E,) bool: the event shares its time with another event of the same user."""
    same_as_previous = np.zeros(len(events.timestamps) + 1, dtype=bool)
    same_as_previous[1:-1] = events.timestamps[1:] == events.timestamps[:-1]
    same_as_previous[events.starts] = False
    tied: np.ndarray = same_as_previous[:-1] | same_as_previous[1:]
    return tied


def _split(protocol: str, events: Log, settings: SequencesSettings) -> Split:
    if protocol == "leave_one_out":
        return split_leave_one_out(events.starts, events.ends)
    return split_by_time(
        events.timestamps,
        events.starts,
        events.ends,
        valid_fraction=settings.valid_fraction,
        test_fraction=settings.test_fraction,
    )


def _write_protocol(
    folder: Path, protocol: str, events: Log, split: Split, data: Path, data_hash: str | None
) -> dict[str, PartFacts]:
    parts = split.parts()
    in_train = parts == PARTS.index("train")
    catalogue = build_catalogue(events.item_ids[in_train], events.timestamps[in_train], data)
    items = number_items(events.item_ids, catalogue["item_id"].to_numpy())
    facts = _describe_parts(items, events, parts)
    folder.mkdir(parents=True)
    _write_arrow(folder / "events.arrow", {"item": items, "timestamp": events.timestamps})
    _write_arrow(
        folder / "users.arrow",
        {
            "user_id": events.user_ids,
            "start": split.starts,
            "valid_start": split.valid_starts,
            "test_start": split.test_starts,
            "end": split.ends,
        },
    )
    pq.write_table(catalogue, folder / "catalogue.parquet", compression="zstd", store_schema=False)
    summary = _summary(protocol, events, split, facts, catalogue)
    forgotten = len(read_manifest(data).get("forgotten", []))
    origin = {"data_hash": data_hash, "key_type": _key_type(data), "forgotten": forgotten}
    write_json(folder / "split.json", summary | origin)
    return facts


def _summary(
    protocol: str, events: Log, split: Split, facts: dict[str, PartFacts], catalogue: pa.Table
) -> dict[str, Any]:
    """Collect what split.json says apart from where the data came from."""
    return {
        "protocol": protocol,
        "num_items": catalogue.num_rows,
        "num_users": len(events.user_ids),
        "num_events": len(events.item_ids),
        "train_end": split.train_end,
        "valid_end": split.valid_end,
        "tied_share": float(find_ties(events).mean()),
        "cold_share": {name: facts[name].cold_share for name in ("valid", "test")},
        "events": {name: facts[name].events for name in PARTS},
        "parts": {name: asdict(facts[name]) for name in PARTS},
        "has_titles": not catalogue["title"].equals(catalogue["key"]),
    }


def _describe_parts(items: np.ndarray, events: Log, parts: np.ndarray) -> dict[str, PartFacts]:
    ties = find_ties(events)
    user_of_row = np.repeat(np.arange(len(events.starts)), events.ends - events.starts)
    facts = {}
    for number, name in enumerate(PARTS):
        rows = parts == number
        facts[name] = PartFacts(
            events=int(rows.sum()),
            users=len(np.unique(user_of_row[rows])),
            items=len(np.unique(events.item_ids[rows])),
            cold_share=float((items[rows] < 0).mean()),
            tied_share=float(ties[rows].mean()),
        )
    return facts


def _key_type(data: Path) -> str:
    return "int" if read_keys(data, "item") is None else "string"


def _write_arrow(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write one record batch, so that each column is one contiguous piece of the file."""
    batch = pa.record_batch([pa.array(values) for values in columns.values()], names=list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _print_split(protocol: str, split: Split, facts: dict[str, PartFacts]) -> None:
    log.info("%s: %s", protocol, _when(split))
    rows = [
        (name, f"{p.events:,}", f"{p.users:,}", f"{p.items:,}", f"{p.cold_share:.1%}", f"{p.tied_share:.1%}")
        for name, p in facts.items()
    ]
    print_table(protocol, ["part", "events", "users", "items", "cold", "tied"], rows)


def _when(split: Split) -> str:
    if split.train_end is None or split.valid_end is None:
        return "each user's last event is the test, the one before it validation (leaks the future; for comparison)"
    first, second = (np.datetime64(time, "s") for time in (split.train_end, split.valid_end))
    return f"train < {first} <= validation < {second} <= test (UTC)"
