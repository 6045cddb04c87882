"""The nightly cycle replayed over history: who would have been champion when, and what was it worth to the days after?

    python -m components backtest --from 2000-08-01 --to 2001-01-01 --every 14

Each night sees the log up to its midnight: sequences, training, the challenge of the champion so far (the rule of
`promote`, without what needs a Bento; the gate on validation is left out, the baselines count in the challenge). Then
the days until the next night are scored, which no model has seen: the deployed champion, the first one kept for good,
the newest challenger, recent popularity. In components/backtesting/: nights (what is kept, resuming), past, future,
story (table and sentences), plot, page.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.backtesting.future import open_future, score_future
from components.backtesting.nights import (
    Night,
    Plan,
    find_champions,
    find_folder,
    read_nights,
    seconds,
    write_night,
)
from components.backtesting.page import write_page
from components.backtesting.past import choose_users, cut_log
from components.backtesting.story import describe, print_story
from components.baselines.popularity import PopularityScorer, fit_popularity
from components.catalogue import Catalogue, load_catalogue
from components.challenging.contest import meet
from components.challenging.rule import apply_rule, decide, explain
from components.checkpoint import read_facts
from components.comparison.contenders import Contender
from components.console import log
from components.dataset import load_sequences
from components.event_log import Log, read_log
from components.files import hash_files, reading, write_json
from components.fitting.start import find_obstacle
from components.interactions import list_months
from components.ranking.conditions import average
from components.ranking.judging import Cell, judge_part
from components.settings import Settings, TrainSettings

PROTOCOL = "time_split"  # leave_one_out has no future

Build = Callable[..., None]  # components.sequences.build_sequences
Train = Callable[..., None]  # components.training.train


@dataclass(frozen=True)
class Replay:
    """All that the nights of one backtest have in common. Steps do not import steps, so two of them are handed in."""

    settings: Settings
    plan: Plan
    build: Build
    train: Train
    folder: Path
    events: Log  # all that ever happened
    data: Path  # the same on disk

    def night(self, date: dt.date, nights: Sequence[Night]) -> Night:
        """Do one night and score the days after it; `nights` are those before."""
        here = self.folder / str(date)
        contender, champions = Contender(str(date), here / "checkpoint"), find_champions(nights)
        rival = Contender(champions[-1], self.folder / champions[-1] / "checkpoint") if champions else None
        cell, catalogue = self._train(here, contender, rival)
        contest = meet(cell, contender, rival, catalogue, min_users=self.settings.promote.min_users)
        checks = apply_rule({"contest": contest}, self.settings.promote)
        night: Night = {
            "date": str(date),
            "until": str(self.plan.until(date)),
            "contest": contest,
            "checks": [check.describe() for check in checks],
            "verdict": decide(checks),
            "reasons": explain(checks),
        }
        night["models"] = _find_roles([*nights, night])
        night["future"] = self._look_ahead(date, night["models"], cell)
        write_night(self.folder, night)
        shutil.rmtree(here / "sequences")
        return night

    def _train(self, here: Path, contender: Contender, champion: Contender | None) -> tuple[Cell, Catalogue]:
        """Train on what `here`'s midnight knows; return what its challenge is held on.

        Whatever model `warm_start` names today, a night starts from the champion of then, and from scratch where that
        cannot be: components/warm_start.py decides so for a real night.
        """
        settings, model, past = self.settings, self.settings.package.model, here / "past"
        cut_log(self.data, seconds(dt.date.fromisoformat(here.name)), past)
        built = {"data": past / "data", "quarantine": past / "quarantine.parquet", "out": here / "sequences"}
        self.build(settings.sequences, [PROTOCOL], **built)
        shutil.rmtree(past)
        sequences, runs = here / "sequences" / PROTOCOL, self.folder / "runs"
        places = {"sequences": sequences, "checkpoint": contender.folder, "runs": runs}
        cell = Cell(settings.evaluate, model, PROTOCOL, load_sequences(sequences))
        train, start = settings.train[model], None
        if train.warm_start is not None:
            start = _find_start(champion, model, train, cell.sequences.split)
            train = train.model_copy(update={"warm_start": start and start.name})
        self.train(train, model, PROTOCOL, **places, start=start and start.folder)
        return cell, load_catalogue(sequences, key_type=cell.sequences.split["key_type"])

    def _look_ahead(self, date: dt.date, roles: Mapping[str, str], cell: Cell) -> dict[str, Any] | None:
        """Score the days until the next night."""
        start, stop = seconds(date), seconds(self.plan.until(date))
        future, known = open_future(self.events, self.data / "data", cell.sequences.split, start, stop)
        models = {role: self.folder / when / "checkpoint" for role, when in roles.items()}
        return score_future(self.settings.evaluate, future, known, models, choose_days(cell))


def backtest(
    settings: Settings, plan: Plan, *, build: Build, train: Train, data: Path, artifacts: Path, reports: Path
) -> dict[str, Any]:
    """Replay every night of `plan` that is not finished yet; write and return reports/backtest.json, draw the plot.

    Raises:
        InputError: the log begins after the first night.
        StateError: there is no log, or too little of it before the first night, or no quarantine.
    """
    quarantine = artifacts / "quarantine.parquet"
    list_months(data)  # or there is no log, which is to be said
    with reading(quarantine, todo="Run `dvc repro validate`"):
        facts = _facts(settings, [data, quarantine])
    folder = find_folder(artifacts / "backtest", plan, **facts)
    whole = folder / "log"
    if not (whole / "quarantine.parquet").exists():
        choose_users(data, quarantine, plan.every_user, whole)
    events = read_log(whole / "data", whole / "quarantine.parquet")
    replay = Replay(settings, plan, build, train, folder, events, whole)
    story = describe(settings, plan, _go_on(replay))
    write_json(reports / "backtest.json", story)
    write_page(story, reports)
    print_story(story, reports)
    return story


def _go_on(replay: Replay) -> list[Night]:
    """Replay the nights that are left; return all of them."""
    dates, nights = replay.plan.dates, read_nights(replay.folder, replay.plan.dates)
    finished, started = len(nights), time.monotonic()
    log.info("backtest: %d nights, %d of them finished before, in %s", len(dates), finished, replay.folder)
    for date in dates[finished:]:
        nights.append(replay.night(date, nights))
        left = (time.monotonic() - started) / (len(nights) - finished) * (len(dates) - len(nights))
        log.info("%s: %s  %d of %d nights  ETA %.0f s", date, nights[-1]["verdict"], len(nights), len(dates), left)
    return nights


def _find_start(
    champion: Contender | None, model: str, settings: TrainSettings, split: Mapping[str, Any]
) -> Contender | None:
    """Return the champion where this night's training may begin at it."""
    if champion is None or champion.folder is None:
        return None
    obstacle = find_obstacle(read_facts(champion.folder), model, settings, split)
    if obstacle:
        log.info("from scratch, not from the champion: %s", obstacle)
    return None if obstacle else champion


