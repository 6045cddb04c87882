"""From log to sequences: order, boundaries, and a catalogue fitted on the training part alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_logs import DAY, build, walking_log, write_log

from components.dataset import load_sequences
from components.errors import StateError
from components.event_log import number_items
from components.settings import SequencesSettings
from components.splits import find_boundaries, split_by_time, split_leave_one_out

FILES = ("events.arrow", "users.arrow", "catalogue.parquet", "split.json")


def parts_of(sequences, events):
    """Map every event, in the order of the sequences, to its part's number."""
    parts = np.zeros(len(sequences.items), dtype=int)
    for valid, test, end in zip(sequences.valid_starts, sequences.test_starts, sequences.ends, strict=True):
        parts[valid:test], parts[test:end] = 1, 2
    return parts


def split_of(folder):
    return json.loads((folder / "split.json").read_text())


def test_a_user_s_events_are_in_time_order_and_ties_keep_their_source_order(tmp_path):
    events = [(7, 3, 50), (5, 1, 20), (7, 9, 10), (7, 4, 50), (5, 2, 20), (7, 1, 10), (7, 2, 50)]
    loaded = load_sequences(build(write_log(tmp_path, events), "leave_one_out") / "leave_one_out")
    catalogue = pq.read_table(tmp_path / "artifacts/sequences/leave_one_out/catalogue.parquet")
    train = slice(loaded.starts[1], loaded.valid_starts[1])
    assert loaded.user_ids.tolist() == [5, 7]
    assert loaded.timestamps.tolist() == [20, 20, 10, 10, 50, 50, 50]
    assert catalogue["item_id"].to_numpy()[loaded.items[train]].tolist() == [9, 1, 3]


def test_train_ends_before_T1_and_validation_before_T2_for_every_user(tmp_path):  # noqa: N802
    loaded = load_sequences(build(write_log(tmp_path, walking_log()), "time_split") / "time_split")
    parts, split = parts_of(loaded, None), loaded.split
    assert loaded.timestamps[parts == 0].max() < split["train_end"] <= loaded.timestamps[parts == 1].min()
    assert loaded.timestamps[parts == 1].max() < split["valid_end"] <= loaded.timestamps[parts == 2].min()
    assert [int((parts == part).sum()) for part in range(3)] == [
        split["events"][name] for name in ("train", "valid", "test")
    ]


@given(st.lists(st.integers(0, 30), min_size=10, max_size=80), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_boundaries_leave_at_least_the_fractions_asked_for_and_never_cut_a_tie(times, valid_fraction, test_fraction):
    times = np.array(times, dtype=np.int64)
    try:
        first, second = find_boundaries(times, valid_fraction=valid_fraction, test_fraction=test_fraction)
    except StateError:
        return
    assert times.min() < first < second <= times.max()
    assert (times >= second).sum() >= max(1, round(len(times) * test_fraction))
    assert ((times >= first) & (times < second)).sum() >= max(1, round(len(times) * valid_fraction))
    without_ties = len(set(times.tolist())) == len(times)
    assert not without_ties or (times >= second).sum() == max(1, round(len(times) * test_fraction))


def test_boundaries_of_evenly_spaced_events_are_the_quantiles():
    assert find_boundaries(np.arange(100), valid_fraction=0.1, test_fraction=0.1) == (80, 90)


def test_events_at_the_boundary_s_own_second_stay_together():
    times = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7])
    assert find_boundaries(times, valid_fraction=0.1, test_fraction=0.1) == (6, 7)


def test_a_global_split_has_nothing_to_do_with_who_the_users_are():
    times, starts, ends = np.array([1, 2, 9, 3, 4, 8, 0]), np.array([0, 3, 6]), np.array([3, 6, 7])
    split = split_by_time(times, starts, ends, valid_fraction=0.15, test_fraction=0.15)
    assert (split.train_end, split.valid_end) == (8, 9)
    assert split.parts().tolist() == [0, 0, 2, 0, 0, 1, 0]


def test_leave_one_out_takes_the_last_two_and_leaves_short_users_to_train():
    starts, ends = np.array([0, 4, 6, 7]), np.array([4, 6, 7, 10])
    assert split_leave_one_out(starts, ends).parts().tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("protocol", ["time_split", "leave_one_out"])
def test_the_catalogue_holds_exactly_the_items_of_train(tmp_path, protocol):
    events = [*walking_log(), (1, 900, 10_000 * DAY), (2, 901, 10_001 * DAY)]
    folder = build(write_log(tmp_path, events), protocol) / protocol
    loaded, catalogue = load_sequences(folder), pq.read_table(folder / "catalogue.parquet")
    in_train = parts_of(loaded, None) == 0
    rows, counts = np.unique(loaded.items[in_train], return_counts=True)
    assert rows.tolist() == list(range(loaded.num_items))
    assert catalogue["count"].to_pylist() == counts.tolist()
    assert catalogue["item_id"].to_pylist() == sorted(set(catalogue["item_id"].to_pylist()))
    assert not {900, 901} & set(catalogue["item_id"].to_pylist())
    assert (loaded.items[in_train] >= 0).all()
    assert (loaded.items == -1).sum() == 2


def test_first_and_last_seen_are_the_earliest_and_latest_event_in_train(tmp_path):
    events = [(1, 1, 10), (1, 2, 20), (2, 1, 30), (2, 2, 40), (3, 1, 50), (3, 1, 60), (3, 2, 70), (3, 2, 80)]
    folder = build(write_log(tmp_path, events), "leave_one_out") / "leave_one_out"
    table = pq.read_table(folder / "catalogue.parquet").to_pydict()
    assert table["item_id"] == [1, 2]
    assert (table["first_seen"], table["last_seen"]) == ([10, 20], [60, 40])


