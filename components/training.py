"""Train one model on one protocol: a plain loop that can be killed at any moment and still ends in the same weights.

    python -m components train --model hstu --protocol time_split

After every epoch the state goes to artifacts/runs/<hash>/ (components/fitting/runs.py); the same command resumes there,
and a resumed run and an undisturbed one agree bit for bit on a CPU (components/fitting/loop.py says why). The epoch
with the best validation NDCG@10 is handed out; the test part is never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.console import log, print_header
from components.dataset import Sequences, join_validation, load_sequences
from components.errors import SettingsError
from components.files import hash_files
from components.fitting.checkpoint import describe_environment, find_popular, write_checkpoint
from components.fitting.interruption import TrainingInterrupted, raising_on_signals
from components.fitting.loop import VALID_METRIC, Trainer, best_epoch
from components.fitting.runs import Run, TrainingState, hash_run, prune_runs
from components.fitting.start import read_keys, read_start, refuse
from kernels import choose_backend

if TYPE_CHECKING:
    from components.settings import TrainSettings

# What besides parameters and data decides the checkpoint: dvc.yaml's deps of `train`, which a test compares.
CODE = (
    "components/training.py",
    "components/baselines/popularity.py",
    "components/checkpoint.py",
    "components/fitting",
    "components/ranking/targets.py",
    "components/ranking/blocks.py",
    "components/ranking/tiles.py",
    "components/ranking/tops.py",
    "components/dataset.py",
    "components/metrics.py",
    "components/model",
    "kernels",
)
_ROOT = Path(__file__).parent.parent


def train(
    settings: TrainSettings,
    model: str,
    protocol: str,
    *,
    sequences: Path,
    checkpoint: Path,
    runs: Path,
    start: Path | None = None,
) -> None:
    """Train, resume or merely copy the run of these settings, this data and this code; write `checkpoint`.

    `start`: the folder of the stored model that `warm_start` names. Ctrl-C ends it with status 130, SIGTERM with 143.

    Raises:
        StateError: there are no sequences, nothing to train or validate on, or training cannot begin at `start`.
        SettingsError: the attention backend does not run here, or the loss is no longer finite.
        TrainingInterrupted: after Ctrl-C or SIGTERM.
    """
    command = f"--model {model} --protocol {protocol}"
    data, device = load_sequences(sequences), choose_device()
    hashes = {"data": hash_files([sequences]), "code": hash_files(_ROOT / path for path in CODE)}
    run = Run(runs, _hash(settings, model, protocol, hashes, device))
    try:
        with raising_on_signals(), run.locked():
            if run.is_finished:
                log.info("this very run is finished: copying its checkpoint from %s", run.folder)
            else:
                trainer = Trainer(settings, model, data, device)
                if start is not None:
                    _begin_at(start, trainer, sequences)
                _train_run(run, trainer, protocol, sequences, hashes["code"])
            run.hand_out(checkpoint)
    except TrainingInterrupted:
        log.info("interrupted; %s; resume with: python -m components train %s", _progress_of(run), command)
        raise
    prune_runs(runs)
    log.info("checkpoint written to %s; next: python -m components evaluate %s", checkpoint, command)


def choose_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _begin_at(folder: Path, trainer: Trainer, sequences: Path) -> None:
    """Put the weights of an earlier model into the trainer's; a run that is resumed replaces them by its own."""
    start, data = read_start(folder), trainer.sequences
    refuse(start, trainer.name, trainer.settings, data.split)
    known = start.put_into(trainer.model, read_keys(sequences))
    log.info("warm start from %s, which knows %d of the %d items", start.name, known, data.num_items)


def _train_run(run: Run, trainer: Trainer, protocol: str, sequences: Path, code_hash: str) -> None:
    """Train `trainer` from where `run` stands to its end, and leave the checkpoint in the run's folder."""
    state = run.load()
    _print_start(run, trainer, protocol, state)
    state = trainer.fit(state, run.save)
    best = state.epochs[best_epoch(state.epochs) - 1]
    log.info("best epoch: %d of %d, %s %.4f", best["epoch"], len(state.epochs), VALID_METRIC, best[VALID_METRIC])
    refit = _refit(run, trainer, best["epoch"]) if trainer.settings.refit else None
    facts = _describe(trainer, protocol, state, refit, code_hash)
    weights, selected = (refit.weights, state.best_weights) if refit else (state.best_weights, None)
    with run.finishing() as folder:
        write_checkpoint(folder, weights, facts, catalogue=sequences / "catalogue.parquet", selected=selected)