def choose_days(cell: Cell) -> int:
    """Return the window of recent popularity that is best on the night's validation part, as `evaluate` chooses it."""
    windows = {
        str(days): PopularityScorer(fit_popularity(cell.sequences, "valid", days=days))
        for days in cell.settings.recent_days
    }
    judged = judge_part(cell, "valid", windows)
    values = average(judged.targets, judged.filtered).values
    return max(cell.settings.recent_days, key=lambda days: float(values[str(days)][:, cell.headline].mean()))


def _find_roles(nights: Sequence[Night]) -> dict[str, str]:
    """Return role -> the night that trained the model in it; without a champion so far only the newest has one."""
    champions = find_champions(nights)
    roles = {"deployed": champions[-1], "frozen": champions[0]} if champions else {}
    return roles | {"newest": nights[-1]["date"]}


def _facts(settings: Settings, log_files: Sequence[Path]) -> dict[str, Any]:
    """Return what besides the plan decides the numbers."""
    model = settings.package.model
    sections = {
        "sequences": settings.sequences,
        "train": settings.train[model],
        "evaluate": settings.evaluate,
        "promote": settings.promote,
    }
    decided = {name: section.model_dump(mode="json") for name, section in sections.items()}
    decided["train"]["warm_start"] = settings.train[model].warm_start is not None
    return {"model": model, "log": hash_files(log_files)} | decided
