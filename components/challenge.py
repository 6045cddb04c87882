"""Is the packaged model fit to follow today's champion? Both on the newest events that neither has seen, by one rule.

    python -m components challenge      # between `package` and `promote`

No DVC stage: the champion changes with every success and would make its own pipeline stale (decision 0004).
Writes reports/challenge.json, which `promote` obeys, prints it, and ends with status 0 whatever it says. In
components/challenging/: the common window, the contest on it, the packaged model read back, the rule, the words.

The window is looked at once for each decision: the same candidate, champion and log get the contest recorded in
reports/challenge.json or registry/decisions.jsonl. The package is measured and the limits of params.yaml are applied
anew. A contest that scored nobody, for too few users, is no look: it is held again, and again scores nobody below
`min_users`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from components.bento_store import find_tagged, unpack_model
from components.catalogue import load_catalogue
from components.challenging.contest import meet
from components.challenging.packaged import measure_package
from components.challenging.rule import apply_rule, decide, explain
from components.challenging.words import print_challenge
from components.champion import read_champion, read_state
from components.checkpoint import load_model
from components.comparison.contenders import Contender
from components.console import log
from components.dataset import load_sequences
from components.decisions import read_decisions
from components.errors import StateError
from components.files import hash_files, read_json, write_json
from components.ranking.judging import Cell
from components.settings import Settings

_OF_A_MODEL = ("tag", "model_tag", "data_hash")


def challenge(settings: Settings, *, artifacts: Path, reports: Path, registry: Path) -> dict[str, Any]:
    """Judge the packaged model beside the champion; write, print and return reports/challenge.json.

    Raises:
        StateError: there is no package, or it is not of today's checkpoint; a file of the registry is damaged.
    """
    packaged, champion = read_state(artifacts / "package.json"), read_champion(registry)
    answer: dict[str, Any] = {
        "id": None,
        "candidate": {name: packaged[name] for name in _OF_A_MODEL},
        "champion": champion and {name: champion[name] for name in _OF_A_MODEL},
        "note": None,
        "reused": False,
        "contest": None,
        "package": None,
        "checks": [],
        "reasons": [],
    }
    if champion is not None and champion["tag"] == packaged["tag"]:
        answer |= {"verdict": "champion"}
    elif packaged["verdict"] == "refused":  # on validation: the window stays unseen
        answer |= {"verdict": "failed", "reasons": read_state(reports / "gate.json")["reasons"]}
    else:
        answer |= _judge(settings, packaged, champion, artifacts=artifacts, reports=reports, registry=registry)
    write_json(reports / "challenge.json", answer)
    print_challenge(answer)
    return answer


def _judge(
    settings: Settings, packaged: dict[str, Any], champion: dict[str, Any] | None, *, artifacts: Path, **known: Path
) -> dict[str, Any]:
    """Return the contest, of now or before, the package of now, and what the rule makes of them."""
    protocol = settings.report.headline_protocol
    sequences = load_sequences(artifacts / "sequences" / protocol)
    cell = Cell(settings.evaluate, settings.package.model, protocol, sequences)
    challenge_id = _identify(packaged, champion, cell)
    recorded = _find_recorded(challenge_id, **known)
    measured = _measure(settings, cell, packaged, champion, artifacts, recorded)
    checks = apply_rule(measured, settings.promote)
    return measured | {
        "id": challenge_id,
        "reused": recorded is not None,
        "checks": [check.describe() for check in checks],
        "verdict": decide(checks),
        "reasons": explain(checks),
    }


def _measure(
    settings: Settings,
    cell: Cell,
    packaged: dict[str, Any],
    champion: dict[str, Any] | None,
    artifacts: Path,
    recorded: dict[str, Any] | None,
) -> dict[str, Any]:
    """Read the package back, and let it compete with the champion where that can be read and no contest is recorded.

    Its latency is one of this minute: recorded on a busy one, it would keep the candidate out for good.
    """
    checkpoint = artifacts / "checkpoints" / cell.protocol / cell.model
    _require_same(checkpoint, packaged)
    export = artifacts / "hstuflow.bento"
    with tempfile.TemporaryDirectory(prefix="hstuflow-challenge-") as scratch:
        folder = unpack_model(export, packaged, Path(scratch))
        package = measure_package(folder, export, checkpoint, packaged["item_table"]["values"], cell.sequences)
        if recorded is not None:
            return {"note": recorded["note"], "contest": recorded["contest"], "package": package}
        here = load_catalogue(artifacts / "sequences" / cell.protocol, key_type=cell.sequences.split["key_type"])
        contender, (rival, note) = Contender(packaged["tag"], folder), _find_rival(champion)
        contest = meet(cell, contender, rival, here, min_users=settings.promote.min_users)
    return {"note": note, "contest": contest, "package": package}


def _find_rival(champion: dict[str, Any] | None) -> tuple[Contender | None, str | None]:
    """Return the champion's checkpoint; where it cannot be read, why, and no champion: nobody could serve it either."""
    if champion is None:
        return None, None
    try:
        folder = find_tagged(champion["tag"])
        _, facts = load_model(folder)
        load_catalogue(folder, key_type=facts["split"]["key_type"])
    except StateError as error:
        log.warning("the champion cannot be read, so the challenger is judged without it: %s", error)
        return None, f"not compared, it cannot be read: {error}"
    return Contender(champion["tag"], folder), None


def _require_same(checkpoint: Path, packaged: dict[str, Any]) -> None:
    observed = hash_files([checkpoint])
    if observed != packaged["checkpoint_hash"]:
        raise StateError(
            "is not the checkpoint that was packaged",
            where=str(checkpoint),
            observed=observed[:12],
            expected=packaged["checkpoint_hash"][:12],
            todo="Run `dvc repro package`",
        )


def _identify(packaged: dict[str, Any], champion: dict[str, Any] | None, cell: Cell) -> str:
    """Return a hash of all that decides what is measured: both models, the log and its split, how is measured."""
    split = {key: cell.sequences.split[key] for key in ("protocol", "data_hash", "train_end", "valid_end")}
    content = [packaged["tag"], champion and champion["tag"], split, cell.settings.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _find_recorded(challenge_id: str, *, reports: Path, registry: Path) -> dict[str, Any] | None:
    """Return the challenge that was held under this id.

    One without its champion does not count, it may be back; nor one that scored nobody, fewer users may be asked for.
    """
    last = reports / "challenge.json"
    held = [one.get("challenge") for one in read_decisions(registry)] + ([read_json(last)] if last.exists() else [])
    found = [one for one in held if one is not None and one["id"] == challenge_id and one["note"] is None]
    scored = [one for one in found if one["contest"]["paired"] is not None or not one["contest"]["has_champion"]]
    return scored[-1] if scored else None
