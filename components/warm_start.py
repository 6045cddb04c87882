"""From which model the next training starts: train.<model>.warm_start of params.yaml, the champion's tag or null.

    python -m components warm-start     # between `sequences` and `train`; the flow's `--warm-start` does it every night

The tag is a parameter, so that a commit says where its model came from and `dvc repro` repeats it. It moves only when
the log has moved on since the champion: the same night run again trains nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.bento_store import find_tagged
from components.champion import read_champion
from components.checkpoint import read_facts
from components.console import log
from components.errors import SettingsError, StateError
from components.files import read_json, reading
from components.fitting.start import find_obstacle
from components.registry import ensure_champion
from components.settings import PARAMS, Settings, change_settings

PROTOCOL = "time_split"  # of leave_one_out no time says what a model saw


def choose_start(settings: Settings, *, artifacts: Path, registry: Path, params: Path = PARAMS) -> None:
    """Write the tag of the model to start from into `params`, or null where there can be none, and say why.

    That is the champion; where it was trained on this very log, the one that it was started from, as `params` has it.
    Models other than the one that is packaged have no champion: theirs becomes null.

    Raises:
        SettingsError: the new model would be refitted, so that none could ever start from it.
        StateError: there are no sequences, or champion.json is damaged.
    """
    model = settings.package.model
    if settings.train[model].refit:
        raise SettingsError("a refitted model can be no start", where=f"train.{model}.refit", expected="false")
    split = _read_split(artifacts / "sequences" / PROTOCOL)
    champion = read_champion(registry)
    if champion is not None and champion["data_hash"] == split["data_hash"]:
        tag = settings.train[model].warm_start
        why = "the champion was trained on this very log, from scratch" if tag is None else None
    else:
        tag = champion["tag"] if champion is not None else None
        why = "there is no champion yet" if tag is None else _bring_in(artifacts, registry)
    why = why or _find_obstacle(str(tag), settings, split)
    starts: dict[str, Any] = {name: {"warm_start": None} for name in settings.train}
    starts[model]["warm_start"] = None if why else tag
    change_settings({"train": starts}, params, where=str(params))
    log.info("train.%s.warm_start: %s", model, f"null: {why}" if why else tag)


def find_start(tag: str | None, protocol: str) -> Path | None:
    """Return the folder of the stored model `tag`; None, and say so, where the protocol can have no start.

    Leave-one-out holds back each user's last events, whenever they were: what a model saw until a time is no answer.

    Raises:
        StateError: the BentoML store has no such Bento or model.
    """
    if tag is None:
        return None
    if protocol != PROTOCOL:
        log.info("from scratch: warm_start counts under the time split only")
        return None
    return find_tagged(tag)


def _read_split(sequences: Path) -> dict[str, Any]:
    with reading(sequences / "split.json", todo="Run `dvc repro sequences`; a warm start needs the time split"):
        split: dict[str, Any] = read_json(sequences / "split.json")
    return split


def _bring_in(artifacts: Path, registry: Path) -> str | None:
    """Let the store hold the champion, and say why where it cannot: `challenge` goes on without it as well."""
    try:
        ensure_champion(artifacts=artifacts, registry=registry)
    except StateError as error:
        return str(error)
    return None


def _find_obstacle(tag: str, settings: Settings, split: dict[str, Any]) -> str | None:
    model = settings.package.model
    try:
        facts = read_facts(find_tagged(tag))
    except StateError as error:
        return str(error)
    return find_obstacle(facts, model, settings.train[model], split)
