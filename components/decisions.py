"""registry/decisions.jsonl: every decision about who serves, a line each, newest last. People read it, and rollback.

    {"time": "2026-11-28T03:12:09+00:00", "what": "promoted", "tag": "hstuflow:8d9e...", "reasons": ["on validation"],
     "candidate": {tag, model_tag, verdict, data_hash, git_commit, metrics}, "champion": {champion.json after it},
     "challenge": {reports/challenge.json}}         null, or absent in older lines, where none was held

what            tag                        champion
promoted        the new champion           its record
refused         the candidate              as it was before; null before the first promotion
rolled back     the champion until then    the record of the one that serves instead

The file is replaced whole, so a kill leaves all of it or all but the last line.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any, Literal

from components.errors import StateError
from components.files import replacing_file

What = Literal["promoted", "refused", "rolled back"]
Record = dict[str, Any]


def record_decision(
    registry: Path,
    what: What,
    *,
    candidate: Record,
    champion: Record | None,
    reasons: list[str],
    challenge: Record | None = None,
) -> None:
    """Append a decision about `candidate`, unless it is the newest already: a stopped promotion is repeated.

    What the challenge measured of the package does not tell two decisions apart: its latency differs each time.
    """
    decisions = read_decisions(registry)
    names = ("tag", "model_tag", "verdict", "data_hash", "git_commit", "metrics")
    new = {
        "what": what,
        "tag": candidate["tag"],
        "candidate": {name: candidate[name] for name in names},
        "champion": champion,
        "reasons": reasons,
        "challenge": challenge,
    }
    if decisions and _without_package({name: decisions[-1].get(name) for name in new}) == _without_package(new):
        return
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with replacing_file(registry / "decisions.jsonl") as temporary:
        lines = [json.dumps(one, sort_keys=True, ensure_ascii=False) for one in [*decisions, {"time": now} | new]]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_decisions(registry: Path) -> list[Record]:
    """Return all decisions, oldest first.

    Raises:
        StateError: a line is damaged; the file is versioned in git, so a merge may leave its markers in it.
    """
    file = registry / "decisions.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [_parse(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]


def find_champion(decisions: list[Record], tag: str) -> Record | None:
    """Return champion.json as it last was with `tag` as the champion; None where it never was."""
    found = [one["champion"] for one in decisions if one["champion"] is not None and one["champion"]["tag"] == tag]
    return found[-1] if found else None


def find_rollback(decisions: list[Record], tag: str) -> Record | None:
    """Return the decision that took `tag` back, where that is the last one about it."""
    about = [one for one in decisions if one["tag"] == tag]
    return about[-1] if about and about[-1]["what"] == "rolled back" else None


def _without_package(decision: Record) -> Record:
    challenge = decision["challenge"] or {}
    return decision | {"challenge": {name: challenge[name] for name in challenge if name not in ("package", "checks")}}


def _parse(line: bytes, where: str) -> Record:
    try:
        decision = json.loads(line)
        missing = {"time", "what", "tag", "candidate", "champion", "reasons"} - set(decision)
    except (ValueError, TypeError) as error:
        raise StateError("is no decision", where=where, observed=str(error), todo="Mend the line by hand") from error
    if missing:
        raise StateError("lacks keys", where=where, expected=", ".join(sorted(missing)), todo="Mend the line by hand")
    return dict(decision)
