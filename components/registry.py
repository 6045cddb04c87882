"""Who serves: promotion, rollback, and the versioned pointer registry/champion.json that says so.

    python -m components challenge                     # is it fit to follow the champion? (components/challenge.py)
    python -m components promote                       # the flow's last step: as the challenge says
    python -m components rollback --why "slow"         # the champion before this one serves again
    python -m components serve                         # what `make serve` runs

registry/champion.json is the truth; `latest` follows it, here only. Model and Bento arrive in the BentoML store, then
profile.json, decisions.jsonl, champion.json and at last `latest` are replaced; by a rollback `latest` before
champion.json, because repeated after that it goes one further back. So whatever stops one, both pointers name a whole
Bento, and the same command finishes the job. What was rolled back is not promoted again by itself, or the next night
would undo the rollback.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from components.bento_store import install, is_stored, point_latest
from components.champion import locked, read_champion, read_state
from components.console import log
from components.decisions import find_champion, find_rollback, read_decisions, record_decision
from components.errors import StateError
from components.files import write_json


def promote(*, artifacts: Path, reports: Path, registry: Path, again: bool = False) -> bool:
    """Make the packaged model the champion; return False, and keep the champion, where gate or challenge refused it.

    So it is kept where the packaged model was rolled back, unless `again`. Either way `latest` is the champion
    afterwards, where the store holds it. One promotion or rollback at a time; a second one waits.

    Raises:
        StateError: there is no package, the log failed validation, a file of the registry is damaged, or export,
            package.json and challenge.json do not belong together.
    """
    with locked(registry):
        packaged, reasons = read_state(artifacts / "package.json"), read_state(reports / "gate.json")["reasons"]
        before = read_champion(registry)
        if before is not None and is_stored(before):
            point_latest(before["tag"])
        if packaged["verdict"] == "refused":
            log.warning("%s was refused by the gate: the champion stays what it is", packaged["tag"])
            record_decision(registry, "refused", candidate=packaged, champion=before, reasons=reasons)
            return False
        if not again and _was_rolled_back(packaged, registry):
            return False
        profile = _read_profile(reports / "validation.json")
        is_champion = before is not None and before["tag"] == packaged["tag"]
        # The champion has nobody to compete with: what is left of a stopped promotion is finished.
        challenge = None if is_champion else _read_challenge(reports / "challenge.json", packaged, before)
        if challenge is not None and challenge["verdict"] != "passed":
            _refuse(registry, packaged, before, challenge)
            return False
        install(artifacts / "hstuflow.bento", packaged)
        champion = _succeed(packaged, before)
        write_json(registry / "profile.json", profile)
        if challenge is not None:
            reasons = [*reasons, *challenge["reasons"]]
            who = {"candidate": packaged, "champion": champion}
            record_decision(registry, "promoted", **who, reasons=reasons, challenge=challenge)
        write_json(registry / "champion.json", champion)
        point_latest(champion["tag"])
    _announce(champion, before)
    return True


def rollback(*, registry: Path, to: str | None = None, why: str | None = None) -> dict[str, Any]:
    """Make an earlier champion the champion again, by default the one before; return registry/champion.json.

    The pointer gets its old content back, `previous` included, so rolling back once more goes one further back.
    registry/profile.json stays: the log did not change.

    Raises:
        StateError: nothing was promoted yet, there was no champion before, `to` never was one or is the champion, a
            file of the registry is damaged, or the store lacks the earlier Bento.
    """
    with locked(registry):
        champion = read_champion(registry)
        if champion is None:
            raise StateError("nothing was promoted yet", where=str(registry / "champion.json"), todo="Run `make run`")
        earlier = _find_earlier(champion, to, registry)
        reasons = [why or "by hand"]
        record_decision(registry, "rolled back", candidate=champion, champion=earlier, reasons=reasons)
        point_latest(earlier["tag"])
        write_json(registry / "champion.json", earlier)
    log.info("champion: %s, instead of %s, which is promoted again with --again only", earlier["tag"], champion["tag"])
    return earlier


def serve(*, artifacts: Path, registry: Path, host: str, port: int) -> NoReturn:
    """Become `bentoml serve` of the champion; fetches it from the export where the store lacks it.

    The service follows registry/champion.json, so a promotion or a rollback needs no restart, unless HSTUFLOW_FOLLOW
    says otherwise: empty, it keeps the model it began with. The code stays that of the Bento it began with.

    Raises:
        StateError: the port is taken, nothing was promoted yet, champion.json is damaged, or the champion is neither in
            the store nor in artifacts/.
    """
    _require_free(host, port)
    champion = ensure_champion(artifacts=artifacts, registry=registry)
    _warn_of_other_data(champion, artifacts / "package.json")
    log.info("%s at http://%s:%d (verdict: %s)", champion["tag"], host, port, champion["verdict"])
    command = [sys.executable, "-P", "-m", "bentoml", "serve", champion["tag"], "--host", host, "--port", str(port)]
    ours = {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    follow = {"HSTUFLOW_FOLLOW": str((registry / "champion.json").absolute())}
    os.execve(sys.executable, command, follow | os.environ | ours)  # noqa: S606


def ensure_champion(*, artifacts: Path, registry: Path) -> dict[str, Any]:
    """Return registry/champion.json after making sure that the store holds the champion and its model; see `serve`."""
    champion = read_champion(registry)
    if champion is None:
        raise _nothing_promoted(artifacts, registry / "champion.json")
    if is_stored(champion):
        return champion
    packaged = read_state(artifacts / "package.json")
    if packaged["tag"] != champion["tag"]:
        raise StateError(
            "the champion is not in the BentoML store, and the export is another one",
            where=str(artifacts / "package.json"),
            observed=packaged["tag"],
            expected=champion["tag"],
            todo="Run `python -m components promote`, or fetch the champion's export with `dvc pull`",
        )
    install(artifacts / "hstuflow.bento", packaged)
    return champion


def _require_free(host: str, port: int) -> None:
    """Raise StateError where `bentoml serve` could not listen; it would say so with a traceback of 40 lines."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
            probe.bind((host, port))
    except OSError as error:
        raise StateError(
            "cannot listen here",
            where=f"{host}:{port}",
            observed=error.strerror,
            todo=f"End what holds the port, or choose another one: `make serve PORT={port + 1}`",
        ) from error


