"""The checkpoint that is packaged with an item table in fewer bits, and what that costs.

    facts = write_quantized(checkpoint, folder, "int4", sequences)     # facts: bytes, NDCG@10 difference, overlap

The cost is measured with every packaging and travels with the model: nobody can have the small table without its price
beside it. The codes are in components/model/quantized.py, the measure in components/ranking/quantizing.py.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.checkpoint import load_model
from components.console import log
from components.dataset import load_sequences
from components.errors import StateError
from components.model import SequenceModel
from components.model.quantized import ITEM_TABLE, OUTLIER_SHARE, dequantize, pack, quantize
from components.ranking.quantizing import Cost, measure_cost

BITS = {"int8": 8, "int4": 4}
_WEIGHTS, _SELECTED = "weights.safetensors", "selected.safetensors"


def write_quantized(checkpoint: Path, target: Path, item_table: str, sequences: Path) -> dict[str, Any]:
    """Copy a checkpoint to `target` with its item table in `int8` or `int4`; return what /info says of it.

    Raises:
        StateError: checkpoint or sequences are missing or do not belong together, or nothing can be measured.
    """
    bits = BITS[item_table]
    cost = _measure(checkpoint, bits, sequences)
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(_WEIGHTS, _SELECTED))
    weights = load_file(checkpoint / _WEIGHTS)
    save_file(pack(weights, bits), target / _WEIGHTS)
    facts = {
        "values": item_table,
        "outlier_share": OUTLIER_SHARE,
        "float32_bytes": weights[ITEM_TABLE].nbytes,
        "bytes": quantize(weights[ITEM_TABLE], bits).num_bytes,
        "cost": dict(cost),
    }
    log.info(
        "item table in %s: %s instead of %s bytes; NDCG@10 %+.5f [%+.5f, %+.5f], %.1f%% of the ten best stay",
        *(item_table, f"{facts['bytes']:,}", f"{facts['float32_bytes']:,}"),
        *(cost["ndcg_difference"], cost["low"], cost["high"], 100 * cost["top_10_overlap"]),
    )
    return facts


def _measure(checkpoint: Path, bits: int, sequences: Path) -> Cost:
    """Measure on validation, hence with the weights that have not seen it."""
    model, facts = load_model(checkpoint, selected=True)
    log_ = load_sequences(sequences)
    if facts["split"] != log_.split:
        raise StateError("was trained on other data, or split elsewhere", where=str(checkpoint), todo="Run `dvc repro`")
    torch.set_num_threads(int(facts["settings"].get("num_threads", 1)))
    both = {"float32": model, "quantized": with_quantized_table(model, bits)}
    return measure_cost(both, log_, int(facts["settings"]["max_len"]))


def with_quantized_table(model: SequenceModel, bits: int) -> SequenceModel:
    """Return a copy of the model whose item table went through `bits` bits and back."""
    smaller = deepcopy(model)
    table = smaller.embedding.item.weight
    with torch.no_grad():
        table.copy_(dequantize(quantize(table, bits), table.shape[1]))
    return smaller
