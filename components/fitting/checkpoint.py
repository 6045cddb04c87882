"""The folder that training hands out: all that evaluation and serving need, nothing pickled.

    weights.safetensors   to be served: of the best epoch, or of the refit where there was one
    selected.safetensors  only after a refit: of the best epoch, which validation may judge
    checkpoint.json       what was trained, on what, how it went (docs/architecture.md lists the keys)
    catalogue.parquet     copied from the sequences: row r is the item with index r

Read by components/checkpoint.py and components/catalogue.py.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.baselines.popularity import fit_popularity
from components.dataset import Sequences
from components.files import replacing_file, write_json
from components.fitting.runs import Weights
from kernels import choose_backend

POPULAR_DAYS = 30
POPULAR_ITEMS = 200


def write_checkpoint(
    folder: Path, weights: Weights, facts: dict[str, Any], *, catalogue: Path, selected: Weights | None = None
) -> None:
    """Fill an empty folder; equal weights give equal bytes. `selected`: the best epoch's, if `weights` are a refit."""
    from safetensors.torch import save_file  # not on the bare GPU machine

    for name, tensors in (("weights", weights), ("selected", selected)):
        if tensors is not None:
            with replacing_file(folder / f"{name}.safetensors") as temporary:
                save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, temporary)
    write_json(folder / "checkpoint.json", facts)
    shutil.copyfile(catalogue, folder / "catalogue.parquet")


def find_popular(
    sequences: Sequences, *, before: str = "valid", days: int = POPULAR_DAYS, limit: int = POPULAR_ITEMS
) -> list[int]:
    """Return the catalogue rows seen most in the last `days` before a part, best first, ties by row; none unseen."""
    counts = fit_popularity(sequences, before, days=days)
    best: list[int] = np.argsort(-counts, kind="stable")[: min(limit, np.count_nonzero(counts))].tolist()
    return best


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return what besides parameters, data and code can move the last bit of a weight."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,  # orders the batches
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),  # AVX2 and AVX512 add up in different orders
        "kernels": choose_backend(device)[0],  # without a C++ compiler a CPU takes torch's, which add up differently
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