def _nothing_promoted(artifacts: Path, pointer: Path) -> StateError:
    """Return the error for a missing champion.json: the gate refused the only candidate, or nothing ran so far."""
    package = artifacts / "package.json"
    packaged = read_state(package) if package.exists() else None
    if packaged is None or packaged["verdict"] != "refused":
        return StateError("nothing was promoted yet", where=str(pointer), todo="Run `make run`")
    return StateError(
        f"nothing was promoted yet, the gate refused the candidate {packaged['tag']}",
        where=str(pointer),
        todo="Open reports/report.html; to look at the candidate anyway: "
        f"`bentoml import {artifacts / 'hstuflow.bento'}`, then `bentoml serve {packaged['tag']}`",
    )


def _warn_of_other_data(champion: dict[str, Any], package: Path) -> None:
    """Say in one line that the champion was trained on another log than the last package, where it was."""
    packaged = read_state(package) if package.exists() else champion
    if packaged["data_hash"] != champion["data_hash"]:
        log.warning(
            "serving %s, not the last candidate %s (%s): that was trained on other data, %s, the champion on %s",
            champion["tag"],
            packaged["tag"],
            packaged["verdict"],
            packaged["data_hash"][:12],
            champion["data_hash"][:12],
        )


def _read_challenge(file: Path, packaged: dict[str, Any], champion: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the challenge found of the packaged model and this champion, but not whether it was repeated.

    Raises:
        StateError: there was none, or it was about another candidate or another champion.
    """
    todo = "Run `python -m components challenge`, then the same command"
    answer = read_state(file, todo)
    observed = [one and one["tag"] for one in (answer["candidate"], answer["champion"])]
    expected = [one and one["tag"] for one in (packaged, champion)]
    if observed != expected:
        raise StateError(
            "is about another candidate or another champion",
            where=str(file),
            observed="{} against {}".format(*observed),
            expected="{} against {}".format(*expected),
            todo=todo,
        )
    return {name: value for name, value in answer.items() if name != "reused"}


def _refuse(
    registry: Path, packaged: dict[str, Any], champion: dict[str, Any] | None, challenge: dict[str, Any]
) -> None:
    """Write down that the challenge kept the packaged model out, and say so."""
    reasons = [f"challenge {challenge['verdict']}", *challenge["reasons"]]
    log.warning("%s is not promoted, the champion stays what it is: %s", packaged["tag"], "; ".join(reasons))
    record_decision(registry, "refused", candidate=packaged, champion=champion, reasons=reasons, challenge=challenge)


def _was_rolled_back(packaged: dict[str, Any], registry: Path) -> bool:
    decision = find_rollback(read_decisions(registry), packaged["tag"])
    if decision is None:
        return False
    log.warning(
        "%s was rolled back on %s (%s): the champion stays what it is; to promote it nevertheless: "
        "`python -m components promote --again`",
        packaged["tag"],
        decision["time"],
        "; ".join(decision["reasons"]),
    )
    return True


def _find_earlier(champion: dict[str, Any], to: str | None, registry: Path) -> dict[str, Any]:
    """Return the record of the champion to go back to; see `rollback`."""
    decisions, where = read_decisions(registry), str(registry / "decisions.jsonl")
    tag = to or champion["previous"]
    if tag is None or tag == champion["tag"]:
        what = f"there is no champion before {champion['tag']}" if tag is None else f"{tag} is the champion"
        raise StateError(what, where=where, todo="Name another one: `python -m components rollback --to TAG`")
    earlier = find_champion(decisions, tag)
    if earlier is None:
        known = dict.fromkeys(one["champion"]["tag"] for one in decisions if one["champion"] is not None)
        raise StateError(f"{tag} never was the champion", where=where, expected=f"one of {', '.join(known) or 'none'}")
    if not is_stored(earlier):
        raise StateError(
            f"{tag} is not in the BentoML store",
            where=where,
            todo=f"Fetch its export (git commit {earlier['git_commit']}, `dvc pull artifacts/hstuflow.bento`) and "
            "`bentoml import` it, then the same command",
        )
    return earlier


def _succeed(packaged: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Return champion.json's content once `packaged` follows the champion `before`."""
    names = ("tag", "model_tag", "verdict", "data_hash", "git_commit", "metrics")
    champion = {name: packaged[name] for name in names}
    if before is None:
        return champion | {"previous": None}
    return champion | {"previous": before["previous" if before["tag"] == champion["tag"] else "tag"]}


def _announce(champion: dict[str, Any], before: dict[str, Any] | None) -> None:
    if champion["verdict"] == "inconclusive":
        log.warning("the gate could not tell %s from the best baseline", champion["tag"])
    if before is not None and before["tag"] == champion["tag"]:
        log.info("%s is the champion already", champion["tag"])
    else:
        log.info("champion: %s, before it: %s", champion["tag"], champion["previous"] or "none")


def _read_profile(report: Path) -> dict[str, Any]:
    """Return the profile of the log that the model was trained on.

    Raises:
        StateError: the log failed validation, so the package is one of an earlier log.
    """
    validation = read_state(report)
    if validation["success"] is not True or validation["profile"] is None:
        raise StateError(
            "the log failed validation, so the packaged model is an earlier log's and is not promoted",
            where=str(report),
            todo="See `complaints` there, mend the log (or `validate` in params.yaml), then run `dvc repro`",
        )
    return dict(validation["profile"])
