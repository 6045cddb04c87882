"""What each lever of the model is worth: every one changed alone, on one log, with the same number of epochs.

    python -m benchmarks.bench_ablation --path ml-1m.zip --recipe recipes/ml-1m.yaml --users-below 3000
    python -m benchmarks.bench_ablation --path ml-1m.zip --recipe recipes/ml-1m.yaml --levers "no bias" "bias of time"

The base is the recipe with BUDGET over it; a row compares a lever with the base, or with the lever it builds on. The
difference is paired by user; its interval resamples users and says nothing of the training's own chance: the rows
`seed 2` and `seed 3` change nothing but the seed and show how large that is. The steps are those of bench_quality;
what is trained and evaluated in artifacts/quality/<log>/ is not done again. Rows are added to
benchmarks/results/ablation.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import bench_quality, recording
from benchmarks.bench_quality import Cell, Users
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.ranking.paired import compare_users
from components.settings import load_settings, use_recipe

MODEL, SEED = "hstu", 1
BUDGET = ("loss=shared", "num_negatives=512", "epochs=20", "patience=20", "refit=false")
DIFFERENCE = ("difference", "low", "high", "p_value", "num_users")
COLUMNS = ("lever", "against", "minutes", "best_epoch", "valid_ndcg@10", "ndcg@10", "hr@10", *DIFFERENCE)


@dataclass(frozen=True)
class Lever:
    """A change of train.hstu, and the lever whose changes come before it."""

    name: str
    changes: tuple[str, ...]
    against: str = "base"


LEVERS = (
    Lever("seed 2", ("seed=2",)),
    Lever("seed 3", ("seed=3",)),
    Lever("loss: shared, 128 negatives", ("num_negatives=128",)),
    Lever("loss: sampled per position, 128", ("loss=sampled", "num_negatives=128")),
    Lever("loss: in batch, logQ", ("loss=in_batch",)),
    Lever("loss: gBCE, 512 negatives", ("loss=gbce",)),
    Lever("loss: full softmax", ("loss=full",)),
    Lever("no bias", ("bias=none",)),
    Lever("bias of position", ("bias=position",)),
    Lever("bias of time", ("bias=time",)),
    Lever("softmax attention", ("attention=softmax",), against="no bias"),
    Lever("two heads of 25", ("num_heads=2", "head_dim_qk=25", "head_dim_v=25")),
    Lever("bias of each head", ("bias_per_head=true",), against="two heads of 25"),
    Lever("4 blocks", ("num_blocks=4",)),
    Lever("8 blocks", ("num_blocks=8",)),
    Lever("D 100", ("dim=100", "head_dim_qk=100", "head_dim_v=100")),
    Lever("feed-forward, GELU", ("feed_forward=gelu",)),
    Lever("feed-forward, SwiGLU", ("feed_forward=swiglu",)),
    Lever("gated residual", ("gated_residual=true",)),
    Lever("gated residual and SwiGLU", ("gated_residual=true",), against="feed-forward, SwiGLU"),
    Lever("mixture-of-logits head", ("head=mixture",)),
    Lever("stochastic length 1.6", ("stochastic_length=1.6",)),
    Lever("random windows", ("windows=random",)),
    Lever("request time hidden", ("request_time_dropout=1.0",)),
    Lever("request time hidden half the time", ("request_time_dropout=0.5",)),
    Lever("two cosine cycles", ("cycles=2",)),
    Lever("batch 128", ("batch_size=128",)),
    Lever("no dropout", ("dropout=0.0",)),
    Lever("refit", ("refit=true",)),
)


def gather_changes(lever: Lever) -> tuple[str, ...]:
    """Return the changes of the levers it builds on, then its own; the later one of a key counts."""
    if lever.against == "base":
        return lever.changes
    return (*gather_changes(find_lever(lever.against)), *lever.changes)


def find_lever(name: str) -> Lever:
    """Return the lever of that name; `base` changes nothing.

    Raises:
        KeyError: there is none.
    """
    return Lever("base", ()) if name == "base" else {lever.name: lever for lever in LEVERS}[name]


def make_cell(lever: Lever, args: argparse.Namespace) -> Cell:
    """Return the lever as the recipe, the budget and its changes make it."""
    folder = args.folder / args.path.stem
    name = f"ablation-{_place(lever)}"  # of files that a run beside this one must not write
    params = folder / f"params-{name}.yaml"
    params.write_text(args.params.read_text(encoding="utf-8"), encoding="utf-8")
    keys = {"seed": str(SEED)} | dict(change.split("=") for change in (*BUDGET, *args.set, *gather_changes(lever)))
    for recipe in [*args.recipe, bench_quality.write_recipe(f"train.{MODEL}", keys, folder / f"{name}.yaml")]:
        use_recipe(recipe, params)
    return Cell(lever.name, MODEL, args.protocol, load_settings(params), folder)


def _place(lever: Lever) -> int:
    return 1 + LEVERS.index(lever) if lever in LEVERS else 0


def run_cell(cell: Cell) -> Path:
    """Train and evaluate it, where that was not done yet; return its folder."""
    return bench_quality.run_seed(cell, cell.settings.train[MODEL].seed)


def compare(cell: Cell, folder: Path, other: Path) -> Row:
    """Return the paired difference of the headline metric on the test part, `folder` minus `other`."""
    settings, protocol = cell.settings.evaluate, cell.protocol
    a, b = (bench_quality.average(cell, [where], protocol, settings.headline_metric) for where in (folder, other))
    options = {"samples": settings.bootstrap_samples, "confidence": settings.confidence}
    paired = asdict(compare_users(_values(a, a), _values(b, a), **options, seed=SEED))
    return {name: paired[name] for name in DIFFERENCE}


def _values(users: Users, order: Users) -> torch.Tensor:
    return torch.tensor([users[user] for user in order], dtype=torch.float64)


def describe(lever: Lever, args: argparse.Namespace, facts: Row) -> Row:
    """Run a lever, and what it is compared with; return its row."""
    cell = make_cell(lever, args)
    bench_quality.build_sequences(args, cell.settings, cell.folder)
    folder = run_cell(cell)
    row = facts | {"log": cell.folder.name, "protocol": cell.protocol, "lever": lever.name}
    row |= {"against": lever.against, "changes": " ".join(gather_changes(lever))}
    row |= {"weights": bench_quality.count_weights(folder)}
    row |= bench_quality.describe_seed(cell, cell.settings.train[MODEL].seed, folder, args.users_below)
    if lever.name == "base":
        return row | {"against": ""} | dict.fromkeys(DIFFERENCE, "")
    return row | compare(cell, folder, run_cell(make_cell(find_lever(lever.against), args)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    bench_quality.add_log_options(parser)
    names = ["base", *(lever.name for lever in LEVERS)]
    parser.add_argument("--levers", nargs="+", choices=names, default=names, metavar="LEVER", help=", ".join(names))
    parser.add_argument("--set", action="append", default=[], help="a key of train.hstu for all: epochs=10")
    parser.add_argument("--protocol", default="leave_one_out")
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "ablation.csv")
    args = parser.parse_args(arguments)
    args.protocols = [args.protocol]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the levers; a row is appended when it is done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    (args.folder / args.path.stem).mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = recording.describe_run("benchmarks.bench_ablation", arguments, device, 1)
    rows = []
    for number, name in enumerate(args.levers, 1):
        log.info("lever %d of %d: %s", number, len(args.levers), name)
        rows.append(describe(find_lever(name), args, facts))
        recording.append_rows(args.results, rows[-1:])
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
