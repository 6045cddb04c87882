"""How long attention takes on this CPU, alone and in a training step, beside a dense padded version of it.

    python -m benchmarks.bench_attention                  # ML-1M's shape: batch 128, N 200, D 50, 2 blocks, one thread
    python -m benchmarks.bench_attention --batch 16 --items 1682 --loss full

Lengths are drawn like ML-1M's (median 96 events, log-normal, cut at N). The versions take turns and CPU time is
counted, so that other work on the machine hurts little, and all alike. Adds rows to benchmarks/results/attention.csv.

Shapes: B sequences, N max_len, L rows, H heads, D width.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.dataset import Batch
from components.model import build_model, hstu
from components.model.losses import make_loss
from kernels import RelativeBias, hstu_attention

RESULTS = Path(__file__).parent / "results" / "attention.csv"


def dense_attention(
    q_LHD: Tensor, k_LHD: Tensor, v_LHD: Tensor, offsets: Tensor, *, max_len: int, bias: RelativeBias, backend: str = ""
) -> Tensor:
    """HSTU attention as published: everything padded to N, bias and scores as (B, H, N, N), plain autograd."""
    lengths = offsets.diff()
    filled_BN = torch.arange(max_len) < lengths[:, None]

    def pad(x: Tensor) -> Tensor:
        return x.new_zeros(*filled_BN.shape, *x.shape[1:]).masked_scatter(
            filled_BN.view(*filled_BN.shape, *[1] * (x.ndim - 1)), x
        )

    q, k, v = (pad(x).transpose(1, 2) for x in (q_LHD, k_LHD, v_LHD))
    timestamps, next_timestamps = (pad(x) for x in bias.times())
    gaps_BNN = (next_timestamps[:, :, None] - timestamps[:, None, :]).abs().clamp(min=1)
    buckets = (gaps_BNN.float().log() / 0.301).long().clamp(0, 128)
    places = torch.arange(max_len)
    assert bias.position_weight is not None
    assert bias.time_weight is not None
    rab_BNN = bias.position_weight[max_len - 1 + places - places[:, None]] + bias.time_weight[buckets]
    weights = torch.nn.functional.silu(q @ k.transpose(2, 3) + rab_BNN[:, None]) / max_len
    o_BNHD = (weights.tril() @ v).transpose(1, 2)
    return o_BNHD[filled_BN]


def attend_by(name: str, *tensors: Tensor, backend: str = "", **arguments: Any) -> Tensor:  # noqa: ANN401
    """Call a backend of the operator, whichever the caller asks for."""
    return hstu_attention(*tensors, backend=name, **arguments)


def made_batch(args: argparse.Namespace) -> tuple[Batch, Tensor]:
    """Return a batch with lengths like ML-1M's, bursts of ratings minutes apart and breaks of days, and its targets."""
    generator = torch.Generator().manual_seed(1)
    lengths = (4.56 + 1.04 * torch.randn(args.batch, generator=generator)).exp().long().clamp(16, args.max_len)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    num_rows = int(offsets[-1])
    breaks = torch.rand(num_rows + 1, generator=generator) < 0.02
    steps = torch.where(breaks, 5 * 86_400, torch.randint(60, (num_rows + 1,), generator=generator))
    times = steps.cumsum(0)
    items = torch.randint(args.items, (num_rows + 1,), generator=generator)
    return Batch(items[:-1], times[:-1], times[1:], offsets), items[1:]


def settings_of(args: argparse.Namespace, backend: str) -> Any:  # noqa: ANN401 - stands in for TrainSettings
    return SimpleNamespace(
        max_len=args.max_len,
        dim=args.dim,
        num_blocks=args.blocks,
        num_heads=args.heads,
        head_dim_qk=args.dim // args.heads,
        head_dim_v=args.dim // args.heads,
        dropout=0.2,
        bias="position+time",
        backend=backend,
        loss=args.loss,
        num_negatives=args.negatives,
        temperature=0.05,
    )


def operator_pass(args: argparse.Namespace, batch: Batch, attend: Callable[..., Tensor]) -> None:
    """Forward and backward of one layer's attention, its timestamps seen for the first time."""
    shape = (len(batch.items), args.heads, args.dim // args.heads)
    leaves = [torch.randn(shape).requires_grad_() for _ in range(3)]
    tables = torch.randn(2 * args.max_len - 1).requires_grad_(), torch.randn(129).requires_grad_()
    bias = RelativeBias(*tables, batch.timestamps, batch.next_timestamps)
    attend(*leaves, batch.offsets, max_len=args.max_len, bias=bias).sum().backward()  # type: ignore[no-untyped-call]


class Step:
    """A training step of HSTU whose layers call `attend`."""

    def __init__(self, args: argparse.Namespace, batch: Batch, targets: Tensor, attend: Callable[..., Tensor]) -> None:
        settings = settings_of(args, "auto")
        self.model, self.loss = build_model("hstu", settings, args.items), make_loss(settings, args.items)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.batch, self.targets, self.attend = batch, targets, attend

    def __call__(self) -> None:
        """Take one step."""
        setattr(hstu, "hstu_attention", self.attend)  # noqa: B010 - mypy refuses the plain assignment
        self.optimizer.zero_grad()
        self.loss(self.model(self.batch), self.model.item_vectors(), self.targets, None).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def milliseconds(versions: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return sorted CPU times; the versions take turns, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(rounds + 1):
        for name, version in versions.items():
            start = time.process_time()
            version()
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: sorted(times[1:]) for name, times in taken.items()}


def report(
    what: str, taken: dict[str, list[float]], args: argparse.Namespace, num_rows: int
) -> list[dict[str, object]]:
    rows = []
    for name, times in taken.items():
        middle = times[len(times) // 2]
        ratio = middle / taken["cpu"][len(times) // 2]
        print(f"{what:<10} {name:<10} {middle:8.1f} ms  best {times[0]:8.1f} ms  {ratio:5.2f} x cpu")
        rows.append(
            facts(args, num_rows)
            | {"what": what, "version": name, "median_cpu_ms": f"{middle:.1f}", "best_cpu_ms": f"{times[0]:.1f}"}
            | {"ratio_to_cpu": f"{ratio:.2f}"}
        )
    return rows


def facts(args: argparse.Namespace, num_rows: int) -> dict[str, object]:
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    shape = {name: value for name, value in vars(args).items() if name != "results"}
    return {
        "day": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "git": revision.stdout.strip(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "num_rows": num_rows,
        **shape,
    }


def cpu_name() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


def append(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    numbers = {"batch": 128, "max_len": 200, "dim": 50, "heads": 1, "blocks": 2, "items": 3706, "negatives": 512}
    for name, value in (numbers | {"threads": 1, "rounds": 7}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--loss", default="shared", choices=["shared", "full", "sampled"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch, targets = made_batch(args)
    print(f"{cpu_name()}, torch {torch.__version__}, {args.threads} thread(s), {len(batch.items):,} rows")
    versions: dict[str, Callable[..., Tensor]] = {
        "cpu": partial(attend_by, "cpu"),
        "reference": partial(attend_by, "reference"),
        "dense": dense_attention,
    }
    operator = {name: partial(operator_pass, args, batch, attend) for name, attend in versions.items()}
    steps = {name: Step(args, batch, targets, attend) for name, attend in versions.items()}
    rows = report("operator", milliseconds(operator, args.rounds), args, len(batch.items))
    rows += report("step", milliseconds(steps, args.rounds), args, len(batch.items))
    append(args.results, rows)


if __name__ == "__main__":
    main()
