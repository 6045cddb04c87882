"""How good a recipe is: the real steps from log to evaluation, for several seeds, a row each, and one over all seeds.

    python -m benchmarks.bench_quality --path ml-1m.zip --recipe recipes/ml-1m.yaml --seeds 1 2 3
    python -m benchmarks.bench_quality --path ml-1m.zip --recipe recipes/ml-1m.yaml --set train.hstu.loss=shared

Everything goes through components/: ingestion, validation, sequences, training, evaluation, with params.yaml, the
recipe's keys over it and those of --set over both. Intermediate results lie in artifacts/quality/<log>/; a run that
was stopped resumes there, and what is trained and evaluated is not done again. The epoch is chosen on validation. Rows
are added to benchmarks/results/quality.csv: metrics of the test part, averaged per user, then over users; [low, high]
resamples users. The row whose seed is `all` averages each user over the seeds first, so its interval is over users
for the mean of the seeds; ndcg_min and ndcg_max are the seeds' own spread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from ruamel.yaml import YAML

from benchmarks import recording
from benchmarks.recording import Row
from components.console import log, setup_logging
from components.errors import SettingsError
from components.files import read_json, write_json
from components.fitting.runs import hash_run
from components.metrics import bootstrap_interval
from components.settings import Settings, load_settings, use_recipe

METRICS = ("ndcg@10", "hr@10")
SUFFIXES = {"": "", "_unknown_time": ".unknown_time", "_untied": ".untied", "_unfiltered": ".unfiltered"}
SAMPLES, CONFIDENCE, BOOTSTRAP_SEED = 2_000, 0.95, 1
COLUMNS = ("log", "protocol", "name", "model", "seed", "best_epoch", "minutes", "valid_ndcg@10", *METRICS)
REVISION = "revision.json"  # of the code that trained and evaluated what lies beside it
Users = dict[int, float]  # user id -> metric


@dataclass(frozen=True)
class Cell:
    """One recipe on one protocol of one log."""

    name: str
    model: str
    protocol: str
    settings: Settings
    folder: Path  # artifacts/quality/<log>

    def trained(self, seed: int) -> Path:
        """Return the folder of one seed's checkpoint and evaluation, named by all that decides them but the code."""
        facts = self.settings.train[self.model].model_dump() | {"seed": seed}
        facts |= {"sequences": self.settings.sequences.model_dump()}
        return self.folder / "trained" / hash_run(model=self.model, protocol=self.protocol, **facts)


def prepare(args: argparse.Namespace) -> tuple[Settings, Path]:
    """Return the settings with recipe and --set in them, and the folder with the log's sequences."""
    folder = args.folder / args.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / f"params-{args.name}.yaml"
    params.write_text(args.params.read_text(encoding="utf-8"), encoding="utf-8")
    for recipe in args.recipe:
        use_recipe(recipe, params)
    for change in args.set:
        section, _, last = change.partition("=")[0].rpartition(".")
        value = change.partition("=")[2]
        use_recipe(write_recipe(section, {last: value}, folder / f"set-{args.name}.yaml"), params)
    return load_settings(params), folder


def write_recipe(section: str, keys: Mapping[str, str], path: Path) -> Path:
    """Write keys of a section, `train.hstu` and {"dim": "64"}, as a recipe of its own."""
    yaml = YAML(typ="safe")
    tree: Any = {key: yaml.load(value) for key, value in keys.items()}
    for part in reversed(section.split(".")):
        tree = {part: tree}
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    return path


