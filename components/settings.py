"""params.yaml as frozen, checked objects: one class per section, units and ranges in the field docs.

    settings = load_settings()          # reads ./params.yaml
    settings.train["hstu"].dim

A key that is missing, misspelt or out of range raises SettingsError with its full name (`train.hstu.dim`).
"""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.errors import SettingsError
from components.files import replacing_file

PARAMS = Path("params.yaml")

ModelName = Literal["hstu", "sasrec"]
Protocol = Literal["time_split", "leave_one_out"]
SourceName = Literal["movielens-100k", "grouplens", "table", "database", "synthetic"]
IngestMode = Literal["replace", "append"]
TimestampUnit = Literal["auto", "s", "ms", "us", "iso"]
_NULL = "tag:yaml.org,2002:null"
# What pydantic's words for these mean to a person who edits params.yaml.
_WORDS = {"extra_forbidden": "no such key: is it misspelt?", "missing": "this key to be there"}
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A section of params.yaml: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SyntheticSettings(Section):
    """How large the made log of the source `synthetic` is (arXiv 2402.17152); a user has 128 events on average."""

    users: int = Field(default=10_000, ge=1, le=10_000_000)
    items: int = Field(default=20_000, ge=1)
    categories: int = Field(default=100, ge=1)
    months: int = Field(default=36, ge=1, le=600, description="from January 2020 on; the memory needed is one month's")
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _fit_together(self) -> SyntheticSettings:
        if 5 * self.categories > 2 * self.items:
            raise ValueError(
                f"{self.categories} categories need {-(-5 * self.categories // 2)} items: 2 of 5 come first"
            )
        return self


class IngestSettings(Section):
    """Where events come from. `python -m components ingest --source ... --path ...` overrides it without an edit."""

    source: SourceName = Field(description="default download, GroupLens archive, your table or database, made log")
    mode: IngestMode = Field("replace", description="append keeps what is held, adds new files; table, database")
    path: str | None = Field(None, description="file, folder, glob or fsspec URL; of a database its URL")
    query: str | None = Field(None, description="SQL of the source database; {night} stands for a day, with append")
    night: dt.date | None = Field(None, description="the day; null: yesterday, UTC")
    columns: dict[str, str] = Field(default_factory=dict, description="canonical name -> name in your table")
    timestamp_unit: TimestampUnit = Field("auto", description="auto decides by magnitude")
    items: str | None = Field(None, description="optional item table (title, genres, ...), same formats as path")
    item_columns: dict[str, str] = Field(default_factory=dict, description="as columns, for the item table")
    synthetic: SyntheticSettings | None = Field(None, description="size of the source synthetic; null: its defaults")


class ValidateSettings(Section):
    """What the log must look like; see components/validation.py for each expectation."""

    max_bad_fraction: Fraction = Field(description="rows that may be quarantined before the stage fails")
    max_month_bad_fraction: Fraction = Field(description="the same of each month that has 100 rows or more")
    min_users: int = Field(ge=1)
    min_items: int = Field(ge=1)
    min_events: int = Field(ge=1)
    min_timestamp: dt.date = Field(description="first plausible day, UTC, inclusive")
    max_timestamp: dt.date = Field(description="last plausible day, UTC, exclusive")
    min_rating: float
    max_rating: float
    max_tied_share: Fraction = Field(description="events that share their timestamp with another event of the user")
    min_volume_ratio: float = Field(ge=0, description="events now / events of the promoted version, at least")
    max_new_item_share: Fraction = Field(description="items the promoted version did not have, at most")
    max_new_user_share: Fraction = Field(description="users the promoted version did not have, at most")
    max_action_shift: Fraction = Field(description="total variation between action mixes, at most")


class SequencesSettings(Section):
    """The global time split: test is the last share of events by time, validation the one before it."""

    valid_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=0.5)


class TrainSettings(Section):
    """One model and how it is trained."""

    max_len: int = Field(ge=2, description="N: longest history in events; also the attention's constant divisor")
    dim: int = Field(ge=1, description="D: embedding width")
    num_blocks: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    head_dim_qk: int = Field(ge=1)
    head_dim_v: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    bias: Literal["none", "position", "time", "position+time"] = Field(description="relative attention bias")
    bias_per_head: bool = Field(description="each head its own bias tables (after MEANTIME, arXiv 2008.08273)")
    attention: Literal["pointwise", "softmax"] = Field(
        description="HSTU's; softmax needs bias none. SASRec's is softmax"
    )
    feed_forward: Literal["none", "gelu", "swiglu"] = Field(
        description="second half of a block: 4 D wide, or SwiGLU of as many weights; the published HSTU has none"
    )
    gated_residual: bool = Field(description="x + f(x) * sigmoid(x W), LiGR's (arXiv 2502.03417), instead of x + f(x)")
    head: Literal["dot", "mixture"] = Field(
        description="score of history and item: a cosine, or a mixture of logits (RAILS, arXiv 2407.15462)"
    )
    mixture_query_vectors: int = Field(ge=1, description="of head mixture: vectors a history is split into")
    mixture_item_vectors: int = Field(ge=1, description="of head mixture: vectors an item is split into")
    loss: Literal["sampled", "shared", "in_batch", "full", "gbce"] = Field(
        description="softmax over: negatives per position, negatives shared by the batch, the batch's own targets with"
        " logQ correction, the whole catalogue; or gBCE over shared negatives (arXiv 2308.07192)"
    )
    num_negatives: int = Field(ge=1, description="R, for sampled, shared and gbce")
    gbce_calibration: Fraction = Field(description="t of gBCE: 0 is plain BCE, 1 undoes the sampling's bias")
    temperature: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="sequences per step")
    learning_rate: float = Field(gt=0, description="AdamW, betas (0.9, 0.98)")
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    schedule: Literal["constant", "cosine"]
    cycles: int = Field(ge=1, description="half cosines over the training, each from the full rate to 0; mind patience")
    windows: Literal["last", "random"] = Field(
        description="part of a history longer than max_len that is trained on; random: another one every epoch"
    )
    stochastic_length: float | None = Field(
        gt=1,
        le=2,
        description="alpha of arXiv 2402.17152; training then mostly sees the latest part of long windows; null: all",
    )
    request_time_dropout: Fraction = Field(
        description="training rows that see their own event's time for the next one's; 1: nor does the model ever"
    )
    epochs: int = Field(ge=1, description="at most")
    patience: int = Field(ge=1, description="epochs without a better validation NDCG@10 before stopping")
    refit: bool = Field(
        description="train once more, on train and validation together, for as many epochs as validation found best"
    )
    warm_start: str | None = Field(
        pattern=r"^[^:]+:[0-9a-f]+$",
        description="tag of the Bento or model whose weights training starts from, under the time split; null: from "
        "scratch. `python -m components warm-start` sets it to the champion",
    )
    seed: int = Field(ge=0, lt=2**63)
    num_threads: int = Field(ge=1, le=4_096, description="CPU threads; two are 3-5x slower than one on a busy machine")
    backend: Literal["auto", "reference", "torch", "cpu", "triton"] = Field(
        description="of the kernels (kernels/choice.py); training says which and why"
    )

    @model_validator(mode="after")
    def _go_together(self) -> TrainSettings:
        if self.head == "mixture" and self.loss == "sampled":
            raise ValueError("head mixture has no loss sampled: use shared, full, in_batch or gbce")
        if self.loss == "in_batch" and self.stochastic_length is not None:
            raise ValueError("loss in_batch counts targets of whole windows, which stochastic_length cuts: use another")
        if self.warm_start is not None and self.refit:
            raise ValueError("warm_start needs refit: false, or the next night could not start from this model")
        return self


class EvaluateSettings(Section):
    """Full-catalogue ranking, its baselines and intervals."""

    cutoffs: tuple[PositiveInt, ...] = Field(min_length=1, description="k of HR@k and NDCG@k")
    headline_metric: str = Field(
        pattern=r"^((hr|ndcg)@[1-9][0-9]*|mrr)$",
        description="decides gate and recent window, leads the report",
    )
    recent_days: tuple[PositiveInt, ...] = Field(
        min_length=1, description="windows tried for recent popularity; validation chooses"
    )
    bootstrap_samples: int = Field(ge=100, description="user-level resamples")
    confidence: float = Field(gt=0.5, lt=1)
    block_megabytes: int = Field(ge=1, description="memory for one block of scores")
    num_examples: int = Field(ge=0, description="recommendations with titles shown in the report")

    @model_validator(mode="after")
    def _can_decide(self) -> EvaluateSettings:
        needed = math.ceil(5 / (1 - self.confidence))  # p is at least 1 in 1 + samples
        if self.bootstrap_samples < needed:
            raise ValueError(f"confidence {self.confidence} needs {needed} bootstrap_samples, or no p is small enough")
        return self


class ReportSettings(Section):
    """What the report and the gate lead with."""

    headline_protocol: Protocol


class PackageSettings(Section):
    """What is packaged and under which name."""

    model: ModelName
    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Bento name; a refused one becomes <name>-candidate")
    item_table: Literal["float32", "int8", "int4"] = Field(
        "float32", description="how item vectors are packaged; fewer bits come with their measured cost"
    )


class PromoteSettings(Section):
    """What a challenger must show before it follows the champion (components/challenging/rule.py)."""

    max_loss: float = Field(
        ge=0, description="delta: the paired interval in the headline metric may reach down to -this"
    )
    min_users: int = Field(
        ge=2, description="with events that neither has seen; of fewer the champion stays, undecided"
    )
    max_slice_loss: float = Field(ge=0, description="a slice may be clearly worse by this much")
    min_slice_users: int = Field(ge=2, description="smaller slices do not count")
    max_latency_ms: float = Field(gt=0, description="median of one answer to 200 events, on the machine that promotes")
    max_megabytes: float = Field(gt=0, description="of the exported Bento")
    max_score_difference: float = Field(ge=0, description="between the packaged model and the evaluated checkpoint")


