"""The events that neither of two models has seen: where both may be judged.

A model has seen everything before its T2: what it was trained on, and, refitted or not, the validation part, on which
its epoch was chosen. So the window begins at the latest T2, today's own included, and ends with the log. leave_one_out
has no such time: only models of the very same log have a window there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from components.dataset import Sequences
from components.ranking.targets import find_targets


def seen_until(split: Mapping[str, Any]) -> int | None:
    """Return the time (seconds) from which on a model of this split.json has seen nothing; None where there is none."""
    time = split.get("valid_end") if split.get("protocol") == "time_split" else None
    return None if time is None else int(time)


def open_window(sequences: Sequences, champion: Mapping[str, Any] | None) -> Sequences | None:
    """Return the sequences with the common window as their test part; None where there can be none.

    `champion` is split.json of the champion's checkpoint, None without one: then the test part itself is the window.
    """
    split = sequences.split
    if champion is None:
        return sequences
    if split["protocol"] != "time_split":
        is_same = all(champion.get(key) == split[key] for key in ("protocol", "data_hash"))
        return sequences if is_same else None
    seen = seen_until(champion)
    return None if seen is None else begin_test_at(sequences, max(seen, int(split["valid_end"])))


def begin_test_at(sequences: Sequences, time: int) -> Sequences:
    """Return the sequences with a test part from `time` (seconds) on, T2 or later; what lies between is validation."""
    is_before = np.concatenate([[0], np.cumsum(sequences.timestamps < time)])  # (E + 1,)
    test_starts = sequences.starts + is_before[sequences.ends] - is_before[sequences.starts]
    return replace(
        sequences,
        test_starts=test_starts,
        split=sequences.split | {"valid_end": time},
    )


def count_window(window: Sequences) -> dict[str, int | None]:
    """Say what the window holds: its first and last second, users and targets."""
    targets = find_targets(window, "test")
    times = window.timestamps[targets.rows]
    return {
        "from": window.split["valid_end"],
        "to": int(times.max()) if len(times) else None,
        "users": len(np.unique(targets.users)),
        "targets": len(targets),
    }
