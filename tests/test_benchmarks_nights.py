"""The replay of nights: what arrives each night, and when its end is not as it must be."""

import csv
import datetime as dt
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.csv
import pytest

from benchmarks import plot_nights, replay_nights
from benchmarks.replay_nights import BAD, CORRECTED, CRASHED, INCIDENTS, WORSE, Night, arrive, check, plan_nights, spoil
from components.files import write_json

FIRST = dt.date(2000, 9, 4)


def made_events():
    """An event an hour, from 30 days before the first night to 30 days after it."""
    start = replay_nights._seconds(FIRST) - 30 * 86_400
    times = [start + 3_600 * hour for hour in range(60 * 24)]
    ratings = pa.array([1.0 + hour % 5 for hour in range(len(times))], pa.float32())
    return pa.table({"user": [1] * len(times), "item": list(range(len(times))), "time": times, "rating": ratings})


def read_files(inbox):
    return {file.name: pyarrow.csv.read_csv(file) for file in sorted(inbox.iterdir())}


def test_the_nights_bring_every_event_once(tmp_path):
    events, nights = made_events(), plan_nights(FIRST, 4, 7)
    for night in nights:
        arrive(events, nights, Night(night.number, night.date), tmp_path / "inbox")
    files = read_files(tmp_path / "inbox")
    assert list(files) == ["2000-09-04.csv", "2000-09-11.csv", "2000-09-18.csv", "2000-09-25.csv"]
    assert [table.num_rows for table in files.values()] == [30 * 24, 7 * 24, 7 * 24, 7 * 24]
    assert pa.concat_tables(files.values())["item"].to_pylist() == list(range(51 * 24))


def test_a_bad_file_comes_again_corrected_the_next_night_beside_the_new_one(tmp_path):
    events, inbox = made_events(), tmp_path / "inbox"
    nights = [Night(1, FIRST), Night(2, dt.date(2000, 9, 11), BAD), Night(3, dt.date(2000, 9, 18), CORRECTED)]
    for night in nights[:2]:
        arrive(events, nights, night, inbox)
    bad = read_files(inbox)["2000-09-11.csv"]
    assert 0.5 < sum(rating == 99 for rating in bad["rating"].to_pylist()) / bad.num_rows < 0.7
    arrive(events, nights, nights[2], inbox)
    files = read_files(inbox)
    assert list(files) == ["2000-09-04.csv", "2000-09-11.csv", "2000-09-18.csv"]
    assert max(files["2000-09-11.csv"]["rating"].to_pylist()) == 5


def test_a_spoilt_file_keeps_its_good_rows():
    events = made_events()
    spoilt = spoil(events)
    assert spoilt.drop(["rating"]).equals(events.drop(["rating"]))
    kept = [a for a, b in zip(spoilt["rating"].to_pylist(), events["rating"].to_pylist(), strict=True) if a == b]
    assert len(kept) == sum(rating != 99 for rating in spoilt["rating"].to_pylist())


def made_end(root, **changes):
    """Rows and a workplace in which all is as it must be, but for `changes` of rows: night -> (outcome, decision)."""
    outcomes = {
        BAD: ("stopped", "none"),
        CRASHED: ("killed, then finished", "promoted"),
        WORSE: ("finished", "refused"),
    }
    rows = []
    for number in range(1, 15):
        incident = INCIDENTS.get(number, "")
        outcome, decision = changes.get(f"night_{number}", outcomes.get(incident, ("finished", "promoted")))
        rows.append({"night": number, "incident": incident, "outcome": outcome, "decision": decision})
    write_json(root / "registry" / "champion.json", {"tag": "hstuflow:14"})
    place = SimpleNamespace(root=root, latest=lambda: "14", status=lambda: "Data and pipelines are up to date.")
    return rows, place


@pytest.fixture(autouse=True)
def decided(monkeypatch):
    monkeypatch.setattr(replay_nights, "read_decisions", lambda _: [{"what": "promoted", "tag": "hstuflow:14"}])


def test_a_good_end_has_nothing_to_complain_about(tmp_path):
    assert check(*made_end(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"night_5": ("finished", "promoted")}, "the bad night stopped without a decision"),
        ({"night_8": ("killed, then stopped", "none")}, "the killed night finished"),
        ({"night_11": ("finished", "promoted")}, "the spoilt model was refused"),
        ({"night_3": ("stopped", "none")}, "every other night has its decision"),
    ],
)
def test_a_night_that_went_otherwise_is_named(tmp_path, changes, claim):
    assert claim in check(*made_end(tmp_path, **changes))


def test_a_wrong_champion_and_an_unclean_workspace_are_named(tmp_path):
    rows, place = made_end(tmp_path)
    place.latest, place.status = (lambda: "13"), (lambda: "train@hstu-time_split: changed deps")
    assert check(rows, place) == ["hstuflow:latest is the champion", "dvc status is clean"]
    write_json(tmp_path / "registry" / "champion.json", {"tag": "hstuflow:13"})
    assert "the champion is the model promoted last" in check(rows, place)


def test_the_picture_names_every_night_and_what_went_wrong(tmp_path):
    rows, _ = made_end(tmp_path)
    figures = {f"{role}_{key}": 0.1 for role in replay_nights.ROLES for key in replay_nights.FIGURES}
    for row in rows:
        row |= {"date": "2000-09-04"} | (figures if row["decision"] != "none" else dict.fromkeys(figures, ""))
    with (tmp_path / "nights.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert plot_nights.main(["--results", str(tmp_path / "nights.csv"), "--out", str(tmp_path / "nights.svg")]) == 0
    picture = (tmp_path / "nights.svg").read_text()
    ET.fromstring(picture)  # noqa: S314 - our own
    for words in (
        "Night 5 (bad data): stopped, none.",
        "Night 11 (spoilt recipe): finished, refused.",
        "killed in training",
    ):
        assert words in picture
