"""Made attention problems, their gradients on a backend, how close they must be, and the definition as plain loops."""

import math
from dataclasses import dataclass, replace
from itertools import accumulate, cycle, product

import pytest
import torch

from kernels import RelativeBias, choose_backend, hstu_attention

YEAR = 365 * 86_400
MIXED = [33, 0, 211, 7, 64, 1, 200, 65, 12, 12, 0]
MASKS = [
    {"targets": targets, "num_context": num_context, "window": window}
    for targets, num_context, window in product([False, True], [0, 1, 4], [0, 1, 20])
]
# What a backend computes in at its most exact, and how far it may be from the reference in float64.
PRECISION = {"reference": (torch.float64, 1e-12), "torch": (torch.float64, 1e-12), "cpu": (torch.float32, 1e-5)}
BACKENDS = ["torch", "cpu"]


@dataclass
class Problem:
    """Arguments of hstu_attention; q, k and v are slices of one fused projection z, as in the model."""

    z: torch.Tensor  # (L, H * (Dv + 2 * Dqk))
    widths: tuple[int, int, int]  # H, Dqk, Dv
    offsets: torch.Tensor
    position_weight: torch.Tensor | None
    time_weight: torch.Tensor | None
    timestamps: torch.Tensor
    next_timestamps: torch.Tensor
    num_targets: torch.Tensor | None
    num_context: int
    window: int
    max_len: int
    alpha: float

    @property
    def qkv(self):
        heads, dim_qk, dim_v = self.widths
        v, q, k = torch.split(self.z, [heads * dim_v, heads * dim_qk, heads * dim_qk], dim=1)
        return q.unflatten(1, (heads, dim_qk)), k.unflatten(1, (heads, dim_qk)), v.unflatten(1, (heads, dim_v))

    def run(self, backend):
        bias = RelativeBias(self.position_weight, self.time_weight, self.timestamps, self.next_timestamps)
        return hstu_attention(
            *self.qkv,
            self.offsets,
            max_len=self.max_len,
            alpha=self.alpha,
            bias=bias,
            num_targets=self.num_targets,
            num_context=self.num_context,
            window=self.window,
            backend=backend,
        )

    def output_and_gradients(self, backend):
        """Return o and the gradients of z and the tables, for one fixed gradient of o."""
        fresh = {
            name: None if tensor is None else tensor.clone().requires_grad_()
            for name in ("z", "position_weight", "time_weight")
            for tensor in [getattr(self, name)]
        }
        output = replace(self, **fresh).run(backend)
        generator = torch.Generator().manual_seed(5)
        output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output))
        leaves = {name: leaf for name, leaf in fresh.items() if leaf is not None}
        gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
        return {"output": output.detach(), **{f"grad of {name}": gradient for name, gradient in gradients.items()}}

    def to(self, dtype):
        return replace(
            self,
            z=self.z.to(dtype),
            position_weight=None if self.position_weight is None else self.position_weight.to(dtype),
            time_weight=None if self.time_weight is None else self.time_weight.to(dtype),
        )


def make_problem(
    lengths,
    *,
    widths=(1, 16, 16),
    bias="position+time",
    targets=False,
    num_context=0,
    window=0,
    max_len=211,
    alpha=1.0,
    seed=0,
):
    """Make float64 tensors from a seed; times are unsorted, with ties and gaps of years. `targets` gives each sequence
    0, 3, 5 or 1, as far as its rows suffice.
    """
    generator = torch.Generator().manual_seed(seed)
    heads, dim_qk, dim_v = widths
    num_rows = sum(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def times():
        spread = torch.randint(0, 20, (num_rows,), generator=generator)
        return spread * torch.tensor([1, 60, 86_400, YEAR])[torch.randint(0, 4, (num_rows,), generator=generator)]

    counts = [min(max(n - num_context, 0), t) for n, t in zip(lengths, cycle([0, 3, 5, 1]), strict=False)]
    return Problem(
        z=normal(num_rows, heads * (dim_v + 2 * dim_qk)),
        widths=widths,
        offsets=torch.tensor([0, *accumulate(lengths)]),
        position_weight=normal(2 * max_len - 1) if "position" in bias else None,
        time_weight=normal(129) if "time" in bias else None,
        timestamps=times(),
        next_timestamps=times(),
        num_targets=torch.tensor(counts, dtype=torch.int64) if targets else None,
        num_context=num_context,
        window=window,
        max_len=max_len,
        alpha=alpha,
    )


def bucket_by_hand(gap):
    """The logarithm itself, in float64: right for gaps below 2^40 that are not within 1e-9 of a threshold."""
    return min(max(math.floor(math.log(max(abs(gap), 1)) / 0.301), 0), 128)


def is_visible_by_hand(i, j, n, t, c, window):
    """Say whether row i sees column j, by what rows are rather than by ids: context, history or target."""

    def kind(p):
        return "context" if p < c else "target" if p >= n - t else "history"

    def steps_from_context(p):  # targets all stand right after the history, the context at one place before it
        return 0 if p < c else min(p, n - t) - (c - 1 if c else 0)

    if kind(i) == "context":
        return i == j or kind(j) in ("context", "history")
    if i == j:
        return True
    if kind(j) == "target" or (kind(j) == "history" and kind(i) == "history" and j > i):
        return False
    return not window or steps_from_context(i) - steps_from_context(j) <= window


def attention_by_hand(problem):
    """Return o (L, H, Dv) by loops over sequences, rows, columns."""
    q, k, v = problem.qkv
    output = torch.zeros_like(v)
    bounds = problem.offsets.tolist()
    targets = [0] * (len(bounds) - 1) if problem.num_targets is None else problem.num_targets.tolist()
    for start, end, t in zip(bounds[:-1], bounds[1:], targets, strict=True):
        n = end - start
        for i in range(n):
            for j in range(n):
                if not is_visible_by_hand(i, j, n, t, problem.num_context, problem.window):
                    continue
                s = problem.alpha * (q[start + i] * k[start + j]).sum(1)
                if problem.position_weight is not None:
                    distance = min(j, n - t) - min(i, n - t)
                    s = s + problem.position_weight[problem.max_len - 1 + distance]
                if problem.time_weight is not None:
                    gap = int(problem.next_timestamps[start + i] - problem.timestamps[start + j])
                    s = s + problem.time_weight[bucket_by_hand(gap)]
                output[start + i] += (s / (1 + (-s).exp()))[:, None] * v[start + j] / problem.max_len
    return output


def skip_unless_it_runs(backend):
    try:
        choose_backend("cpu", backend)
    except ValueError as error:
        pytest.skip(str(error))


def assert_close(found, expected, tolerance):
    """Every tensor within `tolerance` of the largest value of the expected one."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        if tensor.numel():
            assert (found[name] - tensor).abs().max() <= tolerance * tensor.abs().max(), name


def assert_equals_reference(problem, backend):
    dtype, tolerance = PRECISION[backend]
    found = {name: tensor.double() for name, tensor in problem.to(dtype).output_and_gradients(backend).items()}
    assert_close(found, problem.output_and_gradients("reference"), tolerance)


def lengths_for(mask):
    """Every non-empty sequence holds the context."""
    return [max(n, mask["num_context"]) if n else 0 for n in MIXED]
