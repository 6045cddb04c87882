"""A trained model read back from its folder, which components/fitting/checkpoint.py writes and describes.

model, facts = load_model(Path("artifacts/checkpoints/time_split/hstu"))     # facts: checkpoint.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from components.errors import StateError
from components.files import read_json, reading
from components.model import SequenceModel, build_model
from components.model.quantized import unpack

if TYPE_CHECKING:
    from torch import Tensor

    from components.settings import TrainSettings

_NEEDED = ("model", "settings", "num_items", "popular", "split")
# Keys of train.<model> that checkpoints of earlier versions lack, with the value that means what those did.
_SINCE_THEN = {
    "bias_per_head": False,
    "attention": "pointwise",
    "gated_residual": False,
    "head": "dot",
    "mixture_query_vectors": 1,
    "mixture_item_vectors": 1,
    "request_time_dropout": 0.0,
    "warm_start": None,
}
# What the weights mean to this code. A later version may know other values, or keys, and mean other scores by them.
_CHOICES: dict[str, tuple[str, ...]] = {
    "bias": ("none", "position", "time", "position+time"),
    "attention": ("pointwise", "softmax"),
    "feed_forward": ("none", "gelu", "swiglu"),
    "head": ("dot", "mixture"),
}
# What decides which weights there are, and what they compute.
SHAPE = (
    *_CHOICES,
    *("max_len", "dim", "num_blocks", "num_heads", "head_dim_qk", "head_dim_v", "bias_per_head"),
    *("gated_residual", "mixture_query_vectors", "mixture_item_vectors"),
)
_KEYS = {
    *SHAPE,
    # How it was trained:
    *("warm_start", "dropout", "request_time_dropout"),
    *("loss", "num_negatives", "gbce_calibration", "temperature", "batch_size", "learning_rate", "weight_decay"),
    *("warmup_steps", "schedule", "cycles", "windows", "stochastic_length", "epochs", "patience", "refit", "seed"),
    *("num_threads", "backend"),
}


def load_model(checkpoint: Path, *, selected: bool = False) -> tuple[SequenceModel, dict[str, Any]]:
    """Return the model of a checkpoint folder in evaluation mode, and checkpoint.json.

    `selected`: as it was before a refit, if there was one: the only one that validation may judge.

    Raises:
        StateError: the folder is missing, is no checkpoint, needs code of another version, or its weights belong to
            another model or are no numbers.
    """
    from safetensors import SafetensorError  # not on the bare GPU machine
    from safetensors.torch import load_file

    facts = read_facts(checkpoint)
    # The backend is a matter of this machine, not of the one that trained: a Triton checkpoint also serves on a CPU.
    settings = SimpleNamespace(**(settings_of(facts) | {"backend": "auto"}))
    model = build_model(facts["model"], cast("TrainSettings", settings), facts["num_items"])
    is_refit = bool(facts.get("refit_epochs"))
    weights = checkpoint / ("selected.safetensors" if selected and is_refit else "weights.safetensors")
    try:
        values = unpack(load_file(weights), facts["settings"]["dim"])
        model.load_state_dict(values, strict=True)
    except FileNotFoundError:
        raise StateError("is missing", where=str(weights), todo="Run `dvc repro`") from None
    except (SafetensorError, RuntimeError, IndexError) as error:
        raise StateError(
            "does not fit the model that checkpoint.json describes",
            where=str(weights),
            observed=str(error)[:200],
            todo="Train again: `dvc repro`",
        ) from error
    _check_finite(values, weights)
    return model.eval(), facts


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the train.<model> section of a checkpoint.json, completed where an earlier version had fewer keys."""
    earlier = _SINCE_THEN | {"feed_forward": "gelu" if facts["model"] == "sasrec" else "none"}
    return {**earlier, **facts["settings"]}


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Return checkpoint.json; raises StateError as `load_model` does, but for what is wrong with the weights."""
    file = checkpoint / "checkpoint.json"
    with reading(file, todo="Run `dvc repro`"):
        facts: dict[str, Any] = read_json(file)
    missing = [key for key in _NEEDED if key not in facts] if isinstance(facts, dict) else list(_NEEDED)
    if missing:
        raise StateError("is not a checkpoint of hstuflow", where=str(file), expected=f"the keys {', '.join(missing)}")
    _check_shape(facts, file)
    _check_settings(facts["settings"], file)
    return facts


def _check_shape(facts: dict[str, Any], file: Path) -> None:
    """Raise StateError where there is not all of what `build_model` reads."""
    settings, num_items = facts["settings"], facts["num_items"]
    given = set(settings_of(facts)) if isinstance(settings, dict) else set()
    missing = sorted({*SHAPE, "dropout"} - given)
    if missing or not isinstance(num_items, int) or num_items < 1:
        observed = f"no settings {', '.join(missing)}" if missing else f"num_items {num_items!r}"
        raise StateError("is damaged", where=str(file), observed=observed, todo="Train again: `dvc repro`")


def _check_finite(values: Mapping[str, Tensor], file: Path) -> None:
    """Raise StateError where a weight is NaN or infinite: training writes none, and scores of it order nothing."""
    damaged = [name for name, value in values.items() if not value.isfinite().all()]
    if damaged:
        observed = f"NaN or infinity in {', '.join(damaged)}"[:200]
        raise StateError("is damaged", where=str(file), observed=observed, todo="Train again: `dvc repro`")


def _check_settings(settings: dict[str, Any], file: Path) -> None:
    """Raise StateError for settings that this code does not know: it would read the weights as something else."""
    unknown = sorted(set(settings) - _KEYS)
    unknown += [
        f"{key}: {settings[key]}" for key, known in _CHOICES.items() if settings.get(key, known[0]) not in known
    ]
    if unknown:
        raise StateError(
            "needs the code of another version",
            where=str(file),
            observed=f"settings {', '.join(unknown)}",
            todo="Use the code that trained it: its git commit is in the Bento of the same promotion",
        )
