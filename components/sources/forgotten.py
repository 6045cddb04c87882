"""Persons whom `forget-user` removed stay away, whatever the source still has: `forgotten` in data/manifest.json.

It lists SHA-256 hashes of the source's ids as text, so that it holds whether a log's ids are int64 or text, and every
ingestion hands it on, that of another log included. They say of an id whether it is among them, and nobody's id by
themselves; who tries all numbers finds those of a log of int64 ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from components.console import log
from components.sources.events import Events


def hash_key(key: str) -> str:
    """Return what stands in the manifest for the user whom the source calls `key`."""
    return hashlib.sha256(key.encode()).hexdigest()


def leave_out(events: Events, forgotten: Collection[str]) -> Events:
    """Return `events` without those of forgotten users."""
    if not forgotten:
        return events
    masks = [_mask(chunk, frozenset(forgotten)) for chunk in events.users.texts().chunks]
    kept = np.concatenate([np.zeros(0, bool), *masks])
    if kept.all():
        return events
    log.info("%d events of forgotten users left out", int((~kept).sum()))
    return events.only(kept)


def leave_out_rows(month: pa.Table, forgotten: Collection[str]) -> pa.Table:
    """Return the rows of a month, whose ids are the source's own int64, without those of forgotten users."""
    if not forgotten:
        return month
    users = month["user_id"].combine_chunks().dictionary_encode()
    return month.filter(pa.array(_mask(users, frozenset(forgotten))))


def _mask(users: pa.DictionaryArray, forgotten: frozenset[str]) -> np.ndarray:
    kept = np.array([hash_key(str(key)) not in forgotten for key in users.dictionary.to_pylist()], bool)
    rows: np.ndarray = kept[users.indices.to_numpy()]
    return rows
