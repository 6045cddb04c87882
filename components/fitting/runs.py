"""Training in progress: one folder per run, its state after the last whole epoch, its lock.

    artifacts/runs/<hash>.lock               held by the one trainer of this run
    artifacts/runs/<hash>/pid                that trainer's process id
    artifacts/runs/<hash>/state.safetensors  weights, best weights, optimizer; history as JSON in the file's metadata
    artifacts/runs/<hash>/refit/             the state of a refit, which follows where train.<model>.refit says so
    artifacts/runs/<hash>/checkpoint/        what a finished run hands out; an identical re-run only copies it
    artifacts/runs/prune.lock                held by the one process that removes old runs

The hash covers parameters, data and code, so a state can only be resumed by the run that left it. The folder lies
outside DVC's outs, because DVC deletes those before it re-runs a stage. The state is one file: it is whole or it is the
one before, and weights, optimizer and history cannot come from different epochs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from components.console import log
from components.files import replacing_file, replacing_folder

KEPT_RUNS = 5  # of the finished and of the unfinished ones each

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """A run after a whole number of epochs."""

    weights: Weights
    best_weights: Weights  # of the epoch with the best validation NDCG@10
    moments: Weights  # the optimizer's
    epochs: list[dict[str, Any]]  # {epoch, loss, valid_ndcg@10, seconds}


def hash_run(**facts: object) -> str:
    """Return 16 hex digits over whatever decides a run's weights; `facts` must be JSON."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Run:
    """One run's folder below artifacts/runs."""

    def __init__(self, runs: Path, run_hash: str) -> None:
        self.folder = runs / run_hash
        self._state, self._checkpoint = self.folder / "state.safetensors", self.folder / "checkpoint"
        self._refit = self.folder / "refit"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; where another trainer does, say which one and wait until it has ended."""
        from filelock import FileLock, Timeout  # not on the bare GPU machine

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_file(self.folder))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for process %s, which trains this very run (%s)", self._holder(), self.folder)
            lock.acquire()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # pruned while we waited
            for leftover in self.folder.glob(".*"):  # of a trainer that was killed while it wrote
                _remove(leftover)
            (self.folder / "pid").write_text(f"{os.getpid()}\n")
            yield
        finally:
            lock.release()

    @property
    def refit(self) -> Run:
        """The second training of this run; under the same lock, and gone once the run is finished."""
        self._refit.mkdir(exist_ok=True)
        return Run(self.folder, self._refit.name)

    @property
    def is_finished(self) -> bool:
        """Whether the run has a checkpoint to hand out."""
        return self._checkpoint.exists()

    def save(self, state: TrainingState) -> None:
        """Write the state in place of the previous one."""
        from safetensors.torch import save_file

        tensors = {f"model/{name}": tensor for name, tensor in state.weights.items()}
        if state.best_weights is not state.weights:  # else the last epoch is the best: stored once
            tensors |= {f"best/{name}": tensor for name, tensor in state.best_weights.items()}
        tensors |= {f"moments/{name}": tensor for name, tensor in state.moments.items()}
        with replacing_file(self._state) as temporary:
            save_file(tensors, temporary, metadata={"epochs": json.dumps(state.epochs)})

    def load(self) -> TrainingState | None:
        """Return the saved state, None where no epoch is finished yet."""
        from safetensors import safe_open

        if not self._state.exists():
            return None
        found: dict[str, Weights] = {"model": {}, "best": {}, "moments": {}}
        with safe_open(self._state, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a file handle, not a mapping
                kind, name = key.split("/", 1)
                found[kind][name] = file.get_tensor(key)
        return TrainingState(found["model"], found["best"] or found["model"], found["moments"], self.saved_epochs())

    def saved_epochs(self) -> list[dict[str, Any]]:
        """Return what is known of the epochs that are saved, without reading a weight."""
        from safetensors import safe_open

        if not self._state.exists():
            return []
        with safe_open(self._state, framework="pt") as file:
            epochs: list[dict[str, Any]] = json.loads(file.metadata()["epochs"])
        return epochs

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """Yield the folder for the finished run's checkpoint; the state is dropped once that is in its place."""
        with replacing_folder(self._checkpoint) as folder:
            yield folder
        self._state.unlink(missing_ok=True)
        if self._refit.exists():
            shutil.rmtree(self._refit)

    def hand_out(self, target: Path) -> None:
        """Copy the finished checkpoint to `target`, atomically."""
        with replacing_folder(target) as folder:
            shutil.copytree(self._checkpoint, folder, dirs_exist_ok=True)
        os.utime(self.folder)  # the latest used are kept

    def _holder(self) -> str:
        try:
            return (self.folder / "pid").read_text().strip()
        except FileNotFoundError:  # it has only just taken the lock
            return "(unknown)"


def prune_runs(runs: Path, *, keep: int = KEPT_RUNS) -> None:
    """Delete all but the `keep` latest finished and the `keep` latest unfinished runs; those in use stay.

    They count apart, so that a resumable run outlives any number of finished ones. One process prunes at a time.
    """
    from filelock import FileLock

    with FileLock(runs / "prune.lock"):
        folders = sorted((path for path in runs.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        kinds: dict[str, list[Path]] = {"finished": [], "unfinished": []}
        for folder in reversed(folders):
            kinds["finished" if Run(runs, folder.name).is_finished else "unfinished"].append(folder)
        for kind, latest_first in kinds.items():
            for folder in latest_first[keep:]:
                if _remove_unused(folder):
                    log.info("removed the %s run %s: only the latest %d are kept", kind, folder, keep)


def _remove_unused(folder: Path) -> bool:
    """Remove a run and its lock; return False, and leave it, where it is in use."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        shutil.rmtree(folder)
        _lock_file(folder).unlink()  # while held: filelock notices an unlinked file and starts over
    finally:
        lock.release()
    return True


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
