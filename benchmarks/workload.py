"""What is timed: logs of user histories, made or read from MovieLens, and how much work attention over them is.

Useful work of one attention call with the causal mask, n_b rows in sequence b:

    P = sum_b n_b (n_b + 1) / 2;    forward 2 H P (Dqk + Dv) FLOPs;    backward 2 H P (3 Dqk + 2 Dv)

Softmax attention does the same products, so its FLOPs are counted alike. Padding and masked tiles are nobody's work.
Shapes: B sequences, L rows, H heads, Dqk and Dv head widths, U users, E events.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from components.dataset import Sequences, find_training_windows

# Median and spread (of the logarithm) of the users' numbers of events.
LENGTHS = {"ml-1m-like": (96, 1.04), "ml-20m-like": (68, 1.22)}
_SHORTEST = 20  # both data sets keep users with at least 20 ratings
NUM_USERS = 6_040  # of ML-1M


def made_log(name: str, *, max_len: int, num_items: int, num_users: int = NUM_USERS, seed: int = 1) -> Sequences:
    """Make histories: bursts of events seconds apart and breaks of five days.

    Args:
        name: whose lengths: one of LENGTHS, or `full`: max_len inputs and the last target for everybody.
        max_len: N; longer histories would be cut anyway.
        num_items: X.
        num_users: U.
        seed: of all that is random.
    """
    rng = np.random.default_rng(seed)
    if name == "full":
        lengths = np.full(num_users, max_len + 1)
    else:
        median, spread = LENGTHS[name]
        drawn = np.exp(np.log(median) + spread * rng.standard_normal(num_users)).astype(np.int64)
        lengths = drawn.clip(min(_SHORTEST, max_len + 1), max_len + 1)
    total = int(lengths.sum())
    steps = np.where(rng.random(total) < 0.02, 5 * 86_400, rng.integers(60, size=total))
    return _as_log(rng.integers(num_items, size=total), steps.cumsum(), lengths, num_items)


def read_ratings(archive: Path) -> Sequences:
    """Read `ratings.dat` (user::item::rating::seconds) of a MovieLens archive; equal times keep the order of rows."""
    with zipfile.ZipFile(archive) as opened:
        name = next(name for name in opened.namelist() if name.endswith("ratings.dat"))
        text = opened.read(name).replace(b"::", b",")
    table = np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)  # float64 holds ids and seconds exactly
    users, items, times = (table[:, column].astype(np.int64) for column in (0, 1, 3))
    order = np.lexsort((times, users))
    catalogue, rows = np.unique(items[order], return_inverse=True)
    return _as_log(rows, times[order], np.unique(users, return_counts=True)[1], len(catalogue))


def _as_log(items: np.ndarray, times: np.ndarray, lengths: np.ndarray, num_items: int) -> Sequences:
    """Return a log that is all training part."""
    ends = lengths.cumsum()
    users = np.arange(len(lengths))
    return Sequences(items.astype(np.int32), times, users, ends - lengths, ends, ends, ends, {"num_items": num_items})


def choose_windows(log: Sequences, *, max_len: int, batch: int, seed: int = 1) -> np.ndarray:
    """Return the training windows (B, 2) of `batch` users chosen at random, of all where there are fewer."""
    windows = find_training_windows(log, max_len)
    return windows[np.random.default_rng(seed).permutation(len(windows))[:batch]]


def num_pairs(lengths: list[int]) -> int:
    """Return P: how often a row sees a column, itself included."""
    return sum(n * (n + 1) // 2 for n in lengths)


def attention_flops(lengths: list[int], num_heads: int, dim_qk: int, dim_v: int) -> dict[str, int]:
    """Return the useful FLOPs of each pass."""
    products = 2 * num_heads * num_pairs(lengths)
    forward, backward = products * (dim_qk + dim_v), products * (3 * dim_qk + 2 * dim_v)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def attention_bytes(num_rows: int, num_heads: int, dim_qk: int, dim_v: int, itemsize: int) -> dict[str, int]:
    """Return the bytes that must move: q, k, v in, o out; backward q, k, v and the gradient of o in, three out."""
    unit = num_rows * num_heads * itemsize
    forward, backward = unit * 2 * (dim_qk + dim_v), unit * (4 * dim_qk + 3 * dim_v)
    return {"forward": forward, "backward": backward, "both": forward + backward}
