"""The paper's synthetic stream at a size that a CPU manages: HSTU pointwise, HSTU softmax, Transformer; one pass.

    python -m benchmarks.bench_stream --users 10000 --items 2000

Records come one after another, as in arXiv 2402.17152: record r of R is one user's whole sequence
over the items released by then, and is trained on once, in that order, in batches; the last tenth is held out. No model
has a relative bias. Every model tries the same learning rates with the first seed. The rate kept is the one with the
lowest loss over the last tenth of the steps: in one pass a batch's loss is measured before it is learned from. The
other seeds then run with that rate; a seed decides the stream and the weights alike.

HR@k ranks the whole catalogue for every held-out event with a history, and for the last event of each sequence. The
row `ceiling` is the expected HR@k of whoever knows each user's category probabilities and the release schedule.
Shapes: U users, K categories of a user, E events, L rows of a batch, X items.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from benchmarks import recording
from benchmarks.bench_training import OurStep
from components.dataset import Sequences, find_training_windows, gather_batch, iterate_in_blocks
from components.fitting.allocator import keep_freed_memory
from components.fitting.loop import learning_rate_at
from components.metrics import expected_hit_rate, rank_targets
from components.model import build_model
from components.settings import SyntheticSettings
from components.sources.synthetic import Population, draw_items, draw_population, num_released

HELD_OUT = 0.1  # of the records, the last ones
CUTOFFS = (10, 50)
MAX_LEN = 192  # the longest of a million Poisson(128) lengths is 185
COLUMNS = ("model", "rate", "seed", "kept", "loss", "hr@10", "hr@50", "last.hr@10", "last.hr@50", "cpu_s")
MODELS = {
    "hstu pointwise": ("hstu", {"attention": "pointwise", "feed_forward": "none"}),
    "hstu softmax": ("hstu", {"attention": "softmax", "feed_forward": "none"}),
    "transformer": ("sasrec", {"attention": "softmax", "feed_forward": "gelu"}),
}


@dataclass(frozen=True)
class Stream:
    """The records, in order; `ceiling` is the best expected HR@k of the held-out events, for each of CUTOFFS."""

    log: Sequences
    held_out: np.ndarray  # (V, 2) int64, windows as training's
    ceiling: list[float]


def make_stream(settings: SyntheticSettings) -> Stream:
    """Make `users` records, each at one place of the stream."""
    population = draw_population(settings, 2**40)  # of which only categories and lengths are used: no time passes
    lengths_U = np.maximum(population.left_U, 2).astype(np.int64).clip(max=MAX_LEN + 1)
    progress_U = np.arange(settings.users) / settings.users
    users_E = np.repeat(np.arange(settings.users), lengths_U)
    rng = np.random.default_rng([settings.seed, 2])
    items_E = draw_items(rng, settings, population, users_E, progress_U[users_E])
    ends = lengths_U.cumsum()
    starts, is_held_out = ends - lengths_U, progress_U >= 1 - HELD_OUT
    train_ends = np.where(is_held_out, starts, ends)
    times_E = np.arange(len(items_E))  # nobody looks: there is no bias
    log = Sequences(
        items_E.astype(np.int32),
        times_E,
        np.arange(settings.users),
        starts,
        train_ends,
        train_ends,
        ends,
        {"num_items": settings.items},
    )
    windows = np.stack([starts, ends - 1], axis=1)[is_held_out]
    return Stream(log, windows, _ceiling(settings, population, progress_U, is_held_out))


def _ceiling(
    settings: SyntheticSettings, population: Population, progress_U: np.ndarray, which: np.ndarray
) -> list[float]:
    """Fill the k places with the items of the likeliest categories, per item; average over the users."""
    chance_UK = np.diff(population.thresholds_UK[which], axis=1, prepend=0.0)
    released_U1 = num_released(settings, progress_U[which])[:, None]
    num_items_UK = -((population.categories_UK[which] - released_U1) // settings.categories)
    order_UK = np.argsort(-chance_UK / num_items_UK, axis=1)
    chance_UK, num_items_UK = (np.take_along_axis(x, order_UK, axis=1) for x in (chance_UK, num_items_UK))
    before_UK = num_items_UK.cumsum(axis=1) - num_items_UK
    return [
        float((chance_UK * np.clip(k - before_UK, 0, num_items_UK) / num_items_UK).sum(axis=1).mean()) for k in CUTOFFS
    ]


def settings_of(args: argparse.Namespace, model: str, rate: float, seed: int) -> SimpleNamespace:
    """Return the training settings, the same for all models but for what MODELS says."""
    return SimpleNamespace(
        max_len=MAX_LEN,
        dim=args.dim,
        num_blocks=args.blocks,
        num_heads=args.heads,
        head_dim_qk=args.dim // args.heads,
        head_dim_v=args.dim // args.heads,
        dropout=0.0,  # nothing is seen twice
        bias="none",
        bias_per_head=False,
        gated_residual=False,
        head="dot",
        mixture_query_vectors=1,
        mixture_item_vectors=1,
        request_time_dropout=0.0,
        backend="auto",
        loss=args.loss,
        num_negatives=args.negatives,
        gbce_calibration=0.75,
        temperature=0.05,
        batch_size=args.batch,
        learning_rate=rate,
        weight_decay=0.0,
        warmup_steps=args.warmup,
        schedule=args.schedule,
        cycles=1,
        seed=seed,
        **MODELS[model][1],
    )


def run_once(args: argparse.Namespace, model: str, rate: float, seed: int, stream: Stream) -> recording.Row:
    """Train one model over the stream, rank the held-out part, and return its row."""
    started = time.process_time()
    settings = settings_of(args, model, rate, seed)
    torch.manual_seed(seed)
    step = OurStep(settings, build_model(MODELS[model][0], settings, args.items), args.items)
    losses = train(step, settings, stream.log)
    row = {"model": model, "rate": rate, "seed": seed, "kept": "", "loss": float(np.mean(losses[-len(losses) // 10 :]))}
    return row | measure(step.model.eval(), stream) | {"cpu_s": time.process_time() - started}


def train(step: OurStep, settings: SimpleNamespace, log: Sequences) -> list[float]:
    """Go once over the records in their order; return each step's loss, measured before the step."""
    windows = find_training_windows(log, MAX_LEN)
    blocks = list(iterate_in_blocks(len(windows), settings.batch_size))
    losses = []
    for number, block in enumerate(blocks):
        step.rate = learning_rate_at(settings, number, len(blocks))
        loss = step.forward(*gather_batch(log, windows[block]))
        torch.autograd.backward(loss)
        step.update()
        losses.append(float(loss.detach()))
    return losses


