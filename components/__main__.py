"""The command line: `python -m components <step>`. Each step is imported inside its own command, so help is instant."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from components.console import log, setup_logging
from components.errors import HstuflowError, SettingsError
from components.locks import alone
from components.settings import ModelName, Protocol, load_settings

DATA = Path("data")
ARTIFACTS = Path("artifacts")
REPORTS = Path("reports")
REGISTRY = Path("registry")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="From event log to served model."
)

Model = Annotated[ModelName, typer.Option(help="which model")]
Split = Annotated[Protocol, typer.Option(help="which way of splitting the log")]


@app.command()
def ingest(
    source: Annotated[str | None, typer.Option(help="movielens-100k, grouplens, table, database, synthetic")] = None,
    mode: Annotated[str | None, typer.Option(help="replace | append: keep what is held, add the new files")] = None,
    path: Annotated[str | None, typer.Option(help="file, folder, glob or URL")] = None,
    query: Annotated[str | None, typer.Option(help="SQL of the source database; {night} is a day")] = None,
    night: Annotated[str | None, typer.Option(help="that day, 2024-03-05; default: yesterday, UTC")] = None,
    columns: Annotated[str | None, typer.Option(help="user_id=userId,item_id=movieId,timestamp=ts,...")] = None,
    timestamp_unit: Annotated[str | None, typer.Option(help="auto | s | ms | us | iso")] = None,
    items: Annotated[str | None, typer.Option(help="item table: file or URL")] = None,
    item_columns: Annotated[str | None, typer.Option(help="item_id=id,title=name,genres=tags")] = None,
    synthetic: Annotated[str | None, typer.Option(help="users=156250,items=20000,months=36,seed=1,...")] = None,
    replace: Annotated[bool, typer.Option(help="let a different source replace what data/ holds")] = False,
) -> None:
    """Bring an event log into data/."""
    from components import ingestion

    options = {
        "source": source,
        "mode": mode,
        "path": path,
        "query": query,
        "night": night,
        "columns": _pairs(columns, "--columns"),
        "timestamp_unit": timestamp_unit,
        "items": items,
        "item_columns": _pairs(item_columns, "--item-columns"),
        "synthetic": _pairs(synthetic, "--synthetic"),
    }
    with alone(ARTIFACTS, "an ingestion"):
        ingestion.ingest(load_settings().ingest, options, data=DATA, replace=replace)


@app.command()
def validate() -> None:
    """Judge data/ by the expectation suite; quarantine bad rows or stop."""
    _end_with_starter()
    from components import validation

    validation.validate(
        load_settings().validate_,
        data=DATA,
        quarantine=ARTIFACTS / "quarantine.parquet",
        report=REPORTS / "validation.json",
        docs=REPORTS / "data_docs",
        promoted_profile=REGISTRY / "profile.json",
        judged=ARTIFACTS / "validated",
    )


@app.command()
def sequences() -> None:
    """Split the log by time and write jagged sequences."""
    _end_with_starter()
    from components import sequences as step

    settings = load_settings()
    step.build_sequences(
        settings.sequences,
        settings.protocols,
        data=DATA,
        quarantine=ARTIFACTS / "quarantine.parquet",
        out=ARTIFACTS / "sequences",
    )


@app.command()
def train(model: Model = "hstu", protocol: Split = "time_split") -> None:
    """Train one model on one protocol's training part."""
    _end_with_starter()
    from components import training, warm_start

    sections = load_settings().train
    if model not in sections:
        raise SettingsError(
            "has no section for this model", where="params.yaml, train", observed=", ".join(sections), expected=model
        )
    settings = sections[model]
    start = warm_start.find_start(settings.warm_start, protocol)
    training.train(
        settings if start else settings.model_copy(update={"warm_start": None}),
        model,
        protocol,
        sequences=ARTIFACTS / "sequences" / protocol,
        checkpoint=ARTIFACTS / "checkpoints" / protocol / model,
        runs=ARTIFACTS / "runs",
        start=start,
    )


@app.command()
def evaluate(model: Model = "hstu", protocol: Split = "time_split") -> None:
    """Rank the whole catalogue for every held-out event, beside the baselines."""
    _end_with_starter()
    from components import evaluation

    evaluation.evaluate(
        load_settings().evaluate,
        model,
        protocol,
        sequences=ARTIFACTS / "sequences" / protocol,
        checkpoint=ARTIFACTS / "checkpoints" / protocol / model,
        out=ARTIFACTS / "evaluation" / protocol / model,
    )


