from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from made_validation import NUM_ITEMS, NUM_ROWS, ROWS_A_MONTH, SETTINGS, Columns, Run, changed, clean_columns, place

from components.errors import StateError, ValidationFailedError
from components.expectations.runner import SuiteRunner
from components.expectations.suites import Expectation, row_suite
from components.interactions import INTERACTIONS, read_interactions


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


# --- single rows -----------------------------------------------------------------------------------------------------


def test_a_clean_log_passes_with_an_empty_quarantine(run: Run):
    run.write(clean_columns())
    run.validate()
    report = run.report
    assert run.bad_rows == []
    assert (report["success"], report["num_rows"], report["num_quarantined"]) == (True, NUM_ROWS, 0)
    assert (report["bad_fraction"], report["tied_share"], report["reasons"]) == (0.0, 0.0, {})
    assert all(expectation["success"] for expectation in report["expectations"])
    assert "passed" in run.page


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"user_id": None}, "user_id_null"),
        ({"item_id": None}, "item_id_null"),
        ({"timestamp": None}, "timestamp_null"),
        ({"action": None}, "action_null"),
        ({"timestamp": -1}, "timestamp_out_of_range"),
        ({"timestamp": 4102444800}, "timestamp_out_of_range"),  # 2100-01-01, the first second outside
        ({"rating": 5.5}, "rating_out_of_range"),
        ({"rating": -0.5}, "rating_out_of_range"),
        ({"rating": float("inf")}, "rating_out_of_range"),
        ({"rating": float("-inf")}, "rating_out_of_range"),
        ({"rating": float("nan")}, "rating_nan"),
        ({"item_id": NUM_ITEMS}, "unknown_item"),
        ({"item_id": NUM_ITEMS, "rating": 9.0}, "rating_out_of_range; unknown_item"),
    ],
)
def test_a_bad_row_is_named_with_its_reason(run: Run, values: dict[str, object], reason: str):
    bad = 207
    run.write(changed(bad, **values))
    run.validate()
    assert run.bad_rows == [(*place(bad), reason)]
    assert run.report["reasons"] == dict.fromkeys(reason.split("; "), 1)
    assert sorted(run.failed("rows")) == sorted(reason.split("; "))
    left = read_interactions(run.paths["data"], quarantine=run.paths["quarantine"])
    assert left.num_rows == NUM_ROWS - 1
    assert place(bad) not in set(zip(left["partition"].to_pylist(), left["row"].to_pylist(), strict=True))


def test_every_row_expectation_has_a_log_in_which_it_fails():
    parameters = test_a_bad_row_is_named_with_its_reason.pytestmark[0].args[1]
    tested = {name for _, reason in parameters for name in reason.split("; ")} | {"duplicate"}
    assert tested == {expectation.name for expectation in row_suite(SETTINGS, has_items=True)}


def test_the_edges_of_every_range_are_inside(run: Run):
    columns = changed(3, timestamp=631152000, rating=0.0)  # 1990-01-01
    columns["timestamp"][4], columns["rating"][4] = 4102444799, 0.1
    columns["rating"][5] = None
    run.write(columns)
    run.validate(max_rating=5.0, min_rating=0.0)
    assert run.bad_rows == []
    columns["rating"] = [0.1] * NUM_ROWS  # float32(0.1) > 0.1
    run.write(columns)
    run.validate(max_rating=0.1)
    assert run.bad_rows == []


def test_the_first_of_equal_events_is_kept_whatever_their_rating(run: Run):
    columns = clean_columns()
    for copy in (40, 140):
        for name in ("user_id", "item_id", "timestamp", "action"):
            columns[name][copy] = columns[name][10]
    columns["rating"][140] = 1.5
    run.write(columns)
    run.validate()
    assert run.bad_rows == [(*place(40), "duplicate"), (*place(140), "duplicate")]


def test_events_that_differ_in_the_action_alone_are_no_duplicates(run: Run):
    columns = clean_columns()
    for name in ("user_id", "item_id", "timestamp"):
        columns[name][41] = columns[name][40]
    assert columns["action"][41] != columns["action"][40]
    run.write(columns)
    run.validate()
    assert run.bad_rows == []
    assert run.report["tied_share"] == 2 / NUM_ROWS


