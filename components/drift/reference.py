"""What the champion was trained and judged on, as far as it is compared with what the service saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.bento_store import find_tagged
from components.catalogue import Catalogue, load_catalogue
from components.dataset import load_sequences
from components.errors import StateError
from components.files import read_json, reading


@dataclass(frozen=True)
class Reference:
    """A champion and its training."""

    champion: dict[str, Any]  # registry/champion.json
    catalogue: Catalogue
    cold_share: float | None  # of the test part's events, items that training did not know
    lengths_N: np.ndarray | None  # events before each event of the test part; None: the sequences are another log's
    hit_rate: float | None  # HR@10 of the test part


def read_reference(registry: Path, sequences: Path) -> Reference:
    """Read what is known of the champion; `sequences` is artifacts/sequences.

    Raises:
        StateError: nothing was promoted yet, or the champion is not in the BentoML store.
    """
    pointer = registry / "champion.json"
    if not pointer.exists():
        raise StateError("nothing was promoted yet", where=str(pointer), todo="Run `make run`")
    with reading(pointer, todo=f"Run `git checkout HEAD {pointer}`"):
        champion: dict[str, Any] = read_json(pointer)
        folder, hit_rate = find_tagged(champion["model_tag"]), champion["metrics"].get("hr@10")
    with reading(folder / "checkpoint.json", todo="Promote again"):
        trained = read_json(folder / "checkpoint.json")
        split = trained["split"]
        catalogue = load_catalogue(folder, key_type=split["key_type"])
    return Reference(
        champion=champion,
        catalogue=catalogue,
        cold_share=split.get("cold_share", {}).get("test"),
        lengths_N=_find_lengths(sequences / trained["protocol"], trained["data_hash"]),
        hit_rate=None if hit_rate is None else float(hit_rate["value"]),
    )


def _find_lengths(folder: Path, data_hash: str) -> np.ndarray | None:
    """Return how many events came before each of the test part that has any before it: what the model was asked."""
    if not (folder / "split.json").exists() or read_json(folder / "split.json")["data_hash"] != data_hash:
        return None
    sequences = load_sequences(folder)
    counts = sequences.ends - sequences.test_starts
    firsts = np.repeat(sequences.test_starts - sequences.starts, counts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths: np.ndarray = firsts + places
    return lengths[lengths > 0]
