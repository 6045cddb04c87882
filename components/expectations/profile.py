"""What a log was like, in a few kilobytes: counts, action mix, and a sketch of its users and items.

    profile = profile_log(facts, source="table my_events.csv")     # -> reports/validation.json, registry/profile.json
    drift = compare(facts, profile)                                # {"volume_ratio": 1.02, "new_item_share": .01, ...}

The profile of the promoted version is versioned in git, so it holds no id list (1M items would be 8 MB per promotion).
It keeps the `SKETCH_SIZE` smallest 64-bit hashes of the distinct ids instead: a bottom-k sketch (Cohen & Kaplan 2007).
Below the largest hash kept, threshold t, the sketch knows every promoted id. Ids of the new log with a hash <= t are
therefore a uniform sample of the new log's ids on which "was it there before" has an exact answer. With m sampled ids
the standard error of a share p is sqrt(p (1 - p) / m), at most 1.6 % for m = 1,024 (catalogue of the same size); up to
1,024 ids nothing is sampled and the share is exact.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from components.expectations.facts import Facts

SKETCH_SIZE = 1024  # 8 bytes each: 11 kB of base64 per sketch
MAX_ACTIONS = 64  # a log with more has a free-text column mapped to action; the rest counts as one action

_BASE64_LINE = 120  # characters: a list of lines, so that git diffs stay readable and `dvc metrics show` leaves it out


def profile_log(facts: Facts, source: str) -> dict[str, Any]:
    """Describe a log as JSON."""
    return {
        "source": source,
        "num_events": facts.num_events,
        "num_users": len(facts.users),
        "num_items": len(facts.items),
        "num_months": len(facts.months),
        "first_timestamp": facts.first,
        "last_timestamp": facts.last,
        "actions": [[name, count] for name, count in _by_frequency(facts.actions)[:MAX_ACTIONS]],
        "user_sketch": _encode(sketch(facts.users)),
        "item_sketch": _encode(sketch(facts.items)),
    }


def compare(facts: Facts, promoted: dict[str, Any]) -> dict[str, float]:
    """Measure how far a log has moved from the one that `promoted` describes.

    volume_ratio:    events now / events then
    new_user_share, new_item_share: distinct ids now that were not there then (estimated, see above)
    action_shift:    total variation between the action mixes, 1/2 sum |p - q|, in [0, 1]
    """
    return {
        "volume_ratio": facts.num_events / max(promoted["num_events"], 1),
        "new_user_share": share_of_new(facts.users, _decode(promoted["user_sketch"])),
        "new_item_share": share_of_new(facts.items, _decode(promoted["item_sketch"])),
        "action_shift": action_shift(facts.actions, promoted),
    }


def action_shift(now: dict[str, int], promoted: dict[str, Any]) -> float:
    """Total variation over the promoted actions, with everything else as one more action."""
    then: dict[str, int] = dict(promoted["actions"])
    total_now, total_then = max(sum(now.values()), 1), max(int(promoted["num_events"]), 1)
    # In whole numbers up to the last division: floats gave 0.2 + 3e-17 where the bound is 0.2.
    moved = [count * total_now - now.get(name, 0) * total_then for name, count in then.items()]
    others = abs(sum(moved)) if now and then else 0
    return (sum(map(abs, moved)) + others) / (2 * total_now * total_then)


def sketch(ids: np.ndarray) -> np.ndarray:
    """Return the smallest SKETCH_SIZE hashes (uint64, ascending) of distinct int64 `ids`."""
    return np.sort(hash_ids(ids))[:SKETCH_SIZE]


def share_of_new(ids: np.ndarray, promoted: np.ndarray) -> float:
    """Estimate the share of distinct int64 `ids` that are not among the ids behind the sketch `promoted` (uint64).

    0.0 when no id falls into the sample: then the log has a thousandth of the ids it had, and volume_ratio says so.
    """
    hashes = hash_ids(ids)
    if len(promoted) == SKETCH_SIZE:
        hashes = hashes[hashes <= promoted[-1]]
    return float(np.isin(hashes, promoted, invert=True).mean()) if len(hashes) else 0.0  # 1 - .7 is no .3


def hash_ids(ids: np.ndarray) -> np.ndarray:
    """Mix int64 or uint64 to uniform uint64: the finalizer of splitmix64 (Steele, Lea & Flood 2014), a bijection."""
    bits = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def _encode(hashes: np.ndarray) -> list[str]:
    text = base64.b64encode(hashes.astype("<u8").tobytes()).decode("ascii")
    return [text[start : start + _BASE64_LINE] for start in range(0, len(text), _BASE64_LINE)]


def _decode(lines: list[str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode("".join(lines)), dtype="<u8")


def _by_frequency(actions: dict[str, int]) -> list[tuple[str, int]]:
    """Return (action, events), most frequent first, equal counts by name."""
    return sorted(actions.items(), key=lambda pair: (-pair[1], pair[0]))
