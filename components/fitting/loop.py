"""The optimisation itself, free of files: model, loss, optimizer, schedule, epochs, early stopping.

Every random number is a function of (seed, epoch) and the learning rate one of the step, so an epoch's result depends
only on the state before it. Runs wherever torch and numpy do.
Shapes: L rows of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from components.console import Progress, log
from components.dataset import Batch, Sequences, find_training_windows, iterate_training_batches, rows_of_ranges
from components.errors import SettingsError, StateError
from components.fitting.allocator import keep_freed_memory
from components.fitting.optimizer import AdamW
from components.fitting.runs import TrainingState, Weights
from components.fitting.selection import ValidationPart
from components.model import build_model
from components.model.losses import make_loss

if TYPE_CHECKING:
    from components.settings import TrainSettings

VALID_METRIC = "valid_ndcg@10"
_LEARNING, _NEGATIVES = 0, 1  # streams of random numbers within an epoch


class Trainer:
    """One model on its way: `fit` runs the epochs that are left and hands the state to `save` after each.

    With `num_epochs` it is a refit: it takes the first so many epochs of the schedule and measures no validation.

    Raises:
        StateError: train has no user with two events, or validation nothing to measure.
    """

    def __init__(
        self,
        settings: TrainSettings,
        name: str,
        sequences: Sequences,
        device: torch.device,
        *,
        num_epochs: int | None = None,
    ) -> None:
        self.settings, self.name, self.sequences, self.device = settings, name, sequences, device
        self.num_epochs = num_epochs
        windows = find_training_windows(sequences, settings.max_len)
        if len(windows) == 0:
            raise StateError("train has no user with two events", todo="Ingest a longer log")
        self.num_windows = len(windows)
        self.num_targets = int((windows[:, 1] - windows[:, 0]).sum())
        self.num_batches = -(-self.num_windows // settings.batch_size)
        self.validation = ValidationPart(sequences, settings.max_len) if num_epochs is None else None
        torch.manual_seed(settings.seed)
        self.model = build_model(name, settings, sequences.num_items).to(device)
        counts_X = count_targets(sequences, settings.max_len, settings.windows)
        self.loss = make_loss(settings, sequences.num_items, item_counts=counts_X, head=self.model.head)
        self.optimizer = AdamW(self.model, weight_decay=settings.weight_decay)
        self._events_per_second = 0.0

    def fit(self, state: TrainingState | None, save: Callable[[TrainingState], None]) -> TrainingState:
        """Train from `state` (None: from the start) to the last epoch or to `patience` epochs without a better one.

        Raises:
            SettingsError: the loss or a weight is no longer finite; what was saved stays.
        """
        if state is None:
            state = TrainingState({}, {}, {}, [])
        else:
            self.model.load_state_dict(state.weights)
            self.optimizer.restore(state.moments)
        if self.device.type == "cpu":
            keep_freed_memory()
        with determinism(self.device, self.settings.num_threads):
            while not self._is_done(state.epochs):
                state = self._next_state(state)
                save(state)
                self._log_epoch(state.epochs)
        return state

    def _is_done(self, epochs: list[dict[str, Any]]) -> bool:
        if self.num_epochs is not None:
            return len(epochs) >= self.num_epochs
        waited = len(epochs) - best_epoch(epochs)
        if len(epochs) < self.settings.epochs and waited >= self.settings.patience:
            log.info("stopping early: no better %s for %d epochs", VALID_METRIC, waited)
            return True
        return len(epochs) >= self.settings.epochs

    def _next_state(self, state: TrainingState) -> TrainingState:
        started, epoch = time.monotonic(), len(state.epochs) + 1
        loss = self._run_epoch(epoch)
        self._check_weights(epoch)
        facts = {"epoch": epoch, "loss": loss}
        if self.validation is not None:
            facts[VALID_METRIC] = self.validation.measure_ndcg(self.model)
        epochs = [*state.epochs, facts | {"seconds": time.monotonic() - started}]
        weights = _copy(self.model.state_dict())
        is_best = self.validation is None or best_epoch(epochs) == epoch
        best_weights = weights if is_best else state.best_weights
        return TrainingState(weights, best_weights, _copy(self.optimizer.moments), epochs)

    def _log_epoch(self, epochs: list[dict[str, Any]]) -> None:
        last, total = epochs[-1], self.num_epochs or self.settings.epochs
        left = sum(facts["seconds"] for facts in epochs) / len(epochs) * (total - len(epochs))
        what = f"epoch {last['epoch']:>3}/{total}  loss {last['loss']:.4f}"
        how_well = "refit"
        if self.validation is not None:
            best = "best" if best_epoch(epochs) == last["epoch"] else "    "
            how_well = f"{VALID_METRIC} {last[VALID_METRIC]:.4f} {best}"
        rate = f"{self._events_per_second:>7,.0f} events/s"
        log.info("%s  %s  %5.1f s  %s  ETA %.0f s", what, how_well, last["seconds"], rate, left)

    def _run_epoch(self, epoch: int) -> float:
        """Go once over all training windows; return the mean loss of a target."""
        settings = self.settings
        torch.manual_seed(derive_seed(settings.seed, epoch, _LEARNING))
        negatives = torch.Generator(self.device).manual_seed(derive_seed(settings.seed, epoch, _NEGATIVES))
        batches = iterate_training_batches(
            self.sequences,
            max_len=settings.max_len,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            windows=settings.windows,
            stochastic_length=settings.stochastic_length,
            request_time_dropout=settings.request_time_dropout,
        )
        total, seen, started = 0.0, 0, time.monotonic()
        self.model.train()
        with Progress(f"epoch {epoch}/{self.num_epochs or settings.epochs}", self.num_batches) as progress:
            for number, (batch, targets) in enumerate(batches):
                step = (epoch - 1) * self.num_batches + number  # from 0, over all epochs
                loss = self._train_batch(batch, targets, step, negatives)
                if not math.isfinite(loss):
                    raise self._not_finite("loss", loss, f"epoch {epoch}, batch {number + 1} of {self.num_batches}")
                total, seen = total + loss * len(targets), seen + len(targets)
                self._events_per_second = seen / (time.monotonic() - started)
                progress.advance(loss=f"{total / seen:.4f}", rate=f"{self._events_per_second:,.0f} events/s")
        return total / seen

    def _train_batch(self, batch: Batch, targets: Tensor, step: int, negatives: torch.Generator) -> float:
        rate = learning_rate_at(self.settings, step, self.settings.epochs * self.num_batches)
        self.optimizer.zero_grad()
        y_LD = self.model(batch.to(self.device))
        loss = self.loss(y_LD, self.model.item_vectors(), targets.to(self.device), negatives)
        torch.autograd.backward(loss)
        self.optimizer.step(rate, step + 1)
        return float(loss.detach())

    def _check_weights(self, epoch: int) -> None:
        """A finite loss may leave infinite weights behind it; those must never become the saved state."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise self._not_finite(f"weight {name}", "nan or inf", f"epoch {epoch}, after its last batch")

    def _not_finite(self, what: str, observed: object, where: str) -> SettingsError:
        return SettingsError(
            f"{what} is not finite",
            where=f"train.{self.name}, {where}",
            observed=observed,
            expected="a finite number",
            todo=f"Lower train.{self.name}.learning_rate in params.yaml; the last good epoch is kept",
        )