def test_ids_above_2_to_the_53_stay_apart_beside_nulls(run: Run):
    columns = changed(0, item_id=None)
    for row, item in ((20, 2**53), (50, 2**53 + 1)):
        columns["item_id"][row] = item
        columns["user_id"][row], columns["timestamp"][row], columns["action"][row] = 1, 10**9, "view"
    run.write(columns, items=0)
    run.validate()
    assert run.bad_rows == [(*place(0), "item_id_null")]


def test_items_are_not_looked_up_in_a_table_without_rows(run: Run):
    run.write(changed(5, item_id=999), items=0)
    run.validate()
    assert run.bad_rows == []
    assert "unknown_item" not in {expectation["name"] for expectation in run.report["expectations"]}
    assert any("item table has no rows" in note for note in run.report["notes"])


# --- the log as a whole ----------------------------------------------------------------------------------------------


def test_one_percent_of_bad_rows_passes_and_one_more_row_fails(run: Run):
    columns = clean_columns()
    columns["rating"][:3] = [9.0] * 3
    run.write(columns)
    run.validate()
    assert (run.report["success"], run.report["bad_fraction"]) == (True, 0.01)
    columns["rating"][3] = 9.0
    run.write(columns)
    with pytest.raises(ValidationFailedError, match=r"bad_fraction is 0\.0133333 and should be at most 0\.01"):
        run.validate()


def test_too_many_bad_rows_stop_the_pipeline_after_everything_is_written(run: Run):
    columns = clean_columns()
    columns["rating"][:180] = [9.0] * 180
    columns["timestamp"][:20] = list(range(-20, 0))
    columns["item_id"][:10] = [None] * 10
    columns["action"][0] = None
    run.write(columns)
    with pytest.raises(ValidationFailedError) as raised:
        run.validate()
    assert "bad_fraction is 0.6" in str(raised.value)
    assert "(rating_out_of_range 180, timestamp_out_of_range 20, item_id_null 10)" in str(raised.value)
    assert "reports/data_docs/index.html" in str(raised.value)
    assert (run.report["success"], run.report["num_quarantined"]) == (False, 180)
    assert len(run.bad_rows) == 180
    assert "failed" in run.page


def few(name: str) -> Columns:
    """Let only three users, or items, or actions be left."""
    columns = clean_columns()
    columns[name] = [value % 3 for value in columns[name]]
    return columns


def tied() -> Columns:
    columns = clean_columns()
    columns["timestamp"] = [columns["timestamp"][0]] * NUM_ROWS
    columns["item_id"] = list(range(NUM_ROWS))
    return columns


@pytest.mark.parametrize(
    ("columns", "settings", "fact", "observed"),
    [
        (lambda: few("user_id"), {}, "num_users", 3),
        (lambda: few("item_id"), {}, "num_items", 3),
        (clean_columns, {"min_events": 301}, "num_events", 300),
        (tied, {}, "tied_share", 1.0),
        # one of 300 rows is bad: the minimum is judged after the quarantine
        (lambda: changed(0, rating=9.0), {"min_events": 300}, "num_events", 299),
    ],
)
def test_a_log_too_small_or_too_tied_stops_the_pipeline(
    run: Run, columns: Callable[[], Columns], settings: dict[str, object], fact: str, observed: float
):
    run.write(columns(), items=NUM_ROWS)
    with pytest.raises(ValidationFailedError, match=f"{fact} is {observed:g} and should be"):
        run.validate(**settings)
    assert run.failed("log") == [fact]
    assert run.report[fact] == observed


def test_a_log_without_a_good_row_is_refused_not_crashed_on(run: Run):
    columns = clean_columns()
    columns["rating"] = [9.0] * NUM_ROWS
    run.write(columns)
    with pytest.raises(ValidationFailedError, match="bad_fraction is 1 "):
        run.validate()
    assert run.report["num_events"] == 0


def test_a_log_without_a_row_is_refused_not_crashed_on(run: Run):
    run.write({name: [] for name in INTERACTIONS.names})
    with pytest.raises(ValidationFailedError, match="num_events is 0 and should be at least 200"):
        run.validate()
    assert run.bad_rows == []


# --- against the promoted version ------------------------------------------------------------------------------------


def test_a_log_is_compared_with_the_promoted_version_of_the_same_source(run: Run):
    run.write(clean_columns())
    run.validate()
    assert "volume_ratio" not in run.report
    run.promote()
    run.validate()
    report = run.report
    assert (report["volume_ratio"], report["new_item_share"], report["action_shift"]) == (1.0, 0.0, 0.0)
    assert report["new_user_share"] == 0.0


