"""Monitoring: the measures against values computed by hand, the log read back, outcomes, limits, and the flow."""

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint
from prefect.logging import disable_run_logger

import flows.monitoring
from components import monitoring
from components.catalogue import load_catalogue
from components.drift import measures, outcomes
from components.drift.page import render_page
from components.drift.reference import Reference
from components.drift.requests import Logged, Request, read_requests
from components.errors import InputError
from components.files import write_json
from components.interactions import INTERACTIONS, write_partitions
from components.serving.request_log import RequestLog
from components.settings import load_settings

KEYS = [f"item-{number}" for number in range(20)]
SETTINGS = load_settings().monitor
DAY = 86_400
NOW = 1_760_000_000


def make(user="ann", when=NOW, items=("item-1",), scores=None, **more):
    fields = {"num_events": 5, "num_read": 5, "num_unknown": 0, "last_item": "item-3", "k": 10, "model": "m:1"}
    scores = tuple(scores or [0.5] * len(items))
    return Request(
        time=float(when), user_id=user, request_time=when, is_popular=False, items=items, scores=scores, **fields | more
    )


def at_ten(request, **more):
    """The row of a request, as the service logs it."""
    row = {name: getattr(request, name) for name in Request.__slots__ if name != "is_popular"}
    return row | {"source": "model", "route": "/recommend", "request_id": "x"} | more


def test_psi_is_that_of_its_formula():
    now, then = np.array([30, 50, 20]), np.array([20, 60, 20])
    p, q = (now + 0.5) / 101.5, (then + 0.5) / 101.5
    psi, by_chance = measures.measure_stability(now, then)
    assert psi == pytest.approx(sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True)))
    assert by_chance == pytest.approx(2 * (1 / 100 + 1 / 100))


@given(st.lists(st.integers(0, 1_000), min_size=2, max_size=12))
def test_psi_of_a_distribution_and_itself_is_nothing_and_it_is_symmetric(counts):
    now = np.array(counts)
    assert measures.measure_stability(now, now)[0] == pytest.approx(0, abs=1e-12)
    other = now[::-1].copy()
    assert measures.measure_stability(now, other)[0] == pytest.approx(measures.measure_stability(other, now)[0])


def test_what_chance_gives_is_what_samples_of_one_distribution_show():
    random, p = np.random.default_rng(0), np.full(8, 1 / 8)
    pairs = [(random.multinomial(500, p), random.multinomial(2_000, p)) for _ in range(400)]
    found = [measures.measure_stability(*pair) for pair in pairs]
    assert np.mean([psi for psi, _ in found]) == pytest.approx(found[0][1], rel=0.1)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=50))
def test_every_history_falls_into_the_bin_that_names_it(lengths):
    names = measures.name_lengths()
    for length in lengths:
        (place,) = np.flatnonzero(measures.count_lengths(np.array([length])))
        low, _, high = names[place].removesuffix(" or more").partition("-")
        assert int(low) <= length <= int(high or (length if "more" in names[place] else low))
    assert measures.count_lengths(np.array(lengths)).sum() == len(lengths)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_groups_hold_about_equal_shares_of_the_events_the_most_popular_first(counts):
    counts_X = np.array(counts)
    groups_X = measures.group_items(counts_X)
    order = np.argsort(-counts_X, kind="stable")
    assert (np.diff(groups_X[order]) >= 0).all()
    held = np.bincount(groups_X, weights=counts_X, minlength=measures.GROUPS)
    assert held.max(initial=0) <= counts_X.sum() / measures.GROUPS + counts_X.max()


def test_the_log_of_requests_is_read_back_without_its_older_days_and_its_torn_line(tmp_path):
    with closing(RequestLog(tmp_path)) as log:
        for day in range(10):
            log.add(at_ten(make(when=NOW + day * DAY)), log.generation)
            log.forget("nobody")  # writes what waits
    newest = max(tmp_path.glob("*/*.jsonl"))
    with newest.open("ab") as torn:
        torn.write(b'{"time":')
    logged = read_requests(tmp_path, days=3, most=100)
    assert [one.request_time for one in logged.requests] == [NOW + day * DAY for day in (7, 8, 9)]
    assert logged.requests[0] == make(when=NOW + 7 * DAY)


