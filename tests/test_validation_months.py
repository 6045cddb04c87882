"""A night judges the months that changed, and says the same as if it had judged all of them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_validation import MONTHS, NUM_ITEMS, NUM_ROWS, ROWS_A_MONTH, SETTINGS, Run, changed, clean_columns, place

from components.console import log
from components.errors import ValidationFailedError
from components.expectations import months, suites
from components.expectations.facts import Facts, add_up, count_events
from components.expectations.months import worst_month
from components.expectations.runner import SuiteRunner, restate
from components.interactions import INTERACTIONS

JULY, MONTH = 1_688_169_600, 2_678_400  # 2023-07-01; July and August 2023 have 31 days each


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the rows of each frame that is judged; the last of a run has none, and gives the results their form."""
    sizes = []

    def record(self: SuiteRunner, name: str, frame: pd.DataFrame, suite: list[suites.Expectation]):
        if name.startswith("rows from"):
            sizes.append(len(frame))
        return real(self, name, frame, suite)

    real = SuiteRunner.run
    monkeypatch.setattr(SuiteRunner, "run", record)
    return sizes


def outputs(run: Run) -> list[bytes]:
    return [run.paths[name].read_bytes() for name in ("quarantine", "report")] + [run.page.encode()]


def forget_verdicts(run: Run) -> None:
    for file in run.paths["judged"].iterdir():
        file.unlink()


def with_errors_in_both_months() -> dict[str, list[object]]:
    columns = changed(7, rating=9.0)
    columns["rating"][8] = None
    columns["item_id"][200] = NUM_ITEMS
    columns["action"][201] = None
    return columns


def test_the_same_log_is_not_judged_twice_and_gives_the_same_bytes(run: Run, judged: list[int]):
    run.write(with_errors_in_both_months())
    run.validate(max_bad_fraction=0.1)
    first = outputs(run)
    assert judged == [NUM_ROWS]
    run.validate(max_bad_fraction=0.1)
    assert judged == [NUM_ROWS]
    assert outputs(run) == first
    assert [bad[:2] for bad in run.bad_rows] == [place(7), place(200), place(201)]


def test_a_night_judges_the_month_that_changed_and_no_other(
    run: Run, judged: list[int], caplog: pytest.LogCaptureFixture
):
    run.write(with_errors_in_both_months())
    run.validate(max_bad_fraction=0.1)
    columns = with_errors_in_both_months()
    columns["rating"][250] = 9.0
    run.write(columns)
    with caplog.at_level("INFO", logger=log.name):
        run.validate(max_bad_fraction=0.1)
    assert judged == [NUM_ROWS, ROWS_A_MONTH]
    assert "months judged: 1 of 2 (2001-10)" in caplog.text
    nightly = outputs(run)
    forget_verdicts(run)
    run.validate(max_bad_fraction=0.1)
    assert judged == [NUM_ROWS, ROWS_A_MONTH, NUM_ROWS]
    assert outputs(run) == nightly


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_verdict_is_none_and_its_month_is_judged_again(run: Run, judged: list[int], size: int):
    run.write(with_errors_in_both_months())
    run.validate(max_bad_fraction=0.1)
    first = outputs(run)
    damaged = sorted(run.paths["judged"].iterdir())[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:size])
    run.validate(max_bad_fraction=0.1)
    assert judged == [NUM_ROWS, ROWS_A_MONTH]
    assert outputs(run) == first
    assert damaged.read_bytes() == whole


def test_a_bad_month_fails_though_the_log_as_a_whole_has_few_bad_rows(run: Run):
    columns = clean_columns()
    columns["rating"][ROWS_A_MONTH : ROWS_A_MONTH + 8] = [9.0] * 8
    run.write(columns)
    with pytest.raises(ValidationFailedError, match=r"month_bad_fraction is 0\.0533333 .*\(rating_out_of_range 8\)"):
        run.validate(max_bad_fraction=0.1)


@pytest.mark.parametrize(("num_rows", "share"), [(99, 0.0), (100, 0.08)])
def test_a_month_of_a_handful_of_rows_is_no_reason_to_stop(num_rows, share):
    months = [SimpleNamespace(bad=np.arange(8), num_rows=num_rows), SimpleNamespace(bad=np.arange(1), num_rows=1_000)]
    assert worst_month(months)["month_bad_fraction"] == pytest.approx(max(share, 0.001))


def test_a_part_more_in_a_month_is_a_change_of_that_month(run: Run, judged: list[int]):
    run.write(clean_columns())
    run.validate()
    part = run.paths["data"] / "interactions" / MONTHS[0] / "part-0.parquet"
    late = pq.read_table(part).slice(0, 1).set_column(1, "item_id", pa.array([33], pa.int64()))
    pq.write_table(late, part.with_name("late.parquet"), store_schema=False)
    run.validate()
    assert judged == [NUM_ROWS, ROWS_A_MONTH + 1]