def build_sequences(args: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Run ingestion, validation and sequences where this was not done yet.

    Raises:
        SettingsError: it was done with other settings.
    """
    from components import ingestion, sequences, validation

    made, settings_file = folder / "sequences", folder / "sequences_settings.json"
    wanted = {name: getattr(settings, name).model_dump(mode="json") for name in ("ingest", "validate_", "sequences")}
    if all((made / protocol / "split.json").exists() for protocol in args.protocols):
        if settings_file.exists() and read_json(settings_file) != wanted:
            raise SettingsError(
                "sequences were made with other settings of ingest, validate or sequences",
                where=str(made),
                todo="Name another --folder, or delete that one",
            )
        return
    data, quarantine = folder / "data", folder / "quarantine.parquet"
    options = {"source": args.source, "path": str(args.path)}
    ingestion.ingest(settings.ingest, options, data=data)
    validation.validate(
        settings.validate_,
        data=data,
        quarantine=quarantine,
        report=folder / "validation.json",
        docs=folder / "data_docs",
        promoted_profile=folder / "none.json",
        judged=folder / "validated",
    )
    sequences.build_sequences(settings.sequences, tuple(args.protocols), data=data, quarantine=quarantine, out=made)
    write_json(settings_file, wanted)


def run_seed(cell: Cell, seed: int) -> Path:
    """Train and evaluate one seed where that was not done yet; return its folder."""
    from components import evaluation, training

    folder, sequences = cell.trained(seed), cell.folder / "sequences" / cell.protocol
    if (folder / "evaluation").exists():
        log.info("seed %d was evaluated before; to do it again, delete %s", seed, folder / "evaluation")
        return folder
    settings = cell.settings.train[cell.model].model_copy(update={"seed": seed})
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        runs = cell.folder / "runs"
        training.train(settings, cell.model, cell.protocol, sequences=sequences, checkpoint=checkpoint, runs=runs)
    evaluation.evaluate(
        cell.settings.evaluate,
        cell.model,
        cell.protocol,
        sequences=sequences,
        checkpoint=checkpoint,
        out=folder / "evaluation",
    )
    write_json(folder / REVISION, recording.revision())
    return folder


def describe_seed(cell: Cell, seed: int, folder: Path, users_below: int | None) -> Row:
    """Return one seed's row."""
    facts = read_json(folder / "checkpoint" / "checkpoint.json")
    row: Row = {"seed": seed, "best_epoch": facts["best_epoch"], "epochs": len(facts["epochs"])}
    row["minutes"] = sum(epoch["seconds"] for epoch in facts["epochs"] + facts["refit_epochs"]) / 60
    row["revision"] = read_json(folder / REVISION) if (folder / REVISION).exists() else "unknown"
    return row | measure(cell, [folder], users_below)


def measure(cell: Cell, folders: Sequence[Path], users_below: int | None) -> Row:
    """Return the metrics of some seeds, each user averaged over them first."""
    row: Row = {}
    values = {name: average(cell, folders, f"{cell.protocol}.valid", name) for name in METRICS}
    row |= {f"valid_{name}": _mean(users) for name, users in values.items()}
    for name in METRICS:
        users = average(cell, folders, cell.protocol, name)
        low, high = _interval(users)
        row |= {name: _mean(users), f"{name}_low": low, f"{name}_high": high}
    for name in METRICS:
        for column, suffix in list(SUFFIXES.items())[1:]:
            row[name + column] = _mean(average(cell, folders, cell.protocol + suffix, name))
        below = {
            user: value
            for user, value in average(cell, folders, cell.protocol, name).items()
            if users_below is not None and user < users_below
        }
        row[f"{name}_users_below"] = _mean(below)
    seeds = [_mean(average(cell, [folder], cell.protocol, "ndcg@10")) for folder in folders]
    return row | {"ndcg_min": min(seeds), "ndcg_max": max(seeds), "users_below": users_below or ""}


def average(cell: Cell, folders: Sequence[Path], condition: str, metric: str) -> Users:
    """Average a metric of each user over the folders; empty where the condition was not measured."""
    found: dict[int, list[float]] = {}
    for folder in folders:
        filters = [("condition", "=", condition), ("model", "=", cell.model)]
        file = folder / "evaluation" / "per_user.parquet"
        table = pq.read_table(file, columns=["user_id", metric], filters=filters)
        for user, value in zip(table["user_id"].to_pylist(), table[metric].to_pylist(), strict=True):
            found.setdefault(user, []).append(value)
    return {user: sum(values) / len(values) for user, values in found.items()}


def _mean(users: Users) -> float | str:
    return sum(users.values()) / len(users) if users else ""


def _interval(users: Users) -> tuple[float, float]:
    values_U1 = torch.tensor(list(users.values()), dtype=torch.float64)[:, None]
    low, high = bootstrap_interval(values_U1, samples=SAMPLES, confidence=CONFIDENCE, seed=BOOTSTRAP_SEED)
    return float(low), float(high)


def run_cell(cell: Cell, args: argparse.Namespace, facts: Row) -> list[Row]:
    """Run every seed of a recipe on one protocol; each row is appended when it is done."""
    train = cell.settings.train[cell.model]
    shared = facts | {"log": cell.folder.name, "protocol": cell.protocol, "name": cell.name, "model": cell.model}
    shared |= {"changes": " ".join(args.set), "weights": ""}
    rows, folders = [], []
    for seed in args.seeds:
        folders.append(run_seed(cell, seed))
        shared["weights"] = count_weights(folders[-1])
        rows.append(shared | describe_seed(cell, seed, folders[-1], args.users_below))
        recording.append_rows(args.results, rows[-1:])
    if len(folders) > 1:
        revisions = " ".join(sorted({row["revision"] for row in rows}))
        each = {
            "revision": revisions,
            "seed": "all",
            "best_epoch": "",
            "epochs": train.epochs,
            "minutes": sum(r["minutes"] for r in rows),
        }
        rows.append(shared | each | measure(cell, folders, args.users_below))
        recording.append_rows(args.results, rows[-1:])
    return rows


def count_weights(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "checkpoint" / "weights.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - a file handle


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add what names the log, the recipe over params.yaml, and the folder of intermediate results."""
    parser.add_argument("--source", default="grouplens", help="reader of the log (components/sources)")
    parser.add_argument("--path", type=Path, required=True, help="the log, e.g. ml-1m.zip")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="recipes/<name>.yaml; may be repeated")
    parser.add_argument("--users-below", type=int, help="also average over the users with a smaller id")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("artifacts/quality"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_log_options(parser)
    parser.add_argument("--set", action="append", default=[], help="a key of params.yaml: train.hstu.dim=64")
    parser.add_argument("--name", help="of the row; default: the recipe's")
    parser.add_argument("--model", default="hstu")
    parser.add_argument("--protocols", nargs="+", default=["leave_one_out"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=recording.RESULTS / "quality.csv")
    args = parser.parse_args(arguments)
    args.name = args.name or "-".join(recipe.stem for recipe in args.recipe) or "params"
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe's seeds; an interrupted run goes on where it was."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setup_logging()
    settings, folder = prepare(args)
    build_sequences(args, settings, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = settings.train[args.model].num_threads
    facts = recording.describe_run("benchmarks.bench_quality", arguments, device, threads)
    rows = []
    for protocol in args.protocols:
        cell = Cell(args.name, args.model, protocol, settings, folder)
        log.info("%s of %s on %s, seeds %s", args.name, folder.name, protocol, args.seeds)
        rows += run_cell(cell, args, facts)
    return recording.close(args.results, rows, COLUMNS, {})


if __name__ == "__main__":
    sys.exit(main())
