"""A scratch copy of this repository with a made log and small models, and the commands a person types in it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What a run leaves behind and git keeps; a scratch repository starts without.
STATE = ("data.dvc", "dvc.lock", "registry/")
COLUMNS = "user_id=who,item_id=what,timestamp=when"
TINY_MODEL = {
    "max_len": 20,
    "dim": 16,
    "num_blocks": 1,
    "head_dim_qk": 16,
    "head_dim_v": 16,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "epochs": 12,
    "patience": 999,
}


@dataclass(frozen=True)
class Repository:
    """A working copy under `root`; its BentoML store lies beside it."""

    root: Path

    def environment(self) -> dict[str, str]:
        """Return a shell's environment: the venv's commands on PATH, nothing of Prefect's or of an outer flow's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HSTUFLOW_"))}
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "BENTOML_HOME": str(self.root.parent / "bentoml"),
            "DVC_NO_ANALYTICS": "1",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout and stderr in one."""
        return subprocess.run(
            command, cwd=self.root, env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def start(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """Start a command whose output goes to `log`."""
        with log.open("w") as file:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment(),
                text=True,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A shell starts `command &` with SIGINT ignored, and children inherit that; here Ctrl-C must arrive.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def use(self, **changes: Any) -> None:
        """Change params.yaml as a recipe does."""
        recipe = self.root.parent / "recipe.yaml"
        recipe.write_text(json.dumps(changes))
        done = self.run(sys.executable, "-m", "components", "use", str(recipe))
        assert done.returncode == 0, done.stdout

    def read(self, file: str) -> Any:
        """Read a JSON file of the repository."""
        return json.loads((self.root / file).read_text())

    def copy(self, folder: Path) -> Repository:
        """Copy the repository with all it holds below `folder`."""
        shutil.copytree(self.root, folder / "repository", symlinks=True)
        return Repository(folder / "repository")


FLOW = (sys.executable, "-m", "flows")


def make_repository(folder: Path) -> Repository:
    """Copy what git tracks (or would) below `folder`, make it a git repository, and let its models be tiny."""
    repository = Repository(folder / "repository")
    listed = _git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if not name.startswith(STATE) and (ROOT / name).is_file():
            (repository.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, repository.root / name)
    repository.use(
        models=["hstu", "sasrec"],
        protocols=["time_split"],
        train={"hstu": TINY_MODEL, "sasrec": TINY_MODEL},
        evaluate={"bootstrap_samples": 100},
    )
    _git(repository.root, "init", "--quiet")
    _git(repository.root, "add", "--all")
    _git(
        repository.root, "-c", "user.name=made", "-c", "user.email=made@example.org", "commit", "--quiet", "-m", "made"
    )
    return repository


def write_table(
    folder: Path, *, users: int = 60, items: int = 80, events: int = 50, seed: int = 1
) -> tuple[Path, Path]:
    """Write log.csv (`events` of each user, who mostly steps from an item to the next) and items.csv, string ids."""
    chance = random.Random(seed)
    rows = []
    for user in range(users):
        item, day = chance.randrange(items), chance.randrange(30)
        for _ in range(events):
            item, day = (item + chance.choice([1, 1, 1, 2, 7])) % items, day + chance.randrange(1, 3)
            rows.append(f"u{user},i{item},{1_700_000_000 + day * 86_400 + chance.randrange(80_000)}")
    log, catalogue = folder / "log.csv", folder / "items.csv"
    log.write_text("\n".join(["who,what,when", *rows]) + "\n")
    catalogue.write_text("\n".join(["what,name", *(f"i{item},The {item}th" for item in range(items))]) + "\n")
    return log, catalogue


def ingest_options(log: Path, catalogue: Path | None = None) -> Sequence[str]:
    """Return the options that read what write_table() wrote."""
    options = ["--source", "table", "--path", str(log), "--columns", COLUMNS]
    return (
        options
        if catalogue is None
        else [*options, "--items", str(catalogue), "--item-columns", "item_id=what,title=name"]
    )


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout
