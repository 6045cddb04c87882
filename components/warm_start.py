"""From which model the next training starts: train.<model>.warm_start of params.yaml, the champion's tag or null.

    python -m components warm-start     # before `dvc repro`; the flow's `--warm-start` does it every night

The tag is a parameter, so that a commit says where its model came from and `dvc repro` repeats it. It moves only when
the log has moved on since the champion: the same night run again trains nothing.
"""

from __future__ import annotations

from pathlib import Path

from components.bento_store import find_tagged
from components.champion import read_champion
from components.console import log
from components.files import read_json, reading
from components.fitting.start import find_obstacle
from components.interactions import hash_log, read_manifest
from components.registry import ensure_champion
from components.settings import PARAMS, Settings, change_settings


def choose_start(settings: Settings, *, data: Path, artifacts: Path, registry: Path, params: Path = PARAMS) -> None:
    """Write the champion's tag into `params`, or null where it cannot be a start, and say why.

    Nothing changes where the champion was trained on the log as it is.

    Raises:
        SettingsError: warm_start does not go together with `refit: true`.
        StateError: there is no log, champion.json is damaged, or the champion is neither stored nor in artifacts/.
    """
    model, champion = settings.package.model, read_champion(registry)
    if champion is not None and champion["data_hash"] == hash_log(data, artifacts / "quarantine.parquet"):
        log.info("the champion %s was trained on this very log: warm_start stays what it is", champion["tag"])
        return
    tag, why = None, None if champion else "there is no champion yet"
    if champion is not None:
        ensure_champion(artifacts=artifacts, registry=registry)
        checkpoint = find_tagged(champion["tag"]) / "checkpoint.json"
        with reading(checkpoint, todo="Package and promote again: `make run`"):
            facts = read_json(checkpoint)
        forgotten = len(read_manifest(data).get("forgotten", []))
        why = find_obstacle(facts, model, settings.train[model], forgotten=forgotten)
        tag = champion["tag"] if why is None else None
    change_settings({"train": {model: {"warm_start": tag}}}, params, where=str(params))
    log.info("train.%s.warm_start: %s", model, tag or f"null, from scratch: {why}")


def find_start(tag: str | None, protocol: str) -> Path | None:
    """Return the folder of the stored model `tag`; None, and say so, where the protocol can have no start.

    Leave-one-out holds back each user's last events, whenever they were: what a model saw until a time is no answer.

    Raises:
        StateError: the BentoML store has no such Bento or model.
    """
    if tag is None:
        return None
    if protocol != "time_split":
        log.info("from scratch: warm_start counts under the time split only")
        return None
    return find_tagged(tag)
