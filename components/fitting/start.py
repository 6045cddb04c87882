"""A warm start: the weights of an earlier model, row by row for the items that both know, where training begins.

    start = read_start(find_tagged("hstuflow:8d9ebf9213d6d8eb"))
    refuse(start, "hstu", settings, sequences)
    start.put_into(trainer.model, keys)

Only a model that was trained on nothing of today's validation and test part may be one, or validation would choose the
epoch by events that the weights know; and none that saw somebody who has been forgotten since.
Shapes: X items of today's catalogue, Y of the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.checkpoint import SHAPE, load_model, settings_of
from components.errors import StateError
from components.files import reading
from components.fitting.runs import Weights
from components.model.quantized import ITEM_TABLE

if TYPE_CHECKING:
    from components.settings import TrainSettings


@dataclass(frozen=True)
class Start:
    """Weights, the keys of the items in their item table's rows (Y), and checkpoint.json of the earlier model."""

    name: str
    weights: Weights
    keys: list[str]
    facts: Mapping[str, Any]

    def put_into(self, model: torch.nn.Module, keys: list[str]) -> int:
        """Copy the weights into a fresh model of today's catalogue `keys` (X); return how many items it knew.

        An item that is new keeps its fresh row; one that is gone is left out.
        """
        old_rows = {key: row for row, key in enumerate(self.keys)}
        known = [(row, old_rows[key]) for row, key in enumerate(keys) if key in old_rows]
        fresh = model.state_dict()
        table = fresh[ITEM_TABLE].clone()
        rows, earlier = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).T
        table[rows] = self.weights[ITEM_TABLE][earlier].to(table)
        model.load_state_dict({name: self.weights[name] for name in fresh} | {ITEM_TABLE: table})
        return len(known)


def read_start(folder: Path) -> Start:
    """Read a stored model, given its folder <store>/models/<name>/<version>.

    Raises:
        StateError: it is damaged, or of another version.
    """
    model, facts = load_model(folder)
    return Start(folder.name, model.state_dict(), read_keys(folder), facts)


def read_keys(folder: Path) -> list[str]:
    """Return the keys of the items in the rows of catalogue.parquet."""
    import pyarrow.parquet as pq  # not on the bare GPU machine

    with reading(folder / "catalogue.parquet", todo="Run `dvc repro`"):
        keys: list[str] = pq.read_table(folder / "catalogue.parquet", columns=["key"])["key"].to_pylist()
    return keys


def find_obstacle(
    facts: Mapping[str, Any], model: str, settings: TrainSettings, split: Mapping[str, Any]
) -> str | None:
    """Say why training on the sequences of `split` must not begin at the model of this checkpoint.json; None: it may.

    `split` is split.json of the time split. T1 may move back as well: late events and larger fractions do that.
    """
    then, was = facts["split"], settings_of(facts)
    if facts["model"] != model:
        return f"it is a model {facts['model']}"
    if then.get("protocol") != "time_split":
        return f"it was trained on {then.get('protocol')}: no time says what it saw"
    if facts.get("refit_epochs"):
        return "it was refitted on its validation part, of which today's may have events"
    if then["train_end"] > split["train_end"]:
        return "it was trained on events of today's validation or test part"
    forgotten = split.get("forgotten", 0)
    if then.get("forgotten", 0) < forgotten:
        return f"it was trained before {forgotten - then.get('forgotten', 0)} of the {forgotten} forgotten people were"
    changed = [f"{key} {was[key]}" for key in SHAPE if was[key] != getattr(settings, key)]
    return f"it has {', '.join(changed)}" if changed else None


def refuse(start: Start, model: str, settings: TrainSettings, split: Mapping[str, Any]) -> None:
    """Raise StateError where `find_obstacle` finds one."""
    why = find_obstacle(start.facts, model, settings, split)
    if why is not None:
        raise StateError(
            f"training cannot start from {start.name}: {why}",
            where=f"train.{model}.warm_start",
            todo=f"Set train.{model}.warm_start to null in params.yaml, or to the tag of another model",
        )