@torch.inference_mode()
def measure(model: torch.nn.Module, stream: Stream) -> recording.Row:
    """Return HR@k over all held-out events with a history, and over the last events alone."""
    hits, last_rows, seen = [], [], 0
    for block in iterate_in_blocks(len(stream.held_out), 16):
        batch, targets_L = gather_batch(stream.log, stream.held_out[block])
        ranks = rank_targets(model(batch) @ model.item_vectors().T, targets_L)
        hits.append(torch.stack([expected_hit_rate(ranks, k) for k in CUTOFFS], dim=1))
        last_rows.append(seen + batch.offsets[1:] - 1)
        seen += len(targets_L)
    hits_EM = torch.cat(hits)
    return _name(hits_EM.mean(0), "") | _name(hits_EM[torch.cat(last_rows)].mean(0), "last.")


def _name(values: Tensor | Sequence[float], prefix: str) -> recording.Row:
    return {f"{prefix}hr@{k}": float(value) for k, value in zip(CUTOFFS, values, strict=True)}


def run_all(args: argparse.Namespace) -> Iterator[recording.Row]:
    """Yield the rows: per seed the ceiling; per model all rates with the first seed, the best one with the others."""
    streams = {seed: make_stream(stream_settings(args, seed)) for seed in args.seeds}
    for seed, stream in streams.items():
        row = dict.fromkeys(COLUMNS, "") | {"model": "ceiling", "seed": seed}
        yield row | _name(stream.ceiling, "") | _name(stream.ceiling, "last.")
    first, *others = args.seeds
    for model in args.models:
        tried = [run_once(args, model, rate, first, streams[first]) for rate in args.rates]
        best = min(tried, key=lambda row: row["loss"])
        best["kept"] = "yes"
        yield from tried
        for seed in others:
            yield run_once(args, model, best["rate"], seed, streams[seed]) | {"kept": "yes"}


def stream_settings(args: argparse.Namespace, seed: int) -> SyntheticSettings:
    """Return the stream's size."""
    return SyntheticSettings(users=args.users, items=args.items, categories=args.categories, months=1, seed=seed)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    sizes = {"users": 10_000, "items": 2_000, "categories": 100, "dim": 32, "heads": 1, "blocks": 2, "batch": 32}
    for name, value in (sizes | {"negatives": 128, "warmup": 50, "threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--loss", default="full", choices=["sampled", "shared", "full"])
    parser.add_argument("--schedule", default="constant", choices=["constant", "cosine"])
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "stream.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; each row is written as soon as it is there."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    facts = recording.describe_run("benchmarks.bench_stream", arguments, torch.device("cpu"), args.threads)
    case = f"U{args.users} X{args.items} C{args.categories} D{args.dim} H{args.heads} x{args.blocks} B{args.batch}"
    facts |= {"case": f"{case} {args.loss} {args.schedule}"}
    recording.print_facts(facts)
    rows = []
    for row in run_all(args):
        rows.append(facts | row)
        recording.append_rows(args.results, rows[-1:])
        recording.print_table(rows[-1:], COLUMNS)
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    raise SystemExit(main())