def test_of_more_requests_than_wanted_an_even_sample_is_read(tmp_path):
    with closing(RequestLog(tmp_path)) as log:
        for number in range(1_000):
            log.add(at_ten(make(when=NOW + number)), log.generation)
    logged = read_requests(tmp_path, days=7, most=100)
    times = [one.request_time - NOW for one in logged.requests]
    assert (len(times), logged.num_rows, sorted(times)) == (100, 1_000, times)
    assert 350 < np.mean(times) < 650


def test_a_folder_without_a_log_and_a_damaged_file_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no log of requests"):
        read_requests(tmp_path, days=7, most=10)
    (tmp_path / "2026-01-01").mkdir()
    (tmp_path / "2026-01-01" / "x.jsonl").write_text("[]\n{}\n")
    with pytest.raises(InputError, match="is damaged"):
        read_requests(tmp_path, days=7, most=10)


def later(**users):
    """What users did, as (seconds after NOW, item) each."""
    return {
        user: (np.array([NOW + t for t, _ in events]), [item for _, item in events]) for user, events in users.items()
    }


def test_a_request_is_hit_by_the_very_next_event_and_by_any_within_the_horizon():
    did = later(ann=[(0, "item-1"), (5, "item-2"), (9, "item-1")], bob=[(7, "item-1"), (99, "item-4")])
    asked = [
        make(items=("item-1", "item-9")),  # next is item-2; item-1 comes later
        make(items=("item-2",)),
        make(user="bob", items=("item-4",)),  # item-4 is beyond the horizon
        make(user="bob", when=NOW + 7, items=("item-1",)),  # its own second does not count: no outcome
        make(user="bob", items=("item-1",), k=3),  # fewer than ten were asked for
        make(user="cid"),
        make(user=None),
    ]
    found = outcomes.measure_hits(asked, did, horizon=50, confidence=0.95)
    assert (found.num_requests, found.num_users) == (3, 2)
    assert found.next["value"] == pytest.approx((0.5 + 0.0) / 2)  # each user counts once
    assert found.any == pytest.approx(2 / 3)
    assert outcomes.measure_hits(asked[-2:], did, horizon=50, confidence=0.95) is None


def test_calibration_is_the_share_of_hits_in_each_tenth_of_the_scores():
    did = later(ann=[(5, f"item-{number}") for number in range(10, 20)])
    items = tuple(f"item-{number}" for number in range(20))
    asked = [make(items=items, scores=[number / 20 for number in range(20)])]
    found = outcomes.measure_calibration(asked, did, horizon=50)
    assert [one["hit_rate"] for one in found] == [0.0] * 5 + [1.0] * 5
    assert [one["num_items"] for one in found] == [2] * 10
    assert found[0]["score"] == pytest.approx(0.025)


@pytest.mark.parametrize("has_keys", [False, True])
def test_later_events_have_the_ids_that_the_service_used(tmp_path, has_keys):
    import pyarrow.parquet as pq

    rows = [(1, 50, NOW - 90 * DAY), (1, 51, NOW + 5), (2, 52, NOW + 6), (3, 53, NOW + 7)]
    columns = {"user_id": [r[0] for r in rows], "item_id": [r[1] for r in rows], "timestamp": [r[2] for r in rows]}
    table = pa.table(columns | {"action": ["event"] * 4, "rating": pa.array([None] * 4, pa.float32())})
    write_partitions(tmp_path, table.cast(INTERACTIONS))
    users = {1: "1", 2: "2", 3: "3"}
    items = {51: "51", 52: "52"}
    if has_keys:
        users, items = {1: "ann", 2: "bob", 3: "cid"}, {51: "x", 52: "y"}
        for what, keys in (("user", users), ("item", items | {50: "w", 53: "z"})):
            pq.write_table(pa.table({"id": list(keys), "key": list(keys.values())}), tmp_path / f"{what}_keys.parquet")
    asked = [make(user=users[1]), make(user=users[2]), make(user="nobody"), make(user=None)]
    found = outcomes.read_later(tmp_path, asked)
    assert {user: (times.tolist(), ids) for user, (times, ids) in found.items()} == {
        users[1]: ([NOW + 5], [items[51]]),
        users[2]: ([NOW + 6], [items[52]]),
    }


def write_log(folder, rows, part="part-0"):
    """Write rows of (user, item, seconds after NOW) as one file of the log."""
    users, items, seconds = zip(*rows, strict=True)
    columns = {"user_id": users, "item_id": items, "timestamp": [NOW + second for second in seconds]}
    table = pa.table(columns | {"action": ["event"] * len(rows), "rating": pa.nulls(len(rows), pa.float32())})
    write_partitions(folder, table.cast(INTERACTIONS), part)