def test_items_are_shown_by_title_else_by_the_log_s_own_key(tmp_path):
    log = write_log(tmp_path, walking_log(), titles={1: "Heat", 2: ""}, item_keys={n: f"sku-{n}" for n in range(1, 26)})
    folder = build(log, "time_split") / "time_split"
    rows = {row["item_id"]: row for row in pq.read_table(folder / "catalogue.parquet").to_pylist()}
    assert [(rows[n]["key"], rows[n]["title"], rows[n]["genres"]) for n in (1, 2, 3)] == [
        ("sku-1", "Heat", None),
        ("sku-2", "sku-2", None),
        ("sku-3", "sku-3", None),
    ]
    assert (split_of(folder)["key_type"], split_of(folder)["has_titles"]) == ("string", True)


def test_integer_ids_are_their_own_keys(tmp_path):
    folder = build(write_log(tmp_path, walking_log()), "time_split") / "time_split"
    assert pq.read_table(folder / "catalogue.parquet")["key"].to_pylist()[:2] == ["1", "2"]
    assert (split_of(folder)["key_type"], split_of(folder)["has_titles"]) == ("int", False)


def test_cold_and_tied_shares_are_counted_in_events(tmp_path):
    events = [(1, 1, 10), (1, 2, 10), (1, 1, 20), (1, 9, 30), (1, 1, 30)]
    split = split_of(build(write_log(tmp_path, events), "leave_one_out") / "leave_one_out")
    assert split["cold_share"] == {"valid": 1.0, "test": 0.0}
    assert split["tied_share"] == pytest.approx(4 / 5)
    assert [split["parts"][part]["tied_share"] for part in ("train", "valid", "test")] == pytest.approx([2 / 3, 1, 1])


def test_quarantined_rows_are_left_out(tmp_path):
    log = write_log(tmp_path, [(1, item, 10 * item) for item in range(1, 7)], quarantined=[("1970-01", 1)])
    folder = build(log, "leave_one_out") / "leave_one_out"
    assert load_sequences(folder).timestamps.tolist() == [10, 30, 40, 50, 60]
    assert 2 not in pq.read_table(folder / "catalogue.parquet")["item_id"].to_pylist()


def test_only_the_protocols_asked_for_are_left_behind(tmp_path):
    log = write_log(tmp_path, walking_log())
    build(log, "time_split", "leave_one_out")
    assert [folder.name for folder in build(log, "time_split").iterdir()] == ["time_split"]
    assert sorted(file.name for file in (log / "artifacts/sequences/time_split").iterdir()) == sorted(FILES)


def test_the_same_log_gives_the_same_bytes(tmp_path):
    first, second = (build(write_log(tmp_path / name, walking_log()), "time_split") for name in ("a", "b"))
    for file in FILES:
        assert (first / "time_split" / file).read_bytes() == (second / "time_split" / file).read_bytes()


def test_loaded_columns_lie_in_the_file_itself(tmp_path):
    folder = build(write_log(tmp_path, walking_log()), "time_split") / "time_split"
    before = pa.total_allocated_bytes()
    loaded = load_sequences(folder)
    assert pa.total_allocated_bytes() == before  # nothing was copied into Arrow's memory ...
    assert not loaded.items.flags.owndata  # ... nor into numpy's
    assert not loaded.timestamps.flags.writeable


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([(user, 1, 1000) for user in range(50)], id="all at the same second"),
        pytest.param([(1, 1, 10), (1, 2, 20)], id="two events"),
        pytest.param([(1, 1, 10)] * 20 + [(2, 1, 20)], id="nothing before the test but one second"),
    ],
)
def test_a_log_without_room_for_three_parts_is_refused_with_advice(tmp_path, events):
    with pytest.raises(StateError, match=r"time_split would leave .* empty.*Check the timestamp column"):
        build(write_log(tmp_path, events), "time_split")
    assert not (tmp_path / "artifacts/sequences").exists()


def test_leave_one_out_without_a_user_of_three_events_is_refused(tmp_path):
    with pytest.raises(StateError, match="no user with 3 events"):
        build(write_log(tmp_path, [(user, 1, user) for user in range(50)]), "leave_one_out")


def test_a_failure_leaves_the_old_sequences_as_they_were(tmp_path):
    out = build(write_log(tmp_path, walking_log()), "time_split")
    before = (out / "time_split/split.json").read_bytes()
    with pytest.raises(StateError):
        build(
            tmp_path,
            "time_split",
            settings=SequencesSettings(valid_fraction=0.49, test_fraction=0.499).model_copy(
                update={"test_fraction": 1.0}
            ),
        )
    assert (out / "time_split/split.json").read_bytes() == before


def test_missing_sequences_say_which_step_makes_them(tmp_path):
    with pytest.raises(StateError, match="dvc repro sequences"):
        load_sequences(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_named_with_the_step_that_makes_it(tmp_path, name):
    folder = build(write_log(tmp_path, walking_log()), "time_split") / "time_split"
    file = folder / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StateError, match=f"{name}: cannot be read.*dvc repro sequences"):
        load_sequences(folder)
    file.unlink()
    with pytest.raises(StateError, match=f"{name}: is missing.*dvc repro sequences"):
        load_sequences(folder)


def test_an_item_after_the_last_of_the_catalogue_is_unknown():
    assert number_items(np.array([99, 5, 7, 1]), np.array([5, 7])).tolist() == [-1, 0, 1, -1]
