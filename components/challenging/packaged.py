"""The packaged model, read back: does it say what was evaluated, how long does an answer take, how large is it?

Scores come by the service's own way to an answer (components/recommender.py), one history at a time, and are held
against the evaluator's of the checkpoint that was judged. Times are of this machine in this minute, a budget for what
is far off.
Shapes: T targets, X items.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.checkpoint import load_model
from components.dataset import Sequences
from components.errors import StateError
from components.item_table import BITS, with_quantized_table
from components.ranking.blocks import ModelScorer, Scorer
from components.ranking.targets import Targets, choose_evenly, find_targets
from components.recommender import Recommender

NUM_COMPARED = 64  # targets; a score that differs does so for nearly every history
NUM_EVENTS, NUM_ANSWERS, NUM_WARMUPS = 200, 30, 3
HOUR = 3_600


def measure_package(
    folder: Path, export: Path, checkpoint: Path, item_table: str, sequences: Sequences
) -> dict[str, Any]:
    """Measure the packaged model in `folder`, whose evaluated checkpoint is `checkpoint`, on validation's histories.

    Validation, so that the test window is left alone.

    Raises:
        StateError: either is damaged.
    """
    recommender = Recommender.load(folder)
    torch.set_num_threads(int(recommender.facts["settings"].get("num_threads", 1)))
    targets = find_targets(sequences, "valid")
    targets = targets.take(targets.items >= 0)
    targets = targets.take(choose_evenly(targets, NUM_COMPARED))
    return {
        "latency_ms": round(measure_latency(recommender), 3),
        "megabytes": round(export.stat().st_size / 1e6, 3),
        "score_difference": find_score_difference(recommender, _load_scorer(checkpoint, item_table), targets),
        "num_compared": len(targets),
    }


def measure_latency(recommender: Recommender) -> float:
    """Return the median time of one answer to a history of 200 events, in milliseconds."""
    items = recommender.catalogue.item_ids
    history = [(items[number % len(items)], number * HOUR) for number in range(NUM_EVENTS)]
    times = []
    for _ in range(NUM_WARMUPS + NUM_ANSWERS):
        start = time.perf_counter()
        recommender.recommend(history, k=10, request_time=NUM_EVENTS * HOUR, exclude_seen=False)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[NUM_WARMUPS:])


def find_score_difference(recommender: Recommender, scorer: Scorer, targets: Targets) -> float:
    """Return the largest difference of any item's score for any of the targets, served and evaluated.

    Raises:
        StateError: a score is no number.
    """
    evaluated_TX, differences = scorer(targets).numpy(), []
    bounds = zip(targets.firsts, targets.positions, targets.request_times, strict=True)
    for evaluated_X, (first, stop, when) in zip(evaluated_TX, bounds, strict=True):
        rows, times = targets.known_items[first:stop], targets.known_timestamps[first:stop]
        served_X = recommender.scores(rows, times, int(when))
        differences.append(np.abs(served_X - evaluated_X).max())
    largest = float(np.max(differences))  # of NaN and a number NaN, unlike Python's max
    if not math.isfinite(largest):
        raise StateError(
            "scores of the packaged model are not finite", observed=largest, todo="Train again: `dvc repro`"
        )
    return largest


def _load_scorer(checkpoint: Path, item_table: str) -> ModelScorer:
    """Return the evaluator's scorer of a checkpoint, its item table in as many bits as the packaged one."""
    model, facts = load_model(checkpoint)
    if item_table in BITS:
        model = with_quantized_table(model, BITS[item_table])
    return ModelScorer(model, int(facts["settings"]["max_len"]))