def test_later_events_of_a_month_in_several_parts_are_in_order_of_time_ties_in_that_of_the_parts(tmp_path):
    write_log(tmp_path, [(1, 50, 10), (1, 51, 30), (1, 52, 40)], "app")
    write_log(tmp_path, [(1, 60, 5), (1, 61, 30), (1, 62, 35)], "web")
    asked = [make(user="1", items=("60",)), make(user="1", when=NOW + 10, items=("51",))]
    found = outcomes.read_later(tmp_path, asked)
    times, items = found["1"]
    assert (times - NOW).tolist() == [5, 10, 30, 30, 35, 40]
    assert items == ["60", "50", "51", "61", "62", "52"]
    assert outcomes.measure_hits(asked, found, horizon=50, confidence=0.95).next["value"] == 1


def test_what_is_no_number_is_nobody_in_a_log_of_numbers(tmp_path):
    least, most = -(2**63), 2**63 - 1
    write_log(tmp_path, [(user, 50, 5) for user in (-5, 0, 3, 10, least, most)])
    strange = ["--5", "-", "", "٣", "-٣", "²", "1_0", "+3", " 3", "3\n", "03", "-0", str(least - 1), str(most + 1)]
    asked = [make(user=user) for user in [*strange, "9" * 18, "9" * 5_000, "-" * 5_000 + "1", "-5", "0", str(most)]]
    assert set(outcomes.read_later(tmp_path, asked)) == {"-5", "0", str(most)}
    assert set(outcomes.read_later(tmp_path, [make(user=str(least))])) == {str(least)}


@pytest.fixture
def reference(tmp_path):
    catalogue = load_catalogue(write_checkpoint(tmp_path / "model", KEYS), key_type="string")
    champion = {"tag": "h:1", "model_tag": "h:m", "verdict": "accepted", "data_hash": "d"}
    return Reference(champion, catalogue, cold_share=0.01, lengths_N=np.full(500, 5), hit_rate=0.4)


def compare(tmp_path, monkeypatch, reference, asked, did=None, **changed):
    monkeypatch.setattr(monitoring, "read_later", lambda *_: did or {})
    settings = SETTINGS.model_copy(update={"min_requests": 100} | changed)
    logged = Logged(tuple(asked), len(asked))
    return monitoring.compare_all(settings, logged, reference, data=tmp_path, profile=tmp_path / "none.json")


def test_actions_of_the_newest_months_are_compared_with_those_of_the_promoted_log(tmp_path):
    promoted = {"actions": [["buy", 3], ["view", 7]], "num_events": 10}
    write_json(tmp_path / "profile.json", promoted)
    nights = {"000001": [("view", NOW - 60 * DAY)] * 9, "000002": [("buy", NOW)] * 4, "000003": [("gift", NOW)] * 4}
    for part, rows in nights.items():  # the newest month lies in two files
        columns = {"user_id": [1] * len(rows), "item_id": [1] * len(rows), "timestamp": [when for _, when in rows]}
        columns |= {"action": [action for action, _ in rows], "rating": pa.nulls(len(rows), pa.float32())}
        write_partitions(tmp_path, pa.table(columns).cast(INTERACTIONS), part)
    measure = monitoring._action_shift(SETTINGS, tmp_path, tmp_path / "profile.json")
    assert measure.value == pytest.approx((abs(0.3 - 0.5) + abs(0.7 - 0) + 0.5) / 2)
    assert measure.is_past


def usual(number=300):
    """Requests like those of training: items drawn by its popularity."""
    counts = np.arange(20, 0, -1)
    drawn = np.random.default_rng(0).choice(20, size=number, p=counts / counts.sum())
    return [make(last_item=f"item-{item}") for item in drawn]


def test_requests_like_training_are_past_no_limit(tmp_path, monkeypatch, reference):
    found = compare(tmp_path, monkeypatch, reference, usual())
    assert (found["past"], found["drifted"], found["enough"]) == ([], False, True)
    assert json.loads(json.dumps(found)) == found
    assert "Nothing is past its limit" in render_page(found)


