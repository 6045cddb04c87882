"""Where a served answer comes from: from the tag in it to data, code, parameters, environment, metrics and decisions.

    python -m components lineage hstuflow:8d9ebf9213d6d8eb --json lineage.json
    python -m components lineage --user ann                     # which stored models saw this user

The tag is an answer's `model.bento` or `model.tag`; <name>:latest is the champion. Everything is read from the stored
model itself and from registry/decisions.jsonl, so a model that was trained elsewhere has its lineage too.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.bento_store import bentoml_store, find_tagged
from components.console import log, print_table
from components.decisions import read_decisions
from components.files import read_json, reading, write_json
from components.interactions import hash_log
from components.person import Person, find_person

_CERTAINTY = ("no", "maybe", "yes")
_TODO = "Package and promote again: `make run`"


def lineage(tag: str, *, registry: Path, out: Path | None = None) -> dict[str, Any]:
    """Print what is known of a tag's origin; return it, and write it to `out` as JSON.

    Raises:
        StateError: the BentoML store holds no such tag, its model is damaged, or so is a line of the decisions.
    """
    found = trace(find_tagged(tag), registry=registry)
    print_table(f"{tag}: where it comes from", ["what", ""], [[name, _show(value)] for name, value in _rows(found)])
    rows = [[one["time"], one["what"], one["tag"], "; ".join(one["reasons"])] for one in found["decisions"]]
    print_table("decisions", ["when", "what", "about", "because"], rows or [["none here", "", "", ""]])
    if out is not None:
        write_json(out, found)
        log.info("lineage written to %s", out)
    return found


def trace(model: Path, *, registry: Path) -> dict[str, Any]:
    """Return the lineage of a stored model, given its folder <store>/models/<name>/<version>."""
    with reading(model / "model.yaml", todo=_TODO):
        judged = YAML(typ="safe").load((model / "model.yaml").read_text(encoding="utf-8"))["metadata"]
    with reading(model / "checkpoint.json", todo=_TODO):
        trained = read_json(model / "checkpoint.json")
        facts = {name: trained.get(name) for name in ("settings", "code_hash", "environment", "best_epoch", "split")}
    tag = f"{model.parent.name}:{model.name}"
    about = [one for one in read_decisions(registry) if one["candidate"]["model_tag"] == tag]
    judgement = {name: judged[name] for name in ("name", "protocol", "verdict", "data_hash", "git_commit", "metrics")}
    return {"model_tag": tag, **judgement, **facts, "decisions": about}


def lineage_of_user(key: str, *, root: Path, registry: Path, out: Path | None = None) -> list[dict[str, Any]]:
    """Print which stored models saw the user whom the source calls `key`; return it, and write it to `out` as JSON.

    Raises:
        InputError: the log has no such user.
        StateError: there is no log, a model or a line of the decisions is damaged.
    """
    person = find_person(key, root / "data")
    since = _day(person.first)
    log.info("user %s: %d events, the first at %s", key, person.rows, since)
    models = find_models(person, root=root, registry=registry)
    print_models(models)
    if out is not None:
        write_json(out, {"user": key, "events": person.rows, "first": person.first, "models": models})
        log.info("written to %s", out)
    return models


def find_models(person: Person, *, root: Path, registry: Path) -> list[dict[str, Any]]:
    """Return every stored model, with whether it was trained on events of the person: `saw` is yes, maybe or no.

    yes: on the log as it is in root/data. Otherwise the time decides: it was trained on events until `until` (seconds,
    null: no such time), and the person's first is earlier: maybe, because events may have come in late; else no. A
    model of another log is not told apart, so it is a maybe as well. A warm start hands on what its model saw.
    """
    today = hash_log(root / "data", root / "artifacts" / "quarantine.parquet")
    decisions = read_decisions(registry)
    found, starts = [], {}
    for file in sorted((bentoml_store() / "models").glob("*/*/checkpoint.json")):
        with reading(file, todo=_TODO):
            trained = read_json(file)
            split, refit, data_hash = trained["split"], trained.get("refit_epochs"), trained["data_hash"]
            start = trained["settings"].get("warm_start")
        tag, until = f"{file.parent.parent.name}:{file.parent.name}", split.get("valid_end" if refit else "train_end")
        bentos = sorted({one["candidate"]["tag"] for one in decisions if one["candidate"]["model_tag"] == tag})
        saw = "no" if person.first is None or (until is not None and person.first >= until) else "maybe"
        saw = "yes" if saw == "maybe" and data_hash == today else saw
        found.append({"model_tag": tag, "bentos": bentos, "until": until, "data_hash": data_hash, "saw": saw})
        starts[tag] = start
    return _hand_on(found, starts)


def _hand_on(models: list[dict[str, Any]], starts: dict[str, str | None]) -> list[dict[str, Any]]:
    """Return find_models()'s answer with `saw` no less than that of the model each was started from (`starts`).

    A start that is not stored any more may have seen anybody.
    """
    by_tag = {tag: one for one in models for tag in (one["model_tag"], *one["bentos"])}

    def saw(tag: str) -> str:
        if tag not in by_tag:
            return "maybe"
        start, own = starts[by_tag[tag]["model_tag"]], str(by_tag[tag]["saw"])
        return max(own, saw(start) if start else "no", key=_CERTAINTY.index)

    return [model | {"saw": saw(model["model_tag"])} for model in models]


def print_models(models: list[dict[str, Any]]) -> None:
    """Print find_models()."""
    rows = [[one["model_tag"], ", ".join(one["bentos"]) or "-", _day(one["until"]), one["saw"]] for one in models]
    columns = ["model", "Bentos", "trained on events until", "saw the person"]
    print_table("stored models", columns, rows or [["none here", "", "", ""]])


def _rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what a person reads first; the JSON has all of it."""
    split, settings = found["split"], found["settings"]
    ndcg = {name: metric["value"] for name, metric in found["metrics"].items()}
    return [
        ("stored model", found["model_tag"]),
        ("model", f"{found['name']}, {found['protocol']}, verdict {found['verdict']}"),
        ("git commit of the package", found["git_commit"]),
        ("code hash of the training", found["code_hash"]),
        ("data hash", found["data_hash"]),
        ("train until, validation until", [_day(split.get(name)) for name in ("train_end", "valid_end")]),
        ("events", split.get("events")),
        ("parameters", settings),
        ("best epoch", found["best_epoch"]),
        ("environment", found["environment"]),
        ("metrics of the test part", {name: round(value, 4) for name, value in ndcg.items()}),
    ]


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(sep=" ", timespec="seconds")


def _show(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
