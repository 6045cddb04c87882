"""Fourteen nights of a real log through the real pipeline, with what goes wrong in a year among them.

    python -m benchmarks.replay_nights --path ml-1m.zip --folder /tmp/nights        # about an hour on two cores
    python -m benchmarks.replay_nights --path ml-1m.zip --folder /tmp/warm --nights 4 --warm-start --results warm.csv

A clone of this repository gets the log up to the first night, then a file for each week after it (`mode: append`), and
every night runs `python -m flows`, as the schedule does. Among them: a night whose file is 60% rubbish (it must stop,
the champion untouched) and the corrected file the next night; a night that is killed by `kill -9` in the middle of its
training (the same command must finish it); a night with a spoilt recipe (its model must be kept out). The end is
checked: the champion is the last model that was promoted, `dvc status` is clean, and every night but the bad one has
its decision. With `--warm-start` every night after the first trains on from the champion, WARM over the recipe: for the
nights before the incidents, since a spoilt recipe then spoils little. Killed itself, the same command goes on with the
next night. Rows are added to benchmarks/results/nights.csv; docs/nights.svg is drawn of them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import torch
from ruamel.yaml import YAML

from benchmarks import recording
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.decisions import read_decisions
from components.files import read_json, write_json
from components.ingestion import ingest
from components.interactions import read_interactions, read_items
from components.settings import IngestSettings

ROOT = Path(__file__).parent.parent
STATE = ("data.dvc", "dvc.lock", "registry")  # a new repository starts without
BAD, CORRECTED, CRASHED, WORSE = "bad data", "corrected file", "killed in training", "spoilt recipe"
INCIDENTS = {5: BAD, 6: CORRECTED, 8: CRASHED, 11: WORSE}
DAY = 86_400
FIGURES = ("value", "low", "high")
ROLES = ("challenger", "champion", "popularity_recent")
COLUMNS = (
    "night",
    "date",
    "incident",
    "outcome",
    "decision",
    "champion_tag",
    "challenger_value",
    "champion_value",
    "minutes",
)
# Small enough that a night takes minutes; what is shown is the pipeline, not the model.
RECIPE: dict[str, Any] = {
    "models": ["hstu"],
    "ingest": {
        "source": "table",
        "mode": "append",
        "path": "inbox/*.csv",
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "time", "rating": "rating"},
        "items": "items.csv",
    },
    # A quarter of the users: batches of 16 are too few steps, and item-item co-occurrence stays ahead.
    "train": {
        "hstu": {
            "num_blocks": 2,
            "batch_size": 8,
            "dropout": 0.2,
            "weight_decay": 0.0,
            "epochs": 16,
            "patience": 3,
            "refit": False,
        }
    },
    "promote": {"max_loss": 0.01},
}
# What a night from the champion's weights on needs: a third of the epochs.
WARM: dict[str, Any] = {"train": {"hstu": {"epochs": 5}}}
SPOILT: dict[str, Any] = {"train": {"hstu": {"epochs": 1, "learning_rate": 1e-5}}}


@dataclass(frozen=True)
class Night:
    """A night: its number from 1, the day on which it runs, and what is to go wrong."""

    number: int
    date: dt.date
    incident: str = ""


def plan_nights(first: dt.date, count: int, every: int) -> list[Night]:
    """Return the nights, `every` days apart.

    >>> [str(night.date) for night in plan_nights(dt.date(2000, 9, 4), 2, 7)]
    ['2000-09-04', '2000-09-11']
    """
    days = dt.timedelta(days=every)
    return [Night(n, first + (n - 1) * days, INCIDENTS.get(n, "")) for n in range(1, count + 1)]


def read_log(path: Path, folder: Path, every_user: int) -> tuple[pa.Table, pa.Table]:
    """Return the events of every n-th user of a GroupLens archive, in time order, and its items."""
    ingest(IngestSettings.model_validate({"source": "grouplens", "path": str(path)}), {}, data=folder / "whole")
    events, items = read_interactions(folder / "whole"), read_items(folder / "whole")
    events = events.filter(pa.array(events["user_id"].to_numpy() % every_user == 0))
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": "rating"}
    return pa.table({new: events[old] for new, old in columns.items()}), items.select(["item_id", "title", "genres"])


def arrive(events: pa.Table, nights: Sequence[Night], night: Night, inbox: Path) -> None:
    """Write what arrives for a night: all events since the night before, the first time the whole history.

    Last night's file comes again where it was bad: under its own name, corrected.
    """
    inbox.mkdir(exist_ok=True)
    before = nights[night.number - 2] if night.number > 1 else None
    if night.incident == CORRECTED and before is not None:
        arrive(events, nights, Night(before.number, before.date), inbox)
    start, end = (-(2**60) if before is None else _seconds(before.date)), _seconds(night.date)
    new = events.filter(pc.and_(pc.greater_equal(events["time"], start), pc.less(events["time"], end)))
    csv.write_csv(spoil(new) if night.incident == BAD else new, inbox / f"{night.date}.csv")


def spoil(events: pa.Table, share: float = 0.6) -> pa.Table:
    """Return the events with ratings out of range in `share` of the rows."""
    is_bad = np.random.default_rng(0).random(events.num_rows) < share
    ratings = np.where(is_bad, 99.0, events["rating"].to_numpy())
    return events.set_column(events.column_names.index("rating"), "rating", pa.array(ratings, pa.float32()))


def _seconds(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days * DAY


class Workplace:
    """A clone of this repository with a BentoML store of its own, and what a night does there."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.root, self.home, self.options = folder / "repository", folder / "bentoml", options

    def set_up(self, items: pa.Table) -> None:
        """Clone, start without state, take the recipe; nothing happens where that was done."""
        if (self.root / ".ready").exists():
            return
        shutil.rmtree(self.root, ignore_errors=True)
        self._run("git", "clone", "--quiet", str(ROOT), str(self.root), cwd=ROOT)
        self._run("git", "rm", "-r", "--quiet", "--ignore-unmatch", *STATE)
        csv.write_csv(items, self.root / "items.csv")
        self.use(RECIPE)
        self.commit("The replay's recipe")
        (self.root / ".ready").touch()

    def use(self, recipe: dict[str, Any]) -> None:
        """Write a recipe's keys into params.yaml, by the command that a person would use."""
        with (self.root / ".recipe.yaml").open("w") as file:
            YAML().dump(recipe, file)
        self._run(sys.executable, "-m", "components", "use", ".recipe.yaml")

    def forget_recipe(self) -> None:
        """Take params.yaml as it was committed; RECIPE alone would leave what only SPOILT has."""
        self._run("git", "checkout", "--quiet", "params.yaml")

    def run_night(self, night: Night) -> str:
        """Run the flow; return its outcome. A night that is to be killed is killed, then run once more."""
        output = self.root.parent / f"night-{night.number:02}.log"
        if night.incident == CRASHED:
            self._kill_in_training(output)
        status = self._start_flow(output).wait()
        again = "killed, then " if night.incident == CRASHED else ""
        return again + ("finished" if status == 0 else "stopped")

    def _kill_in_training(self, output: Path) -> None:
        """Start the flow and kill it, without a warning, when the training has finished an epoch."""
        output.unlink(missing_ok=True)
        flow = self._start_flow(output)
        while flow.poll() is None and "epoch   2/" not in output.read_text():
            time.sleep(0.2)
        flow.send_signal(signal.SIGKILL)
        flow.wait()

    def _start_flow(self, output: Path) -> subprocess.Popen[bytes]:
        """Start what the schedule runs; its lines are added to `output`."""
        command = [sys.executable, "-m", "flows", *self.options]
        with output.open("a") as file:
            return subprocess.Popen(command, cwd=self.root, env=self._environment(), stdout=file, stderr=file)

    def commit(self, message: str) -> None:
        """Commit what a night leaves to git, as its operator would."""
        who = ["-c", "user.name=replay", "-c", "user.email=replay@localhost"]
        self._run("git", "add", "--all", "data.dvc", "dvc.lock", "registry", "params.yaml", check=False)
        self._run("git", *who, "commit", "--quiet", "--allow-empty", "--all", "-m", message)

    def read_decisions(self) -> list[dict[str, Any]]:
        """Return what was decided of the model that is packaged, whichever run of the night decided it."""
        tag = read_json(self.root / "artifacts" / "package.json")["tag"]
        return [one for one in read_decisions(self.root / "registry") if one["tag"] == tag]

    def status(self) -> str:
        """Return what `dvc status` says."""
        return self._run("dvc", "status").strip()

    def latest(self) -> str:
        """Return the version that hstuflow:latest names in the store."""
        return (self.home / "bentos" / "hstuflow" / "latest").read_text().strip()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HSTUFLOW_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return kept | {"BENTOML_HOME": str(self.home), "PATH": path, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}

    def _run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        where = cwd or self.root
        done = subprocess.run(command, cwd=where, env=self._environment(), capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout


def replay(night: Night, nights: Sequence[Night], events: pa.Table, place: Workplace) -> Row:
    """Let a night happen; return its row."""
    if place.options and night.number == 2:
        place.use(WARM)
    registry, started = place.root / "registry", time.monotonic()
    arrive(events, nights, night, place.root / "inbox")
    if night.incident == WORSE:
        place.use(SPOILT)
    outcome = place.run_night(night)
    if night.incident == WORSE:
        place.forget_recipe()
    decisions = [] if outcome.endswith("stopped") else place.read_decisions()
    place.commit(f"Night of {night.date}: {'; '.join(one['what'] for one in decisions) or outcome}")
    pointer = registry / "champion.json"
    return {
        "night": night.number,
        "date": str(night.date),
        "incident": night.incident,
        "outcome": outcome,
        "decision": decisions[-1]["what"] if decisions else "none",
        "tag": decisions[-1]["tag"] if decisions else "",
        "champion_tag": read_json(pointer)["tag"] if pointer.exists() else "",
        **_measured(place.root / "reports" / "challenge.json" if decisions else None),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def _measured(challenge: Path | None) -> Row:
    """Return what all were worth on the events that neither has seen; empty where nothing was decided."""
    found = None if challenge is None else read_json(challenge)["contest"]  # null where the gate refused already
    contest = found or {"values": {}, "paired": None, "window": {}}
    values = {role: contest["values"].get(role, {}) for role in ROLES}
    row = {f"{role}_{key}": values[role].get(key, "") for role in ROLES for key in FIGURES}
    paired = contest["paired"] or {}
    row |= {"difference": paired.get("difference", ""), "difference_low": paired.get("low", "")}
    row |= {"difference_high": paired.get("high", "")}
    return row | {"users": contest["window"].get("users", "")}


def check(rows: Sequence[Row], place: Workplace) -> list[str]:
    """Return what is not as it must be after the last night; nothing where all is well."""
    decisions = read_decisions(place.root / "registry")
    champion = read_json(place.root / "registry" / "champion.json")["tag"]
    promoted = [one["tag"] for one in decisions if one["what"] == "promoted"]
    decided = {row["night"]: row["decision"] for row in rows}
    bad = {number for number, incident in INCIDENTS.items() if incident == BAD}
    claims = {
        "the champion is the model promoted last": champion == promoted[-1],
        "hstuflow:latest is the champion": f"hstuflow:{place.latest()}" == champion,
        "dvc status is clean": place.status() == "Data and pipelines are up to date.",
        "the bad night stopped without a decision": all(decided.get(number, "none") == "none" for number in bad),
        "every other night has its decision": all(decided[n] != "none" for n in decided if n not in bad),
        "the spoilt model was refused": all(row["decision"] == "refused" for row in rows if row["incident"] == WORSE),
        "the killed night finished": all(
            row["outcome"] == "killed, then finished" for row in rows if row["incident"] == CRASHED
        ),
    }
    for claim in (claim for claim, holds in claims.items() if holds):
        log.info("holds: %s", claim)
    return [claim for claim, holds in claims.items() if not holds]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--path", type=Path, required=True, help="a GroupLens archive: ml-1m.zip")
    parser.add_argument("--folder", type=Path, required=True, help="where the clone and its store are made")
    parser.add_argument("--every-user", type=int, default=4, help="of the log's users, to be done in an hour")
    parser.add_argument("--first", type=dt.date.fromisoformat, default=dt.date(2000, 9, 4))
    parser.add_argument("--nights", type=int, default=14)
    parser.add_argument("--every", type=int, default=7, help="days between nights")
    parser.add_argument("--warm-start", action="store_const", const=["--warm-start"], default=[])
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "nights.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay what has not been replayed yet, then check the end."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.folder = args.folder.absolute()
    nights, place = plan_nights(args.first, args.nights, args.every), Workplace(args.folder, args.warm_start)
    events, items = read_log(args.path, args.folder, args.every_user)
    place.set_up(items)
    kept = args.folder / "rows.json"
    rows: list[Row] = read_json(kept) if kept.exists() else []
    for night in nights[len(rows) :]:
        log.info("night %d of %d: %s %s", night.number, len(nights), night.date, night.incident)
        rows.append(replay(night, nights, events, place))
        write_json(kept, rows)
        log.info("%s, %s, champion %s", rows[-1]["outcome"], rows[-1]["decision"], rows[-1]["champion_tag"])
    facts = recording.describe_run("benchmarks.replay_nights", arguments, torch.device("cpu"), 1)
    recording.append_rows(args.results, [facts | row for row in rows])
    return recording.close(args.results, rows, COLUMNS, dict.fromkeys(check(rows, place), "does not hold"))


if __name__ == "__main__":
    sys.exit(main())