def test_other_bounds_are_another_judgement(run: Run, judged: list[int]):
    run.write(clean_columns())
    run.validate()
    run.validate(max_rating=4.0, max_bad_fraction=1.0, max_month_bad_fraction=1.0)
    assert judged == [NUM_ROWS, NUM_ROWS]
    assert run.report["reasons"] == {"rating_out_of_range": NUM_ROWS // 5}


def test_an_item_that_comes_to_the_item_table_is_looked_up_again_where_it_was_unknown(run: Run, judged: list[int]):
    run.write(changed(200, item_id=NUM_ITEMS))
    run.validate()
    assert run.bad_rows == [(*place(200), "unknown_item")]
    run.write(changed(200, item_id=NUM_ITEMS), items=NUM_ITEMS + 1)
    run.validate()
    assert run.bad_rows == []
    assert judged == [NUM_ROWS, ROWS_A_MONTH]
    run.write(changed(200, item_id=NUM_ITEMS), items=NUM_ITEMS + 9)  # new items that nobody had
    run.validate()
    assert judged == [NUM_ROWS, ROWS_A_MONTH]


def test_an_item_that_leaves_the_item_table_is_unknown_from_then_on(run: Run, judged: list[int]):
    columns = clean_columns()
    columns["item_id"] = [item if item < NUM_ITEMS - 1 else 0 for item in columns["item_id"]]
    columns["item_id"][0] = NUM_ITEMS - 1
    run.write(columns)
    run.validate()
    run.write(columns, items=NUM_ITEMS - 1)
    run.validate()
    assert run.bad_rows == [(*place(0), "unknown_item")]
    assert judged == [NUM_ROWS, ROWS_A_MONTH]


def test_verdicts_that_the_log_does_not_use_are_removed(run: Run):
    run.write(clean_columns())
    run.validate()
    before = {file.name for file in run.paths["judged"].iterdir()}
    run.write(changed(200, rating=1.5))
    run.validate()
    after = {file.name for file in run.paths["judged"].iterdir()}
    assert (len(before), len(after), len(before & after)) == (2, 2, 1)


def test_months_judged_one_by_one_are_as_months_judged_together(run: Run, monkeypatch: pytest.MonkeyPatch, judged):
    run.write(with_errors_in_both_months())
    run.validate(max_bad_fraction=0.1)
    together = outputs(run)
    forget_verdicts(run)
    monkeypatch.setattr(months, "ROWS_AT_ONCE", 1)
    run.validate(max_bad_fraction=0.1)
    assert judged == [NUM_ROWS, ROWS_A_MONTH, ROWS_A_MONTH]
    assert outputs(run) == together


def test_restated_results_are_those_of_great_expectations_over_all_rows():
    columns = with_errors_in_both_months()
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in INTERACTIONS})
    suite, items = suites.row_suite(SETTINGS, has_items=True), pa.array(range(NUM_ITEMS), pa.int64())
    whole, nothing = (suites.event_frame(part, np.zeros(len(part), np.int64), items) for part in (table, table[:0]))
    runner = SuiteRunner()
    wanted = runner.run("whole", whole, suite)
    for form, judgement in zip(runner.run("nothing", nothing, suite), wanted, strict=True):
        missing = int(whole[judgement.expectation.column].isna().sum())
        found = restate(form, len(whole), missing, judgement.rows)
        assert (found.success, found.observed) == (judgement.success, judgement.observed)
        assert found.result.success == judgement.result.success
        percent = judgement.result.result.get("unexpected_percent_total", judgement.result.result["unexpected_percent"])
        assert found.result.result == judgement.result.result | {"unexpected_percent": percent}
    assert {j.expectation.name for j in wanted if not j.success} == {
        "action_null",
        "rating_out_of_range",
        "unknown_item",
    }


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 5), st.sampled_from("abc")),
    max_size=30,
)


def frame_of(events: list[tuple[int, int, int, int, str]]) -> pd.DataFrame:
    columns = {"user_id": [e[0] for e in events], "item_id": [e[1] for e in events]}
    columns["timestamp"] = [JULY + MONTH * e[2] + e[3] for e in events]
    return pd.DataFrame(columns, dtype="Int64").assign(action=pd.Categorical([e[4] for e in events]))


def plain(facts: Facts) -> dict[str, object]:
    values = vars(facts)
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


@settings(deadline=None)
@given(EVENTS)
def test_months_added_up_are_what_is_counted_of_all_events(events):
    by_month = [count_events(frame_of([e for e in events if e[2] == month])) for month in range(3)]
    assert plain(add_up(by_month)) == plain(count_events(frame_of(events)))
