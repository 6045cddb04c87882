"""The models. `build_model(name, settings, num_items)` gives one whose forward(Batch) returns unit vectors (L, D).

Scores are model.score(y); the temperature belongs to the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.errors import SettingsError
from components.model.hstu import HSTU
from components.model.sasrec import SASRec

if TYPE_CHECKING:
    from components.settings import TrainSettings

SequenceModel = HSTU | SASRec
_MODELS: dict[str, type[HSTU] | type[SASRec]] = {"hstu": HSTU, "sasrec": SASRec}

__all__ = ["HSTU", "SASRec", "SequenceModel", "build_model"]


def build_model(name: str, settings: TrainSettings, num_items: int) -> SequenceModel:
    """Build a freshly initialised model for a catalogue of `num_items`; the global torch seed decides its weights.

    Raises:
        SettingsError: there is no such model.
    """
    if name not in _MODELS:
        raise SettingsError("no such model", where="train", observed=name, expected=" or ".join(_MODELS))
    return _MODELS[name](settings, num_items)
