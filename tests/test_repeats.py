"""Rows that equal another are found as pandas finds them, whatever their hashes do."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.expectations import repeats
from components.expectations.repeats import find_repeats

COLUMNS = ["user_id", "timestamp", "action"]
small = st.one_of(st.none(), st.sampled_from([-1, 0, 1, 2**62]))
rows = st.lists(st.tuples(small, small, st.one_of(st.none(), st.sampled_from("ab"))), max_size=30)


def frame_of(events: list[tuple[int | None, int | None, str | None]]) -> pd.DataFrame:
    users, times, actions = zip(*events, strict=True) if events else ((), (), ())
    return pd.DataFrame(
        {
            "user_id": pd.array(users, dtype="Int64"),
            "timestamp": pd.array(times, dtype="Int64"),
            "action": pd.Categorical(actions, categories=["a", "b"]),
        }
    )


@pytest.mark.parametrize("keep", ["first", False])
@given(rows)
def test_they_are_those_of_pandas(keep, events):
    frame = frame_of(events)
    assert find_repeats(frame, COLUMNS, keep=keep).tolist() == frame.duplicated(COLUMNS, keep=keep).tolist()


@pytest.mark.parametrize("keep", ["first", False])
def test_rows_whose_hashes_agree_by_accident_are_compared(monkeypatch, keep):
    frame = frame_of([(user, 1, "a") for user in (1, 2, 3, 2, 1, 4)])
    monkeypatch.setattr(repeats, "hash_ids", lambda ids: ids.astype(np.uint64) * np.uint64(0))
    assert find_repeats(frame, COLUMNS, keep=keep).tolist() == frame.duplicated(COLUMNS, keep=keep).tolist()


def test_blocks_change_nothing_and_rows_that_were_left_out_shift_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"user_id": rng.integers(40, size=500), "timestamp": rng.integers(9, size=500)})
    frame = frame.drop(index=[0, 3, 250])
    expected = frame.duplicated(keep="first").tolist()
    monkeypatch.setattr(repeats, "_ROWS_A_BLOCK", 7)
    assert find_repeats(frame, ["user_id", "timestamp"], keep="first").tolist() == expected


def test_hashes_tell_rows_apart():
    """Columns are not interchangeable, and a null is no other than null."""
    frame = frame_of([(1, 2, "a"), (2, 1, "a"), (None, 0, "a"), (0, None, "a"), (0, 0, None), (3, 3, "b")])
    assert len(np.unique(repeats._hash_rows(frame, COLUMNS))) == len(frame)
