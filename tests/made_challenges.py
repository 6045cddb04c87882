"""A challenge that was held and won (or not), without a model: what `promote` obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.champion import read_champion
from components.files import read_json, write_json


def write_challenge(root: Path, verdict: str = "passed", **changes: Any) -> None:
    """Write root/reports/challenge.json about the packaged model and today's champion."""
    packaged, champion = read_json(root / "artifacts" / "package.json"), read_champion(root / "registry")
    answer = {
        "id": "made",
        "candidate": {"tag": packaged["tag"]},
        "champion": champion and {"tag": champion["tag"]},
        "note": None,
        "reused": False,
        "contest": None,
        "package": None,
        "checks": [],
        "verdict": verdict,
        "reasons": [f"{verdict} by hand"],
    }
    write_json(root / "reports" / "challenge.json", answer | changes)