def _refit(run: Run, trainer: Trainer, num_epochs: int) -> TrainingState:
    """Train once more from the start, on train and validation, as far along the schedule as validation found best."""
    data = join_validation(trainer.sequences)
    again = Trainer(trainer.settings, trainer.name, data, trainer.device, num_epochs=num_epochs)
    state = run.refit.load()
    done = len(state.epochs) if state else 0
    log.info("refit on train and validation, %d targets: %d of %d epochs done", again.num_targets, done, num_epochs)
    return again.fit(state, run.refit.save)


def _describe(
    trainer: Trainer, protocol: str, state: TrainingState, refit: TrainingState | None, code_hash: str
) -> dict[str, Any]:
    """Return checkpoint.json."""
    data: Sequences = trainer.sequences
    return {
        "model": trainer.name,
        "protocol": protocol,
        "settings": dict(vars(trainer.settings)),
        "num_items": data.num_items,
        "best_epoch": best_epoch(state.epochs),
        "epochs": state.epochs,
        "refit_epochs": refit.epochs if refit else [],
        "data_hash": data.split["data_hash"],
        "code_hash": code_hash,
        "environment": describe_environment(trainer.device),
        "split": data.split,
        "popular": find_popular(data, before="test" if refit else "valid"),
    }


def _hash(settings: TrainSettings, model: str, protocol: str, hashes: dict[str, str], device: torch.device) -> str:
    return hash_run(
        model=model,
        protocol=protocol,
        settings=dict(vars(settings)),
        hashes=hashes,
        environment=describe_environment(device),
    )


def _progress_of(run: Run) -> str:
    if run.is_finished:
        return f"training itself is finished ({run.folder})"
    epochs, again = run.saved_epochs(), run.refit.saved_epochs()
    saved = f"{len(epochs)} epochs" + (f" and {len(again)} of the refit" if again else "")
    return f"{saved} are saved in {run.folder}" if epochs else "no epoch was finished yet"


def _print_start(run: Run, trainer: Trainer, protocol: str, state: TrainingState | None) -> None:
    settings, data, part = trainer.settings, trainer.sequences, trainer.validation
    on_gpu = trainer.device.type == "cuda"
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    table = data.num_items * settings.dim
    print_header(
        f"training {trainer.name} on {protocol}",
        {
            "device": f"{torch.cuda.get_device_name()}: the first GPU" if on_gpu else "cpu: there is no GPU",
            "backend": _describe_backend(trainer),
            "dtype": "float32: half precision is slower on a CPU, and here a GPU must agree with it",
            "threads": f"{settings.num_threads}: train.{trainer.name}.num_threads",
            "data": f"{trainer.num_targets:,} targets in {trainer.num_windows:,} windows of up to {settings.max_len};"
            f" {data.num_items:,} items",
            "validation": f"{len(part.targets):,} targets of {part.num_users:,} users" if part else "none: a refit",
            "parameters": f"{weights:,}, {weights - table:,} of them outside the item table",
            "steps": f"{trainer.num_batches:,} an epoch of {settings.batch_size} windows each",
            "run": f"{run.folder}",
        },
    )
    if state is not None:
        log.info("resuming after epoch %d of %d from %s", len(state.epochs), settings.epochs, run.folder)


def _describe_backend(trainer: Trainer) -> str:
    try:
        backend, reason = choose_backend(trainer.device, trainer.settings.backend)
    except ValueError as error:
        raise SettingsError(str(error), where=f"train.{trainer.name}.backend") from None
    of_attention = "" if trainer.name == "hstu" else "torch's softmax attention; dropout by "
    return f"{of_attention}{backend}: {reason}"
