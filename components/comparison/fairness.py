"""Who may be judged on these held-out events: only a model that has seen none of them.

A model from elsewhere (last week's champion, another branch) comes with split.json of its own training. On time_split
it may have seen nothing from T2 on: its own T2, up to which it was trained, its epoch chosen, or both, is no later. Its
T1 does not matter: between T1 and T2 nobody is judged.
leave_one_out has no such times, so there only the very same split will do: whose last event lies before T1 is all
training in a time split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from components.errors import InputError


def require_unseen(name: str, trained: Mapping[str, Any], judged: Mapping[str, Any]) -> None:
    """Check split.json of a checkpoint, `trained`, against that of the sequences it is to be judged on.

    Raises:
        InputError: the model was trained or its epoch chosen on events that are held out here.
    """
    if trained.get("protocol") != judged["protocol"]:
        raise _refusal(name, _describe_training(trained), _describe_test(judged))
    if judged["protocol"] == "leave_one_out":
        if trained.get("data_hash") != judged["data_hash"]:
            raise _refusal(name, _describe_data(trained), _describe_data(judged))
    elif trained.get("valid_end") is None or trained["valid_end"] > judged["valid_end"]:
        chosen = f"trained, or its epoch chosen, on events up to {_date(trained.get('valid_end'))}"
        raise _refusal(name, chosen, f"none from {_date(judged['valid_end'])} on (T2 of this split)")


def _refusal(name: str, observed: str, expected: str) -> InputError:
    return InputError(
        "has seen events that are held out here, so its numbers would mean nothing",
        where=name,
        observed=observed,
        expected=expected,
        todo="Train it on this split, or compare on the split it was trained on (`--protocol`)",
    )


def _describe_training(split: Mapping[str, Any]) -> str:
    if split.get("protocol") == "leave_one_out":
        return "trained on leave_one_out: all but each user's last two events, whenever they happened"
    return f"trained on {split.get('protocol')}, events up to {_date(split.get('train_end'))}"


def _describe_test(split: Mapping[str, Any]) -> str:
    if split["protocol"] == "leave_one_out":
        return "trained on leave_one_out: in any other split, last events of users are training"
    return f"trained on time_split, no event from {_date(split['valid_end'])} on (T2 of this split)"


def _describe_data(split: Mapping[str, Any]) -> str:
    return f"leave_one_out of the log {str(split.get('data_hash'))[:12]}"


def _date(seconds: int | None) -> str:
    """Return UTC and the seconds themselves: two times may differ by less than a day shows."""
    return "an unknown time" if seconds is None else f"{np.datetime64(seconds, 's')} UTC ({seconds})"