@pytest.mark.parametrize(
    ("change", "past"),
    [
        ({"num_unknown": 2}, "unknown_item_share"),
        ({"num_events": 200}, "history_length_psi"),
        ({"last_item": "item-19"}, "item_popularity_psi"),
    ],
)
def test_what_moved_is_named_unless_there_are_too_few_requests(tmp_path, monkeypatch, reference, change, past):
    from dataclasses import replace

    asked = [replace(one, **change) for one in usual()]
    found = compare(tmp_path, monkeypatch, reference, asked)
    assert (found["past"], found["drifted"]) == ([past], True)
    assert "It is time to train again" in render_page(found)
    few = compare(tmp_path, monkeypatch, reference, asked, min_requests=301)
    assert (few["past"], few["drifted"]) == ([], False)
    assert "Too few requests to tell" in render_page(few)


def test_a_hit_rate_is_past_its_limit_where_all_of_its_interval_is(tmp_path, monkeypatch, reference):
    users = [f"user-{number}" for number in range(60)]
    asked = [make(user=user, items=("item-7",)) for user in users for _ in range(5)]
    for one, item in enumerate(("item-2", "item-7")):
        did = later(**{user: [(5, item)] for user in users})
        found = compare(tmp_path, monkeypatch, reference, asked, did, max_popularity_psi=99.0)
        assert found["past"] == (["hit_rate"] if one == 0 else [])
    few = later(**{user: [(5, "item-2")] for user in users[:10]})
    assert compare(tmp_path, monkeypatch, reference, asked, few, max_popularity_psi=99.0)["past"] == []


def test_a_title_in_the_log_is_text_on_the_page(tmp_path, monkeypatch, reference):
    asked = [make(model="<script>alert(1)</script>") for _ in range(3)]
    assert "<script>" not in render_page(compare(tmp_path, monkeypatch, reference, asked))


# The flow


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """The flow with its commands noted instead of run."""
    monkeypatch.chdir(tmp_path)
    seen = SimpleNamespace(commands=[], deployments=[], past=[])

    def run_command(command, **_):
        seen.commands.append(command[2:])
        write_json(tmp_path / "reports" / "monitoring.json", {"past": seen.past})

    def run_deployment(name, **options):
        seen.deployments.append((name, options["timeout"]))
        return SimpleNamespace(name="quick-fox")

    monkeypatch.setattr(flows.monitoring, "run_command", run_command)
    monkeypatch.setattr(flows.monitoring, "publish", lambda stage: seen.commands.append(stage))
    monkeypatch.setattr(flows.monitoring, "run_deployment", run_deployment)
    monkeypatch.setattr(flows.monitoring, "get_run_logger", lambda: SimpleNamespace(info=lambda *_: None))
    for name in ("compare", "start_training"):
        monkeypatch.setattr(flows.monitoring, name, getattr(flows.monitoring, name).fn)
    with disable_run_logger():
        yield seen


@pytest.mark.parametrize(("past", "deployments"), [([], []), (["hit_rate"], [("hstuflow/nightly", 0)])])
def test_past_a_limit_the_flow_starts_the_training_and_does_not_wait_for_it(flow, tmp_path, past, deployments):
    (tmp_path / "requests" / "2026-01-01").mkdir(parents=True)
    (tmp_path / "requests" / "2026-01-01" / "x.jsonl").touch()
    flow.past = past
    outcome = flows.monitoring.monitoring_flow.fn("requests")
    assert flow.commands == [["components", "monitor", "--requests", "requests"], "monitor"]
    assert flow.deployments == deployments
    assert outcome == ("past the limit: hit_rate" if past else "nothing is past its limit")


def test_without_a_log_of_requests_the_flow_says_so_and_does_nothing(flow):
    assert flows.monitoring.monitoring_flow.fn("requests") == "no log of requests"
    with closing(RequestLog(Path("requests"))) as log:
        log.forget("ann")  # before the first request
    assert flows.monitoring.monitoring_flow.fn("requests") == "no log of requests"
    assert (flow.commands, flow.deployments) == ([], [])


def test_the_flow_may_leave_the_training_to_a_person(flow, tmp_path):
    (tmp_path / "requests" / "2026-01-01").mkdir(parents=True)
    (tmp_path / "requests" / "2026-01-01" / "x.jsonl").touch()
    flow.past = ["hit_rate"]
    assert flows.monitoring.monitoring_flow.fn("requests", train=False) == "past the limit: hit_rate"
    assert flow.deployments == []