@app.command()
def report() -> None:
    """Merge the evaluations into reports/metrics.json, gate.json and report.html."""
    _end_with_starter()
    from components import report as step

    settings = load_settings()
    step.write_report(settings, artifacts=ARTIFACTS, reports=REPORTS)


@app.command()
def package() -> None:
    """Build the Bento from the checkpoint and export it."""
    _end_with_starter()
    from components import packaging

    settings = load_settings()
    packaging.package(settings.package, artifacts=ARTIFACTS, reports=REPORTS)


@app.command()
def challenge() -> None:
    """Judge the packaged model beside the champion on events that neither has seen."""
    from components import challenge as step

    step.challenge(load_settings(), artifacts=ARTIFACTS, reports=REPORTS, registry=REGISTRY)


@app.command()
def promote(
    again: Annotated[bool, typer.Option("--again", help="even where it was rolled back")] = False,
) -> None:
    """Make the packaged model the champion unless gate or challenge refused it."""
    from components import registry

    registry.promote(artifacts=ARTIFACTS, reports=REPORTS, registry=REGISTRY, again=again)


@app.command("warm-start")
def warm_start() -> None:
    """Let the next training start from the champion, where it can: sets warm_start in params.yaml."""
    from components import warm_start as step

    with alone(ARTIFACTS, "warm-start"):
        step.choose_start(load_settings(), artifacts=ARTIFACTS, registry=REGISTRY)


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option(help="tag of an earlier champion; default: the one before")] = None,
    why: Annotated[str | None, typer.Option(help="for registry/decisions.jsonl")] = None,
) -> None:
    """Make an earlier champion the champion again."""
    from components import registry

    registry.rollback(registry=REGISTRY, to=to, why=why)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for every one")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="port to listen on")] = 3000,
) -> None:
    """Serve the champion: POST /recommend."""
    from components import registry

    registry.serve(artifacts=ARTIFACTS, registry=REGISTRY, host=host, port=port)


@app.command()
def monitor(
    requests: Annotated[Path, typer.Option(help="the service's HSTUFLOW_REQUESTS")],
) -> None:
    """Compare what the service saw with training: reports/monitoring.html and .json."""
    from components import monitoring

    monitoring.monitor(
        load_settings().monitor,
        requests=requests,
        data=DATA,
        artifacts=ARTIFACTS,
        registry=REGISTRY,
        reports=REPORTS,
    )


@app.command()
def score(
    k: Annotated[int, typer.Option(min=1, help="items a user")] = 20,
    out: Annotated[Path, typer.Option(help="folder; what a killed run left there is continued")] = ARTIFACTS / "scores",
    tag: Annotated[str | None, typer.Option(help="Bento or model; default: the champion")] = None,
    at: Annotated[int | None, typer.Option(help="seconds: when it is shown; default: the log's last event")] = None,
    users_a_part: Annotated[int, typer.Option(min=1, help="users in one Parquet file")] = 5_000,
    replace: Annotated[bool, typer.Option("--replace", help="what is of another model, log or k")] = False,
) -> None:
    """Write the top k of every user of the log to Parquet."""
    from components import scoring

    scoring.score(
        k=k,
        out=out,
        data=DATA,
        artifacts=ARTIFACTS,
        registry=REGISTRY,
        tag=tag,
        at=at,
        users_a_part=users_a_part,
        replace=replace,
    )


@app.command()
def summary() -> None:
    """Print the closing table of the last run: metrics beside baselines, paths, examples, next command."""
    from components import report as step

    step.print_summary(load_settings(), artifacts=ARTIFACTS, reports=REPORTS)


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="checkpoint folder, Bento tag, git revision or baseline; commas between seeds")
    ],
    b: Annotated[str, typer.Argument(help="the same")],
    protocol: Annotated[Protocol | None, typer.Option(help="default: report.headline_protocol of params.yaml")] = None,
    json: Annotated[Path | None, typer.Option(help="write the answer to this file, too")] = None,
) -> None:
    """Print the paired table of two models: is A better than B, or cannot that be told?"""
    from components import compare as comparison

    settings = load_settings()
    chosen = protocol or settings.report.headline_protocol
    comparison.compare(settings.evaluate, a, b, protocol=chosen, artifacts=ARTIFACTS, out=json)


