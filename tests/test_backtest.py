"""The nightly cycle over a made history: what a night may know, who serves, what the days after show, resuming."""

import shutil

import numpy as np
import pytest
from made_evaluations import evaluate_settings, report_settings
from made_logs import DAY, train_settings, walking_log, write_log

from components.backtest import backtest
from components.backtesting.future import open_future
from components.backtesting.nights import make_plan, read_nights, seconds
from components.backtesting.page import write_page
from components.errors import InputError, StateError
from components.event_log import read_log
from components.files import read_json
from components.sequences import build_sequences
from components.settings import PromoteSettings, SequencesSettings, TrainSettings, load_settings
from components.training import train

PROMOTE = PromoteSettings(
    max_loss=0.5,
    min_users=3,
    max_slice_loss=1.0,
    min_slice_users=50,
    max_latency_ms=1.0,
    max_megabytes=1.0,
    max_score_difference=0.0,
)
LOG = walking_log(num_users=60, num_events=30)
PLAN = make_plan("1970-02-05", "1970-02-15", 5, 1)


def settings(warm_start=None, **promote):
    made = vars(train_settings(epochs=20, patience=20, dim=16, learning_rate=0.02, warm_start=warm_start))
    tiny = {name: value for name, value in made.items() if name in TrainSettings.model_fields}
    train_ = load_settings().train["hstu"].model_copy(update=tiny)
    return report_settings(
        train={"hstu": train_},
        evaluate=evaluate_settings(),
        sequences=SequencesSettings(valid_fraction=0.1, test_fraction=0.2),
        promote=PROMOTE.model_copy(update=promote),
    )


class Replayed:
    def __init__(self, root):
        self.root, self.trained, self.starts = root, [], []
        write_log(root, LOG, titles={item: f"The {item}" for item in range(1, 26)})

    def run(self, plan=PLAN, interrupt_at=None, **changes):
        def recorded(*arguments, sequences, **places):
            if len(self.trained) == interrupt_at:
                raise KeyboardInterrupt
            self.trained.append(read_json(sequences / "split.json"))
            self.starts.append(places["start"] and places["start"].parent.name)
            train(*arguments, sequences=sequences, **places)

        folders = {name: self.root / name for name in ("data", "artifacts", "reports")}
        return backtest(settings(**changes), plan, build=build_sequences, train=recorded, **folders)

    @property
    def folder(self):
        [folder] = [path for path in (self.root / "artifacts" / "backtest").iterdir() if path.is_dir()]
        return folder


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    replayed = Replayed(tmp_path_factory.mktemp("backtest"))
    replayed.story = replayed.run()
    return replayed


def test_a_night_knows_nothing_from_its_midnight_on(replayed):
    times = np.array([time for _, _, time in LOG])
    assert [split["num_events"] for split in replayed.trained] == [
        int((times < seconds(date)).sum()) for date in PLAN.dates
    ]


def test_each_night_has_its_decision_and_the_days_until_the_next_one(replayed):
    nights = replayed.story["nights"]
    assert [(night["date"], night["until"]) for night in nights] == [
        ("1970-02-05", "1970-02-10"),
        ("1970-02-10", "1970-02-15"),
        ("1970-02-15", "1970-02-20"),
    ]
    for night in nights:
        window = night["future"]["window"]
        assert seconds(PLAN.dates[0]) <= window["from"] <= window["to"] < window["from"] + 5 * DAY
        assert {"newest", "popularity_recent"} <= set(night["future"]["values"])
    assert read_json(replayed.root / "reports" / "backtest.json") == replayed.story


def test_the_champion_is_the_last_that_passed_and_the_frozen_one_the_first(replayed):
    champions = []
    for night in replayed.story["nights"]:
        champions += [night["date"]] if night["verdict"] == "passed" else []
        expected = {"deployed": champions[-1], "frozen": champions[0]} if champions else {}
        assert night["models"] == expected | {"newest": night["date"]}
    assert replayed.story["champions"] == champions
    assert len(champions) >= 2
    deployed = [night for night in replayed.story["nights"] if "deployed" in night["models"]]
    for night in deployed:
        if night["models"]["deployed"] == night["models"]["frozen"]:
            assert night["future"]["loss"]["difference"] == 0.0