def shifted(name: str, by: int) -> Columns:
    columns = clean_columns()
    columns[name] = [value + by for value in columns[name]]
    return columns


def all_views() -> Columns:
    columns = clean_columns()
    columns["action"] = ["view"] * NUM_ROWS
    return columns


@pytest.mark.parametrize(
    ("columns", "settings", "fact", "observed"),
    [
        (clean_columns, {"min_volume_ratio": 1.01}, "volume_ratio", 1.0),
        (lambda: shifted("item_id", 40), {}, "new_item_share", 40 / 60),
        (lambda: shifted("user_id", 27), {}, "new_user_share", 27 / 30),
        (all_views, {}, "action_shift", 0.25),
    ],
)
def test_a_log_too_far_from_the_promoted_one_stops_the_pipeline(
    run: Run, columns: Callable[[], Columns], settings: dict[str, object], fact: str, observed: float
):
    run.write(clean_columns())
    run.validate()
    run.promote()
    run.write(columns(), items=200)
    with pytest.raises(ValidationFailedError, match=rf"{fact} is .*removing .*profile\.json"):
        run.validate(**settings)
    assert run.failed("log") == [fact]
    assert run.report[fact] == pytest.approx(observed)


def test_a_log_is_not_compared_with_that_of_another_source(run: Run):
    run.write(clean_columns())
    run.validate()
    run.promote()
    run.write(shifted("item_id", 1000), items=0, source="movielens-100k")
    run.validate()
    assert "new_item_share" not in run.report
    assert any("trained on table, so the logs are not compared" in note for note in run.report["notes"])


# The first one is what a merge leaves behind: the file is versioned in git.
@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n", "{}", "[]", "null"])
def test_a_profile_that_is_none_is_named(run: Run, content: str):
    run.write(clean_columns())
    run.paths["promoted_profile"].parent.mkdir()
    run.paths["promoted_profile"].write_text(content)
    with pytest.raises(StateError, match=r"profile\.json: is not a profile"):
        run.validate()


# --- columns ---------------------------------------------------------------------------------------------------------


def test_a_wrong_type_names_the_partition_and_stops_before_rows_are_read(run: Run):
    text = pa.table(clean_columns()).slice(ROWS_A_MONTH).cast(INTERACTIONS)
    text = text.set_column(0, "user_id", text["user_id"].cast(pa.string()))
    run.write(clean_columns(), last=text)
    with pytest.raises(ValidationFailedError) as raised:
        run.validate()
    assert "user_id_type is string in 2001-10/part-0.parquet and should be int64" in str(raised.value)
    assert run.failed("types") == ["user_id_type"]
    assert (run.bad_rows, run.report["num_rows"], run.report["profile"]) == ([], NUM_ROWS, None)
    assert "failed" in run.page


def test_a_missing_column_is_named(run: Run):
    narrow = pa.table(clean_columns()).cast(INTERACTIONS).drop_columns("rating")
    run.write(clean_columns(), first=narrow.slice(0, ROWS_A_MONTH), last=narrow.slice(ROWS_A_MONTH))
    with pytest.raises(ValidationFailedError, match=r"rating_type is missing in 2001-09/part-0.parquet and 1 more"):
        run.validate()
    assert run.failed("types") == ["columns", "rating_type"]


# --- the runner


def test_an_expectation_that_cannot_be_evaluated_raises_instead_of_failing():
    broken = Expectation("text", "text is a number", "ExpectColumnValuesToBeBetween", "text", {"min_value": 1})
    with pytest.raises(ValidationFailedError, match="the expectation text could not be evaluated"):
        SuiteRunner().run("broken", pd.DataFrame({"text": ["a", "b"]}), [broken])
    absent = Expectation("absent", "absent is there", "ExpectColumnMaxToBeBetween", "absent", {"max_value": 1})
    with pytest.raises(ValidationFailedError, match="the expectation absent could not be evaluated"):
        SuiteRunner().run("absent", pd.DataFrame({"text": [1.0]}), [absent])


def test_the_rows_of_a_result_are_positions_in_ascending_order():
    frame = pd.DataFrame({"x": np.arange(1000) % 3})
    suite = [Expectation("two", "x is not 2", "ExpectColumnValuesToBeBetween", "x", {"max_value": 1})]
    (judgement,) = SuiteRunner().run("positions", frame, suite)
    np.testing.assert_array_equal(judgement.rows, np.arange(2, 1000, 3))
    assert judgement.observed == 333
