"""A contender that is allowed to compete: its scorer for these sequences, and what has to be said of it.

Shapes: T targets, X items of the sequences' catalogue, K events with known items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.catalogue import Catalogue, load_catalogue
from components.checkpoint import load_model
from components.comparison.answer import Model
from components.comparison.fairness import require_unseen
from components.comparison.translation import TranslatingScorer
from components.dataset import Sequences
from components.ranking.blocks import ModelScorer, Scorer
from components.ranking.targets import Targets
from components.recommender import Recommender


@dataclass(frozen=True)
class Entrant:
    """One model, ready to be ranked."""

    name: str
    scorer: Scorer
    knows_X: np.ndarray  # bool: an item that it does not know is a miss
    facts: Mapping[str, Any] = field(default_factory=dict)  # checkpoint.json; empty for a baseline
    notes: tuple[str, ...] = ()

    def misses(self, targets: Targets) -> np.ndarray:
        """Return (T,) bool: the target is an item of the catalogue, but none that this model knows."""
        unknown: np.ndarray = (targets.items >= 0) & ~self.knows_X[targets.items]
        return unknown

    def describe(self, targets: Targets) -> Model:
        """Return what is to be said of it beside its numbers on `targets`."""
        split, is_refit = self.facts.get("split", {}), bool(self.facts.get("refit_epochs"))
        return Model(
            name=self.name,
            model=self.facts.get("model", self.name),
            settings=self.facts.get("settings", {}),
            data_hash=split.get("data_hash"),
            train_end=split.get("valid_end" if is_refit else "train_end"),
            unknown_share=float(self.misses(targets).sum() / max(len(targets), 1)),
            notes=self.notes,
            is_refit=is_refit,
        )


def load_entrant(name: str, folder: Path, sequences: Sequences, here: Catalogue) -> Entrant:
    """Load the checkpoint in `folder` to be judged on `sequences`, whose catalogue is `here`.

    Raises:
        InputError: it has seen events that are held out here.
        StateError: it is damaged, or is no checkpoint.
    """
    model, facts = load_model(folder)
    require_unseen(name, facts["split"], sequences.split)
    torch.set_num_threads(facts["settings"].get("num_threads", 1))
    scorer = ModelScorer(model, int(facts["settings"]["max_len"]))
    own = load_catalogue(folder, key_type=facts["split"]["key_type"])
    if own.rows == here.rows:
        return Entrant(name, scorer, np.ones(len(here.item_ids), dtype=bool), facts)
    own_rows_X = own.find_all(here.item_ids)
    popular = Recommender(model, facts, own).recommend([], len(own.item_ids)).items
    translating = TranslatingScorer(
        scorer,
        own_rows_X=own_rows_X,
        known_items_K=sequences.items[sequences.items >= 0],
        popular_Y=[own.find(item.item_id) for item in popular],
    )
    return Entrant(name, translating, own_rows_X >= 0, facts, _describe_mapping(own, here, own_rows_X))


def _describe_mapping(own: Catalogue, here: Catalogue, own_rows_X: np.ndarray) -> tuple[str, ...]:
    """Say that catalogues differ, and be loud where equal ids seem to name different things."""
    shared = np.flatnonzero(own_rows_X >= 0).tolist()
    notes = [f"judged through item ids: its own catalogue has {len(shared):,} of the {len(own_rows_X):,} items here"]
    same = sum(own.titles[own_rows_X[row]] == here.titles[row] for row in shared)
    if same < len(shared) / 2:
        notes.append(f"warning: only {same:,} of these have the same title; do the ids mean the same items?")
    return tuple(notes)