def test_with_a_warm_start_each_night_begins_with_the_champion_of_then(replayed, tmp_path):
    warm = Replayed(tmp_path)
    nights = warm.run(warm_start="hstuflow:0123")["nights"]
    assert replayed.starts == [None, None, None]
    champion, expected = None, []
    for night in nights:
        expected.append(champion)
        champion = night["date"] if night["verdict"] == "passed" else champion
    assert warm.starts == expected
    assert len(set(expected)) >= 2


def test_a_killed_backtest_goes_on_with_the_night_it_was_at_and_ends_in_the_same_story(replayed, tmp_path):
    killed = Replayed(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        killed.run(interrupt_at=2)
    assert len(read_nights(killed.folder, PLAN.dates)) == 2
    assert killed.run() == replayed.story
    assert len(killed.trained) == len(PLAN.dates)  # none twice
    longer = killed.run(make_plan("1970-02-05", "1970-02-20", 5, 1))
    assert longer["nights"][:-1] == replayed.story["nights"]
    assert len(killed.trained) == len(PLAN.dates) + 1


def test_without_a_log_or_its_quarantine_it_says_which_command_makes_it(tmp_path):
    replayed = Replayed(tmp_path)
    shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)
    with pytest.raises(StateError, match=r"quarantine\.parquet: is missing\. Run `dvc repro validate`"):
        replayed.run()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(StateError, match="holds no event log"):
        replayed.run()


def test_a_rule_that_nobody_keeps_leaves_nobody_deployed(tmp_path):
    story = Replayed(tmp_path).run(make_plan("1970-02-05", "1970-02-05", 5, 1), max_loss=0.0, min_users=2)
    [night] = story["nights"]
    assert ("deployed" in night["models"]) == (night["verdict"] == "passed")


def test_the_future_has_the_events_of_its_days_and_the_items_of_before(replayed):
    whole, start = replayed.folder / "log", seconds(PLAN.dates[1])
    events = read_log(whole / "data", whole / "quarantine.parquet")
    split = replayed.trained[1]
    future, here = open_future(events, whole / "data", split, start, start + 5 * DAY)
    rows = np.concatenate([np.arange(*pair) for pair in zip(future.test_starts, future.ends, strict=True)])
    inside = (events.timestamps >= start) & (events.timestamps < start + 5 * DAY)
    assert sorted(rows.tolist()) == np.flatnonzero(inside).tolist()
    assert set(here.item_ids) == set(events.item_ids[events.timestamps < start].tolist())


def test_every_n_th_user_alone_is_replayed(tmp_path):
    replayed = Replayed(tmp_path)
    replayed.run(make_plan("1970-02-15", "1970-02-15", 5, 2))
    assert replayed.trained[0]["num_users"] <= 30


@pytest.mark.parametrize(("first", "last"), [("2000-13-01", "2001-01-01"), ("2001-01-01", "2000-01-01")])
def test_nights_that_cannot_be_are_one_sentence(first, last):
    with pytest.raises(InputError, match="--from, --to"):
        make_plan(first, last, 1, 1)


def test_a_first_night_before_the_log_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"the log begins later.*a day after 1970"):
        Replayed(tmp_path).run(make_plan("1969-01-01", "1969-01-05", 5, 1))


def test_page_and_plot_show_every_night_in_light_and_dark_and_are_the_same_bytes_again(replayed, tmp_path):
    page = (replayed.root / "reports" / "backtest.html").read_text()
    plot = (replayed.root / "reports" / "backtest.svg").read_text()
    for night in replayed.story["nights"]:
        assert f"<th>{night['date']}</th>" in page
        assert night["date"] in plot  # for screen readers
    assert "prefers-color-scheme: dark" in plot
    assert "#0000" not in plot + page.split("</style>")[1]  # no placeholder colour is left
    write_page(replayed.story, tmp_path)
    assert (tmp_path / "backtest.html").read_text() == page
    assert (tmp_path / "backtest.svg").read_text() == plot


def test_the_closing_table_has_a_line_a_night_and_the_next_command(replayed, capsys):
    shutil.rmtree(replayed.root / "reports")
    assert replayed.run() == replayed.story  # all nights are finished: nothing is trained
    printed = capsys.readouterr().out
    for night in replayed.story["nights"]:
        assert night["date"] in printed
    assert printed.splitlines()[-1].startswith("next  open ")
