"""Made settings and batches for the sequence models."""

from itertools import accumulate
from types import SimpleNamespace

import torch

from components.dataset import Batch

# What every model reads of its settings, off.
LEVERS_OFF = {
    "bias_per_head": False,
    "attention": "pointwise",
    "feed_forward": "none",
    "gated_residual": False,
    "head": "dot",
    "mixture_query_vectors": 2,
    "mixture_item_vectors": 3,
    "request_time_dropout": 0.0,
}
# What each lever of a model changes, by itself and together.
_ESASREC = {"feed_forward": "swiglu", "gated_residual": True}
SASREC_LEVERS = {
    "gelu": {"feed_forward": "gelu"},
    "attention alone": {"feed_forward": "none"},
    "swiglu": {"feed_forward": "swiglu"},
    "gated attention": {"feed_forward": "none", "gated_residual": True},
    "eSASRec": _ESASREC,
}
HSTU_LEVERS = {
    "as published": {},
    "tables per head": {"bias_per_head": True},
    "time table per head": {"bias_per_head": True, "bias": "time"},
    "softmax": {"attention": "softmax", "bias": "none"},
    "gelu": {"feed_forward": "gelu"},
    "gated": {"gated_residual": True},
    "all but softmax": {"bias_per_head": True, **_ESASREC},
    "all but bias": {"attention": "softmax", "bias": "none", **_ESASREC},
}


def model_settings(**changes):
    """The public base recipe of ML-1M, small enough to run."""
    return SimpleNamespace(
        **{
            "max_len": 20,
            "dim": 8,
            "num_blocks": 2,
            "num_heads": 2,
            "head_dim_qk": 4,
            "head_dim_v": 3,
            "dropout": 0.2,
            "bias": "position+time",
            **LEVERS_OFF,
            "backend": "auto",
            "loss": "full",
            "num_negatives": 16,
            "gbce_calibration": 0.75,
            "temperature": 0.05,
        }
        | changes
    )


def made_batch(lengths, num_items=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_rows = sum(lengths)
    times = torch.randint(10**6, (num_rows,), generator=generator).cumsum(0)
    return Batch(
        items=torch.randint(num_items, (num_rows,), generator=generator),
        timestamps=times,
        next_timestamps=times + torch.randint(10**6, (num_rows,), generator=generator),
        offsets=torch.tensor([0, *accumulate(lengths)]),
    )


def cut_out(batch, b):
    """Sequence b alone."""
    rows = slice(*batch.offsets[b : b + 2].tolist())
    alone = [tensor[rows] for tensor in (batch.items, batch.timestamps, batch.next_timestamps)]
    return Batch(*alone, offsets=torch.tensor([0, rows.stop - rows.start]))
