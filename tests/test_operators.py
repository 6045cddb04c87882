"""What holds for every operator alike: torch's defaults do not matter, and a second derivative is refused."""

import pytest
import torch
from made_rows import BACKENDS

from kernels import RelativeBias, dropout, gated_norm, hstu_attention, silu_split

OFFSETS, TIMES = torch.tensor([0, 300]), torch.arange(300)


def attend(x, backend):
    bias = RelativeBias(x.new_ones(599), x.new_ones(129), TIMES, TIMES)
    qkv = (part.unflatten(1, (2, 4)) for part in x.split(8, dim=1))
    return hstu_attention(*qkv, OFFSETS, max_len=300, bias=bias, backend=backend)


OPERATORS = {
    "attention": attend,
    "gated norm": lambda x, backend: gated_norm(x, x.flip(1), dropout=0.2, training=True, backend=backend),
    "dropout": lambda x, backend: dropout(x, 0.2, training=True, backend=backend),
    "silu and split": lambda x, backend: torch.cat(list(silu_split(x, [10, 14], backend=backend)), dim=1),
}


def output_and_gradient(operator, backend):
    torch.manual_seed(4)
    x = torch.randn(300, 24, dtype=torch.float32, device="cpu", requires_grad=True)
    output = OPERATORS[operator](x, backend)
    output.square().sum().backward()
    return output.detach(), x.grad


@pytest.fixture(params=["bfloat16", "float64", "device"])
def other_defaults(request):
    """Return a function that changes what torch makes new tensors of; undone afterwards."""
    dtype = torch.get_default_dtype()

    def change():
        if request.param == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_dtype_and_device_change_nothing(operator, backend, other_defaults):
    expected = output_and_gradient(operator, backend)
    other_defaults()
    found = output_and_gradient(operator, backend)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("operator", ["attention", "gated norm", "silu and split"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused_rather_than_left_out(operator, backend):
    if (operator, backend) == ("silu and split", "torch"):
        pytest.skip("plain torch: as often as one likes")
    x = torch.randn(300, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(OPERATORS[operator](x, backend).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="once only"):
        gradient.sum().backward()
