"""How long RecTools takes to recommend to one user, run by RecTools' own interpreter: prints JSON.

    RECTOOLS/bin/python benchmarks/rectools_one_user.py --model hstu --items 3706 --events 200 --calls 30

Needs `rectools[torch]` and nothing of this repository, which does not depend on it. HSTU or SASRec of 2 blocks and
width 50, one epoch on made histories, which holds every item: quality is of no consequence, time is. A call is
`recommend(users=[one], dataset, k, filter_viewed=True)`, warm, one thread, its dataset built beforehand: of that user
alone, which is the least that it can be given, and of a log of ML-1M's size, which it looks through at every call.
The times are CPU times of this process, which other work on the machine lengthens less than the clock's.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.hstu import HSTUModel

FIT_USERS, LOG_USERS = 64, 6_040
MODELS = {"hstu": HSTUModel, "sasrec": SASRecModel}


def made_log(users: int, events: int, items: int) -> pd.DataFrame:
    """Return histories of `events` each that go through all items, in an order of chance, again and again."""
    order = np.random.default_rng(0).permutation(items)
    numbers = np.arange(users * events)
    return pd.DataFrame(
        {
            Columns.User: numbers // events,
            Columns.Item: order[numbers % items],
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(numbers % events * 3_600, unit="s"),
        }
    )


def make_trainer() -> Trainer:
    """Return a trainer of one epoch that writes nothing."""
    return Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def fit(name: str, log: pd.DataFrame, events: int) -> Any:  # noqa: ANN401 - RecTools is not here when types are checked
    """Return a model of our shape, fitted for an epoch."""
    shape = {"n_blocks": 2, "n_heads": 1, "n_factors": 50, "session_max_len": events, "epochs": 1}
    model = MODELS[name](**shape, get_trainer_func=make_trainer, recommend_torch_device="cpu")
    return model.fit(Dataset.construct(log))


def measure(model: Any, log: pd.DataFrame, k: int, calls: int) -> dict[str, Any]:  # noqa: ANN401
    """Return milliseconds of calls for user 0, and how many items came back."""
    dataset, context = Dataset.construct(log), {}
    if model.require_recommend_context:
        when = pd.DataFrame({Columns.User: [0], Columns.Datetime: [log[Columns.Datetime].max()]})
        context = {"context": when}
    times = []
    for _ in range(calls + 3):
        started = time.process_time()
        found = model.recommend(users=[0], dataset=dataset, k=k, filter_viewed=True, **context)
        times.append(1e3 * (time.process_time() - started))
    return {"milliseconds": times[3:], "items": len(found), "events": len(log)}  # the first calls warm up


def main() -> None:
    """Fit and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, default="hstu")
    parser.add_argument("--items", type=int, default=3_706)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--calls", type=int, default=30)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    users = max(FIT_USERS, -(-args.items // args.events))
    model = fit(args.model, made_log(users, args.events, args.items), args.events)
    found = {
        name: measure(model, made_log(users, args.events, args.items), args.k, args.calls)
        for name, users in (("its dataset: that user alone", 1), ("its dataset: 6,040 users", LOG_USERS))
    }
    print(json.dumps({"rectools": version("rectools"), "cases": found}))


if __name__ == "__main__":
    main()