def count_targets(sequences: Sequences, max_len: int, windows: str) -> Tensor:
    """Return (X,) float64: how often each item is a target in an epoch; with `random` windows, on average.

    These begin at any of n - N + 1 places of a history of n > N possible targets, so the j-th is in the window from
    max(j - N, 0) to min(j - 1, n - N) of them.
    """
    chosen = find_training_windows(sequences, max_len if windows == "last" else len(sequences.items))
    lengths = chosen[:, 1] - chosen[:, 0]
    rows = rows_of_ranges(chosen[:, 0] + 1, lengths)
    number = rows - np.repeat(chosen[:, 0], lengths)  # j
    spare = np.repeat(np.maximum(lengths - max_len, 0), lengths)
    places = np.minimum(number - 1, spare) - np.maximum(number - max_len, 0) + 1
    counts_X = np.bincount(sequences.items[rows], weights=places / (spare + 1), minlength=sequences.num_items)
    return torch.from_numpy(counts_X)


def best_epoch(epochs: list[dict[str, Any]]) -> int:
    """Return the epoch with the highest validation NDCG@10, the first of equals; 0 where none is finished."""
    return max(epochs, key=lambda facts: (facts[VALID_METRIC], -facts["epoch"]))["epoch"] if epochs else 0


def learning_rate_at(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Linear warm-up to `learning_rate`, then constant or `cycles` half cosines, each from there down to 0.

    The cycles share what the warm-up leaves of `total_steps` equally: SGDR (arXiv 1608.03983) without growth.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    done = done * settings.cycles
    done -= min(math.floor(done), settings.cycles - 1)  # of the cycle; the last ends in 1, not at the start of another
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2


def derive_seed(seed: int, epoch: int, stream: int) -> int:
    """Return an independent 63-bit seed for each (seed, epoch, stream)."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def determinism(device: torch.device, num_threads: int) -> Iterator[None]:
    """Fix the number of threads, and with more than one on a CPU let torch use deterministic algorithms only.

    One thread adds in one order anyway, and the switch imports torch._inductor: 2.2 s.
    """
    threads, switch = torch.get_num_threads(), device.type == "cpu" and num_threads > 1
    torch.set_num_threads(num_threads)
    if switch:
        torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        if switch:
            torch.use_deterministic_algorithms(mode=False)
        torch.set_num_threads(threads)


def _copy(tensors: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
