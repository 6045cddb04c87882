"""The nightly cycle over a made history: what a night may know, who serves, what the days after show, resuming."""

import shutil
from dataclasses import asdict

import numpy as np
import pytest
from made_evaluations import evaluate_settings, report_settings
from made_logs import DAY, train_settings, walking_log, write_log

from components.backtest import backtest
from components.backtesting.future import open_future
from components.backtesting.nights import make_plan, read_nights, seconds
from components.backtesting.page import write_page
from components.backtesting.story import conclude, print_story, share_unknown
from components.console import log
from components.dataset import load_sequences
from components.errors import InputError, StateError
from components.event_log import read_log
from components.files import read_json, write_json
from components.ranking.paired import Paired
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


def settings(warm_start=None, learning_rate=0.02, **promote):
    made = vars(train_settings(epochs=20, patience=20, dim=16, learning_rate=learning_rate, warm_start=warm_start))
    tiny = {name: value for name, value in made.items() if name in TrainSettings.model_fields}
    train_ = load_settings().train["hstu"].model_copy(update=tiny)
    return report_settings(
        train={"hstu": train_},
        evaluate=evaluate_settings(),
        sequences=SequencesSettings(valid_fraction=0.1, test_fraction=0.2),
        promote=PROMOTE.model_copy(update=promote),
    )


class Replayed:
    def __init__(self, root, events=LOG):
        self.root, self.trained, self.starts, self.users = root, [], [], []
        write_log(root, events, titles={item: f"The {item}" for _, item, _ in events})

    def run(self, plan=PLAN, interrupt_at=None, **changes):
        def recorded(*arguments, sequences, **places):
            if len(self.trained) == interrupt_at:
                raise KeyboardInterrupt
            self.trained.append(read_json(sequences / "split.json"))
            self.users.append(load_sequences(sequences).user_ids.tolist())
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


def test_every_night_but_the_first_challenges_the_champion_of_then(replayed):
    nights = replayed.story["nights"]
    assert [night["contest"]["has_champion"] for night in nights] == [False, True, True]


def test_what_the_frozen_model_loses_is_the_deployed_ones_value_minus_its_own(replayed):
    losses = []
    for night in replayed.story["nights"]:
        values = night["future"]["values"]
        expected = values["deployed"]["value"] - values["frozen"]["value"]
        losses.append(night["future"]["loss"]["difference"])
        assert losses[-1] == pytest.approx(expected, abs=2e-6)
    assert losses[0] == 0.0
    assert any(losses)
    means = replayed.story["means"]
    deployed = [night["future"]["values"]["deployed"]["value"] for night in replayed.story["nights"]]
    assert means["deployed"] == pytest.approx(np.mean(deployed), abs=1e-6)


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


def test_a_night_that_cannot_start_from_the_champion_starts_from_scratch(tmp_path, caplog):
    # Days are the log's smallest unit: the later night's training part ends a day earlier than the champion's.
    warm = Replayed(tmp_path)
    with caplog.at_level("INFO", logger=log.name):
        story = warm.run(make_plan("1970-03-10", "1970-03-11", 1, 1), warm_start="hstuflow:0123")
    assert story["champions"][0] == "1970-03-10"
    assert warm.starts == [None, None]
    assert "from scratch, not from the champion: it was trained on events of today's validation" in caplog.text


def test_other_settings_are_another_backtest(replayed, tmp_path):
    again = Replayed(tmp_path)
    again.run(make_plan("1970-02-05", "1970-02-05", 5, 1))
    again.run(make_plan("1970-02-05", "1970-02-05", 5, 1), max_loss=0.4)
    assert len(again.trained) == 2


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


def test_a_model_that_baselines_beat_is_not_deployed_and_that_is_told(tmp_path, capsys):
    replayed = Replayed(tmp_path)
    reports = tmp_path / "reports"
    reports.mkdir()
    for name in ("backtest.html", "backtest.svg"):
        (reports / name).write_text("of another backtest")
    story = replayed.run(make_plan("1970-02-05", "1970-02-05", 5, 1), learning_rate=1e-9)
    [night] = story["nights"]
    assert (night["verdict"], night["models"]) == ("failed", {"newest": "1970-02-05"})
    assert (story["champions"], story["refused"]) == ([], ["1970-02-05"])
    assert set(night["future"]["values"]) == {"newest", "popularity_recent"}
    assert "0 of 1 challengers promoted, 1 kept out." in capsys.readouterr().out
    assert "<th>1970-02-05</th>" in (reports / "backtest.html").read_text()
    assert "another" not in (reports / "backtest.svg").read_text()


def test_nights_after_the_end_of_the_log_leave_no_page_of_another_backtest(replayed, tmp_path, capsys):
    story = dict(replayed.story)
    story["nights"] = [night | {"future": None} for night in story["nights"]]
    story["means"] = {}
    write_page(replayed.story, tmp_path)
    write_page(story, tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "backtest.json", story)
    print_story(story, tmp_path)
    printed = capsys.readouterr().out
    assert "backtest.html" not in printed
    assert printed.splitlines()[-1].startswith(f"next  open {tmp_path / 'backtest.json'}")


def test_windows_are_counted_as_better_or_worse_where_chance_can_be_told_from_it(replayed):
    def night(deployed, difference, low, high, p_value, num_users):
        loss = asdict(Paired(difference, low, high, 0.95, p_value, num_users))
        return {"models": {"deployed": deployed, "frozen": "a"}, "future": {"loss": loss}}

    nights = [
        night("a", 0.0, 0.0, 0.0, 1.0, 50),
        night("b", 0.2, 0.1, 0.3, 0.01, 50),
        night("b", -0.2, -0.3, -0.1, 0.01, 50),
        night("b", -0.2, -0.3, -0.1, 0.01, 50),
        night("b", 0.2, 0.1, 0.3, 0.26, 3),  # of three users an interval is too narrow
        {"models": {"deployed": "b", "frozen": "a"}, "future": None},
    ]
    sentence = conclude(replayed.story | {"nights": nights})[2]
    assert sentence == (
        "They are two models in 4 of 5 windows: the deployed one is better beyond chance in 1 of them, worse in 2."
    )


def test_new_items_of_the_days_after_a_night_are_unknown_to_every_model_and_to_its_catalogue(tmp_path):
    night = make_plan("1970-02-10", "1970-02-10", 5, 1)
    start = seconds(night.first)
    events = [(user, item + 500 if user % 2 and time >= start else item, time) for user, item, time in LOG]
    replayed = Replayed(tmp_path, events)
    [found] = replayed.run(night)["nights"]
    window = [item for _, item, time in events if start <= time < start + 5 * DAY]
    future = found["future"]
    assert future["new_share"] == pytest.approx(np.mean(np.array(window) > 500))
    assert share_unknown(future, "newest") == pytest.approx(future["new_share"] + future["unknown_share"]["newest"])
    assert share_unknown(future, "popularity_recent") == future["new_share"] > 0.3


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
    users = sorted({user for user, _, _ in LOG})
    assert replayed.users == [users[::2]]


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