class MonitorSettings(Section):
    """When what the service saw has moved so far from training that it is time to train again."""

    days: int = Field(ge=1, description="of the log of requests, the newest ones")
    horizon_days: int = Field(ge=1, description="after a request, in which its user's events count as outcomes")
    action_months: int = Field(ge=1, description="of the event log, the newest ones, whose actions are compared")
    max_requests: int = Field(ge=1, description="of more an even sample is read; 100,000 take 100 MB")
    min_requests: int = Field(ge=1, description="with fewer nothing is past its limit")
    min_users: int = Field(ge=1, description="with outcomes; with fewer the hit rate is not past its limit")
    max_unknown_share: Fraction = Field(description="events of unknown items, more than the test part had")
    max_length_psi: float = Field(gt=0, description="history lengths, above what chance gives; 0.25 is a lot")
    max_popularity_psi: float = Field(gt=0, description="popularity of the users' last items, likewise")
    max_action_shift: Fraction = Field(description="total variation between action mixes")
    min_hit_rate_ratio: Fraction = Field(description="online HR@10 over that of the test part; all of the interval")


class Settings(Section):
    """All of params.yaml."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    ingest: IngestSettings
    validate_: ValidateSettings = Field(alias="validate")
    sequences: SequencesSettings
    train: dict[ModelName, TrainSettings]
    evaluate: EvaluateSettings
    report: ReportSettings
    package: PackageSettings
    promote: PromoteSettings
    monitor: MonitorSettings

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        missing = [model for model in self.models if model not in self.train]
        if missing:
            raise ValueError(f"models lists {missing[0]}, but there is no section train.{missing[0]}")
        if "hstu" in self.train and self.train["hstu"].attention == "softmax" and self.train["hstu"].bias != "none":
            raise ValueError("train.hstu.attention is softmax, which has no bias: set train.hstu.bias to none")
        if self.package.model not in self.models:
            raise ValueError(f"package.model is {self.package.model}, but models does not list it")
        if self.report.headline_protocol not in self.protocols:
            raise ValueError(
                f"report.headline_protocol is {self.report.headline_protocol}, but protocols does not list it"
            )
        return self


def load_settings(path: Path = PARAMS) -> Settings:
    """Read and check params.yaml.

    Raises:
        SettingsError: the file is missing, is not YAML, or a key is wrong.
    """
    tree = _read_yaml(YAML(typ="safe"), path)
    return check_settings(tree, where=str(path))


def check_settings(tree: object, *, where: str) -> Settings:
    """Check a parsed params.yaml; raises SettingsError naming the first wrong key."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if not key:  # sections that do not fit together: the message says it all
            raise SettingsError(first["msg"].removeprefix("Value error, "), where=where) from None
        raise SettingsError(
            f"{key} is wrong",
            where=where,
            observed=repr(first.get("input"))[:80],
            expected=_WORDS.get(first["type"], first["msg"]),
            todo="components/settings.py describes every key",
        ) from None


def use_recipe(recipe: Path, params: Path = PARAMS) -> list[str]:
    """Write the keys of `recipe` into `params`, keep its comments, and return the dotted names that changed.

    Raises:
        SettingsError: a file cannot be read, or the result would not be valid (params.yaml then stays as it was).
    """
    return change_settings(_read_yaml(YAML(), recipe), params, where=str(recipe))


def change_settings(changes: dict[str, Any], params: Path = PARAMS, *, where: str) -> list[str]:
    """Write `changes` into `params` as `use_recipe` does; `where` they come from is for the error."""
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    tree = _read_yaml(yaml, params)
    changed = _merge(tree, changes)
    check_settings(_plain(tree), where=where)
    with replacing_file(params) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    return changed


def _read_yaml(yaml: YAML, path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError("no such file", where=str(path), todo="Run from the repository root") from None
    except OSError as error:  # a folder, no right to read it
        raise SettingsError("cannot be read", where=str(path), observed=error.strerror) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError("is not YAML", where=str(path), observed=str(error)) from None
    if not isinstance(tree, dict):
        observed = "nothing" if tree is None else type(_plain(tree)).__name__
        raise SettingsError(
            "holds no keys", where=str(path), observed=observed, expected="key: value, as in params.yaml"
        )
    return tree


def _merge(tree: dict[str, Any], changes: dict[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            changed += _merge(tree[key], value, f"{prefix}{key}.")
        elif tree.get(key) != value:
            tree[key] = value
            changed.append(f"{prefix}{key}")
    return changed


def _plain(tree: Any) -> Any:  # noqa: ANN401
    """Return `tree` without ruamel's comment-carrying types, which pydantic would show in its messages."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list) else tree
