"""A log whose order can be learnt, taken through sequences, training and evaluation: what the canaries look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_evaluations import evaluate_settings
from made_logs import DAY, Event, build, train_settings, write_log

from components.baselines import choose_baselines, fit_baselines
from components.dataset import Sequences, load_sequences
from components.evaluation import evaluate
from components.fitting.loop import Trainer
from components.model import SequenceModel, build_model
from components.ranking.blocks import ModelScorer, Scorer
from components.training import train

PROTOCOLS = ("time_split", "leave_one_out")
MODELS = ("hstu", "sasrec")
NUM_ITEMS = 60
LEARNING = {"dim": 16, "head_dim_qk": 16, "head_dim_v": 16, "dropout": 0.0, "learning_rate": 0.02, "patience": 99}


def canary_log(num_users: int = 40, num_events: int = 14, seed: int = 0) -> list[Event]:
    """Users who step from item i to i + 1, now and then to i + 2: the order of events predicts what comes next.

    Every fourth event shares its time with the one before. Train knows all items, 1 to NUM_ITEMS.
    """
    random = np.random.default_rng(seed)
    events = [(900 + item, item, item) for item in range(1, NUM_ITEMS + 1)]  # one event each, on the first day
    for user in range(num_users):
        steps = (random.random(num_events) < 0.2).cumsum() + np.arange(num_events) + random.integers(NUM_ITEMS)
        gaps = random.integers(1, 3, num_events) * (np.arange(num_events) % 4 != 3)
        days = gaps.cumsum() + random.integers(1, 20)
        events += [(user, int(step % NUM_ITEMS) + 1, int(day) * DAY) for step, day in zip(steps, days, strict=True)]
    return events


@dataclass(frozen=True)
class Cell:
    """One model on one protocol, in a folder of its own."""

    root: Path
    model: str
    protocol: str

    @property
    def sequences_folder(self) -> Path:
        return self.root / "artifacts" / "sequences" / self.protocol

    @property
    def checkpoint(self) -> Path:
        return self.root / "artifacts" / "checkpoints" / self.protocol / self.model

    @property
    def results(self) -> Path:
        return self.root / "artifacts" / "evaluation" / self.protocol / self.model

    @property
    def sequences(self) -> Sequences:
        return load_sequences(self.sequences_folder)

    def read(self, name: str) -> Any:
        """Read a JSON file of the evaluation."""
        return json.loads((self.results / f"{name}.json").read_text())

    def values(self, condition: str) -> dict[str, dict[str, float]]:
        """Return model -> metric -> value."""
        models = self.read("metrics")[condition]
        return {model: {name: found["value"] for name, found in metrics.items()} for model, metrics in models.items()}


def split_log(root: Path, events: Sequence[Event], protocol: str, model: str = "hstu") -> Cell:
    """Run the sequences step."""
    build(write_log(root, events), protocol)
    return Cell(root, model, protocol)


def train_cell(cell: Cell, **changes: Any) -> None:
    """Run the training step."""
    train(
        train_settings(**(LEARNING | changes)),
        cell.model,
        cell.protocol,
        sequences=cell.sequences_folder,
        checkpoint=cell.checkpoint,
        runs=cell.root / "artifacts" / "runs",
    )


def evaluate_cell(cell: Cell, **changes: Any) -> None:
    """Run the evaluation step."""
    evaluate(
        evaluate_settings(**changes),
        cell.model,
        cell.protocol,
        sequences=cell.sequences_folder,
        checkpoint=cell.checkpoint,
        out=cell.results,
    )


def run_cell(root: Path, events: Sequence[Event], protocol: str, model: str = "hstu", **changes: Any) -> Cell:
    """Run all three; `changes` are of the training."""
    cell = split_log(root, events, protocol, model)
    train_cell(cell, **changes)
    evaluate_cell(cell)
    return cell


def fit_model(sequences: Sequences, name: str = "hstu", **changes: Any) -> SequenceModel:
    """Train in memory; return the model as the last epoch leaves it."""
    trainer = Trainer(train_settings(**(LEARNING | changes)), name, sequences, torch.device("cpu"))
    trainer.fit(None, lambda state: None)
    return trainer.model.eval()


def loud_model(sequences: Sequences, name: str, max_len: int) -> SequenceModel:
    """An untrained model with weights large enough for order and time to move its scores."""
    torch.manual_seed(3)
    model = build_model(name, train_settings(max_len=max_len), sequences.num_items).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 10
    return model


def all_scorers(sequences: Sequences, part: str, max_len: int = 8) -> dict[str, Scorer]:
    """Every scorer that an evaluation ranks: both models, and the baselines fitted for `part`."""
    chosen = choose_baselines(sequences, lambda scorers: dict.fromkeys(scorers, 0.0), [10])
    models = {name: ModelScorer(loud_model(sequences, name, max_len), max_len) for name in MODELS}
    return models | fit_baselines(sequences, part, chosen)