@app.command()
def backtest(
    first: Annotated[str, typer.Option("--from", help="first night, as in 2000-08-01")],
    last: Annotated[str, typer.Option("--to", help="last night at the latest")],
    every: Annotated[int, typer.Option(min=1, help="days between two nights")] = 1,
    every_user: Annotated[int, typer.Option(min=1, help="only every n-th user, to be quick")] = 1,
) -> None:
    """Replay the nightly cycle over history: quality over time, champion changes, what a frozen model would lose."""
    from components import backtest as step
    from components import sequences, training
    from components.backtesting.nights import make_plan

    plan = make_plan(first, last, every, every_user)
    build, train = sequences.build_sequences, training.train
    step.backtest(load_settings(), plan, build=build, train=train, data=DATA, artifacts=ARTIFACTS, reports=REPORTS)


@app.command()
def lineage(
    tag: Annotated[
        str | None, typer.Argument(help="an answer's model.bento or model.tag; hstuflow:latest is the champion")
    ] = None,
    user: Annotated[str | None, typer.Option(help="instead of a tag: which stored models saw this user")] = None,
    json: Annotated[Path | None, typer.Option(help="write all of it to this file, too")] = None,
) -> None:
    """Say where a model comes from: data, code, parameters, environment, metrics, decisions. Or who saw a user."""
    from components import lineage as tracing

    if (tag is None) == (user is None):
        raise SettingsError("needs either a tag or --user", where="lineage", observed="both" if tag else "neither")
    if user is not None:
        tracing.lineage_of_user(user, root=Path(), registry=REGISTRY, out=json)
    elif tag is not None:
        tracing.lineage(tag, registry=REGISTRY, out=json)


@app.command()
def forget_user(
    user: Annotated[str, typer.Option(help="the id as the source writes it")],
    store: Annotated[str | None, typer.Option(help="URL of the service's histories, to forget the user there")] = None,
    requests: Annotated[Path, typer.Option(help="the service's log of requests (HSTUFLOW_REQUESTS)")] = Path(
        "requests"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
) -> None:
    """Remove a person from the log, what is made of it and DVC's old versions; say which models saw the person."""
    from components import forgetting

    with nullcontext() if dry_run else alone(ARTIFACTS, "forget-user"):
        forgetting.forget_user(user, root=Path(), registry=REGISTRY, store=store, requests=requests, dry_run=dry_run)


@app.command()
def use(recipe: Annotated[Path, typer.Argument(help="recipes/<name>.yaml")]) -> None:
    """Write a recipe's keys into params.yaml, keeping its comments."""
    from components import settings

    changed = settings.use_recipe(recipe)
    log.info("params.yaml: %s", f"changed {', '.join(changed)}" if changed else f"already as {recipe} says")


def _end_with_starter() -> None:
    """From here on a killed dvc or flow takes this stage along, or it would write over what the next run writes.

    First of all, because torch's import takes seconds.
    """
    from components.fitting import lifeline

    lifeline.end_with_ancestors()


def _pairs(text: str | None, option: str) -> dict[str, str] | None:
    """Parse 'a=b,c=d'."""
    if text is None:
        return None
    pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(p.strip() for p in pair) for pair in pairs):
        raise SettingsError("cannot be read", where=option, observed=text, expected="user_id=uid,item_id=sku,...")
    return {name.strip(): value.strip() for name, value in pairs}


def main() -> None:
    """Run one command; an HstuflowError becomes one line on stderr and an exit status (`--debug`: its traceback)."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    setup_logging()
    try:
        app()
    except HstuflowError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    except Exception as error:
        if debug or not _is_full_disk(error):
            raise
        sys.stderr.write(
            f"error: there is no room on the disk ({error}). Nothing is half-written: make room, then run it again\n"
        )
        sys.exit(HstuflowError.exit_status)


def _is_full_disk(error: BaseException) -> bool:
    """Whether this, or what it came from, is the system's word for no room; some libraries pass on its text alone."""
    texts = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    if any(text in str(error) for text in texts):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and _is_full_disk(before)


if __name__ == "__main__":
    main()
