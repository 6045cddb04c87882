"""Made checkpoints to be compared: beside those of made_evaluations.py, the same with another seed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from made_evaluations import evaluate_settings
from safetensors.torch import load_file, save_file

from components.compare import compare
from components.comparison.answer import Comparison
from components.files import read_json, write_json


def checkpoint(root: Path, model: str = "hstu", protocol: str = "time_split") -> Path:
    """Return where a made root has its checkpoint."""
    return root / "artifacts" / "checkpoints" / protocol / model


def compare_in(root: Path, a: object, b: object, protocol: str = "time_split", **options: Any) -> Comparison:
    """Compare on the sequences of a made root."""
    return compare(evaluate_settings(), str(a), str(b), protocol=protocol, artifacts=root / "artifacts", **options)


def reseed(source: Path, folder: Path, seed: int) -> Path:
    """Copy a checkpoint as if it had been trained with another seed."""
    shutil.copytree(source, folder)
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: values + 0.3 * torch.randn(values.shape, generator=random)
        for name, values in load_file(source / "weights.safetensors").items()
    }
    save_file(weights, folder / "weights.safetensors")
    facts = read_json(source / "checkpoint.json")
    write_json(folder / "checkpoint.json", facts | {"settings": facts["settings"] | {"seed": seed}})
    return folder
