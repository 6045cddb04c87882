"""Batch scoring: the rows are the service's answers, whatever was killed in between, and never a mixture."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_checkpoints import write_checkpoint
from prefect.logging import disable_run_logger

import flows.scoring
from components import scoring
from components.errors import StateError
from components.files import hash_files, read_json, write_json
from components.recommender import Recommender

KEYS = [f"item-{number}" for number in range(30)]
NUM_USERS = 23
AT = 5_000
ROOT = Path(__file__).parent.parent


class Workspace:
    """A log with string ids, its sequences in another item order than the champion's, and a store with two models."""

    def __init__(self, root):
        self.root = root
        self.folders = {"data": root / "data", "artifacts": root / "artifacts", "registry": root / "registry"}
        for seed, name in enumerate("ab"):
            write_checkpoint(root / "bentoml" / "models" / "hstuflow" / name, KEYS, seed=seed)
        self.point("a")
        random = np.random.default_rng(0)
        lengths = random.integers(0, 15, NUM_USERS)
        lengths[:3] = (0, 1, 14)
        self.keys = [*KEYS[::-1], "gone"]
        items = random.integers(-1, len(self.keys), lengths.sum())
        items[lengths[:1].sum()] = -1  # of the second user all there is: the model knows nothing of it
        times = np.concatenate([np.sort(random.integers(1, AT, length)) for length in lengths])
        self.write(items, times, np.cumsum([0, *lengths]))

    def point(self, model):
        write_json(self.root / "registry" / "champion.json", {"model_tag": f"hstuflow:{model}"})

    def write(self, items, times, bounds):
        data, folder = self.folders["data"], self.folders["artifacts"] / "sequences" / "time_split"
        data.mkdir()
        folder.mkdir(parents=True)
        self.users = [f"user {number}" for number in range(NUM_USERS)]
        numbers = np.arange(NUM_USERS)[::-1] + 1  # the table of ids is in another order than the sequences
        pq.write_table(pa.table({"id": numbers, "key": self.users[::-1]}), data / "user_keys.parquet")
        (self.folders["artifacts"] / "quarantine.parquet").write_bytes(b"none")
        data_hash = hash_files([data, self.folders["artifacts"] / "quarantine.parquet"])
        write_json(folder / "split.json", {"data_hash": data_hash, "num_items": len(self.keys)})
        catalogue = {"item_id": range(len(self.keys)), "key": self.keys, "title": self.keys, "genres": self.keys}
        catalogue |= {name: range(len(self.keys)) for name in ("count", "first_seen", "last_seen")}
        pq.write_table(
            pa.table({name: list(column) for name, column in catalogue.items()}), folder / "catalogue.parquet"
        )
        write_arrow(folder / "events.arrow", {"item": items.astype(np.int32), "timestamp": times.astype(np.int64)})
        starts, ends = bounds[:-1], bounds[1:]
        users = {"user_id": np.arange(NUM_USERS) + 1, "start": starts}
        write_arrow(folder / "users.arrow", users | {"valid_start": ends, "test_start": ends, "end": ends})
        names = [self.keys[item] if item >= 0 else "nowhere" for item in items]
        events = list(zip(names, times.tolist(), strict=True))
        self.histories = [events[start:end] for start, end in zip(starts, ends, strict=True)]

    def score(self, **options):
        options = {"k": 5, "out": self.root / "scores", "at": AT, "users_a_part": 4} | options
        return scoring.score(**self.folders, **options)

    def rows(self, out="scores"):
        parts = sorted((self.root / out).glob("part-*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]


def write_arrow(path, columns):
    batch = pa.record_batch([pa.array(values) for values in columns.values()], names=list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    return Workspace(tmp_path)


def test_every_user_gets_the_answer_of_the_recommender_in_the_order_of_the_log(workspace):
    manifest = workspace.score()
    recommender = Recommender.load(workspace.root / "bentoml" / "models" / "hstuflow" / "a")
    rows = workspace.rows()
    assert [row["user_id"] for row in rows] == workspace.users
    for row, history in zip(rows, workspace.histories, strict=True):
        expected = recommender.recommend(history, 5, AT)
        assert row["source"] == expected.source
        assert row["item_ids"] == [item.item_id for item in expected.items]
        scores = [item.score for item in expected.items if item.score is not None]
        np.testing.assert_allclose(row["scores"], scores, atol=1e-6)
    assert {row["source"] for row in rows} == {"model", "popular"}
    assert (manifest["model_tag"], manifest["num_users"]) == ("hstuflow:a", NUM_USERS)
    assert read_json(workspace.root / "scores" / "manifest.json") == manifest | {"finished": True}
    assert len(list((workspace.root / "scores").iterdir())) == 6 + 1


@pytest.mark.parametrize("users_a_part", [1, 7, 100])
def test_the_rows_depend_neither_on_the_size_of_parts_nor_on_the_batch(workspace, monkeypatch, users_a_part):
    workspace.score()
    monkeypatch.setattr(scoring, "_EVENTS_A_BATCH", 1)
    workspace.score(out=workspace.root / "other", users_a_part=users_a_part)
    for ours, others in zip(workspace.rows(), workspace.rows("other"), strict=True):
        assert ours["item_ids"] == others["item_ids"]
        np.testing.assert_allclose(ours["scores"], others["scores"], atol=1e-6)


def test_without_a_time_it_is_that_of_the_logs_last_event(workspace):
    manifest = workspace.score(at=None)
    assert manifest["at"] == max(when for history in workspace.histories for _, when in history)


def test_finished_parts_are_kept_and_missing_ones_written(workspace):
    workspace.score()
    before, parts = workspace.rows(), sorted((workspace.root / "scores").glob("part-*"))
    kept = {part: part.stat().st_mtime_ns for part in parts}
    for part in (parts[1], parts[5]):
        part.unlink()
    workspace.score()
    assert workspace.rows() == before
    now = {part: part.stat().st_mtime_ns for part in parts}
    assert [part for part in parts if now[part] != kept[part]] == [parts[1], parts[5]]


@pytest.mark.parametrize(
    ("change", "observed"),
    [
        ({"k": 6}, "k 5"),
        ({"at": 6_000}, "at 5000"),
        ({"users_a_part": 5}, "users_a_part 4"),
        ({}, "model_tag hstuflow:a"),
    ],
)
def test_answers_of_something_else_are_not_mixed_in(workspace, change, observed):
    workspace.score()
    before = workspace.rows()
    workspace.point("b" if not change else "a")
    with pytest.raises(StateError, match=f"holds answers of something else: observed {observed}"):
        workspace.score(**change)
    assert workspace.rows() == before
    workspace.score(**change, replace=True)
    assert workspace.rows() != before or change == {"users_a_part": 5}


def test_a_folder_with_something_else_in_it_is_left_alone(workspace):
    (workspace.root / "scores").mkdir()
    (workspace.root / "scores" / "thesis.txt").write_text("mine")
    for options in ({}, {"replace": True}):
        with pytest.raises(StateError, match="holds something, but no manifest"):
            workspace.score(**options)
    assert [file.name for file in (workspace.root / "scores").iterdir()] == ["thesis.txt"]


def test_sequences_of_another_log_are_refused(workspace):
    (workspace.folders["data"] / "more.parquet").write_bytes(b"an event")
    with pytest.raises(StateError, match="are those of another log"):
        workspace.score()


def test_a_model_may_be_named_and_without_a_champion_must_be(workspace):
    assert workspace.score(tag="hstuflow:b")["model_tag"] == "hstuflow:b"
    (workspace.root / "registry" / "champion.json").unlink()
    with pytest.raises(StateError, match="nothing was promoted yet"):
        workspace.score(out=workspace.root / "other")


def test_killed_in_a_part_the_same_command_goes_on_to_the_same_rows(workspace):
    workspace.score(out=workspace.root / "whole")
    program = f"""
import os, signal
from pathlib import Path
from components import scoring
write, number = scoring.pq.write_table, 0
def write_half(table, path, **options):
    global number
    number += 1
    if number == 3:
        Path(path).write_bytes(b"PAR1 half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, path, **options)
scoring.pq.write_table = write_half
root = Path({str(workspace.root)!r})
folders = {{name: root / name for name in ("data", "artifacts", "registry")}}
scoring.score(**folders, k=5, out=root / "scores", at={AT}, users_a_part=4)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(workspace.rows()) == 8
    assert read_json(workspace.root / "scores" / "manifest.json")["finished"] is False
    workspace.score()
    assert workspace.rows() == workspace.rows("whole")
    assert sorted(file.name for file in (workspace.root / "scores").iterdir())[0] == "manifest.json"  # no leftover


def test_the_flow_runs_the_command_and_publishes_its_manifest(monkeypatch):
    seen = []
    monkeypatch.setattr(flows.scoring, "run_command", lambda command, **_: seen.append(command[2:]))
    monkeypatch.setattr(flows.scoring, "publish_scores", seen.append)
    monkeypatch.setattr(flows.scoring, "get_run_logger", lambda: SimpleNamespace(info=print))
    monkeypatch.setattr(flows.scoring, "score", flows.scoring.score.fn)
    with disable_run_logger():
        flows.scoring.scoring_flow.fn(k=3, out="there")
    assert seen == [["components", "score", "--k", "3", "--out", "there", "--replace"], Path("there/manifest.json")]
