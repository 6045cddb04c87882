"""The registered operator: what torch.library, torch.compile and torch.export need of it."""

import warnings

import pytest
import torch
from made_attention import make_problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from kernels import RelativeBias, choose_backend, hstu_attention
from kernels.arguments import Arguments
from kernels.attention_op import _flatten
from kernels.choice import is_plain_call

BACKENDS = [
    "torch",
    pytest.param("cpu", marks=pytest.mark.skipif(choose_backend("cpu")[0] != "cpu", reason=choose_backend("cpu")[1])),
]
MASKS = [{}, {"targets": True, "num_context": 2, "window": 5}]


def operands(problem, backend, dtype):
    """Positional arguments of torch.ops.hstuflow.attention, leaves that require gradients."""
    problem = problem.to(dtype)
    q, k, v = (x.detach().contiguous().requires_grad_() for x in problem.qkv)
    tables = [None if t is None else t.clone().requires_grad_() for t in (problem.position_weight, problem.time_weight)]
    bias = RelativeBias(*tables, problem.timestamps, problem.next_timestamps)
    numbers = problem.max_len, problem.alpha, problem.num_context, problem.window
    return q, k, v, *_flatten(Arguments(problem.offsets, bias, problem.num_targets, *numbers)), backend


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("bias", ["none", "position+time"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_schema_shapes_and_autograd_pass_opcheck(backend, bias, mask):
    problem = make_problem([9, 0, 13], widths=(2, 5, 3), bias=bias, max_len=20, **mask)
    arguments = operands(problem, backend, torch.float32)
    opcheck(torch.ops.hstuflow.attention.default, arguments)
    gradient = torch.randn_like(arguments[2])
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    opcheck(torch.ops.hstuflow.attention_backward.default, (gradient, *detached, True, True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_differences_agree_with_the_registered_gradients(backend):
    problem = make_problem([4, 0, 3], widths=(2, 3, 2), max_len=5, alpha=0.7, targets=True, num_context=1)
    *leaves, offsets, position, time = operands(problem, backend, torch.float64)[:6]
    rest = operands(problem, backend, torch.float64)[6:]

    def run(q, k, v, position, time):
        return torch.ops.hstuflow.attention(q, k, v, offsets, position, time, *rest)

    assert torch.autograd.gradcheck(run, [*leaves, position, time])


class Layer(torch.nn.Module):
    """What a user's own model around the operator looks like."""

    def __init__(self, max_len):
        super().__init__()
        self.max_len = max_len
        self.position_weight = torch.nn.Parameter(torch.randn(2 * max_len - 1))
        self.time_weight = torch.nn.Parameter(torch.randn(129))

    def forward(self, z, offsets, timestamps, next_timestamps):
        q, k, v = (part.unflatten(1, (2, 4)) for part in (2 * z).split(8, dim=1))
        bias = RelativeBias(self.position_weight, self.time_weight, timestamps, next_timestamps)
        return hstu_attention(q, k, v, offsets, max_len=self.max_len, bias=bias).flatten(1).sin()


def layer_and_inputs():
    torch.manual_seed(3)
    times = torch.arange(30) * 3_600
    return Layer(20), (torch.randn(30, 24), torch.tensor([0, 20, 20, 30]), times, times + 60)


def test_torch_compile_sees_one_graph_and_gives_the_same_gradients():
    layer, (z, *rest) = layer_and_inputs()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    gradients = []
    for module in (layer, compiled):
        leaf = z.clone().requires_grad_()
        layer.zero_grad()
        module(leaf, *rest).square().sum().backward()
        gradients.append([leaf.grad, layer.position_weight.grad, layer.time_weight.grad])
    for plain, through_compile in zip(*gradients, strict=True):
        torch.testing.assert_close(through_compile, plain)


def test_torch_export_keeps_the_operator_whole():
    layer, inputs = layer_and_inputs()
    program = torch.export.export(layer, inputs)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("hstuflow.attention.default") == 1
    torch.testing.assert_close(program.module()(*inputs), layer(*inputs))


def test_without_gradients_who_traces_sees_the_operator_all_the_same():
    layer, inputs = layer_and_inputs()
    with torch.no_grad():
        expected = layer(*inputs)
        graph = make_fx(layer)(*inputs)
        assert [str(node.target) for node in graph.graph.nodes].count("hstuflow.attention.default") == 1
        torch.testing.assert_close(graph(*inputs), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(torch.jit.trace(layer, inputs, check_trace=False)(*inputs), expected)
        with FakeTensorMode() as mode:
            assert not is_plain_call(mode.from_tensor(inputs[0]))
        assert not is_plain_call(mode.from_tensor(inputs[0]))  # a fake one outside of its mode
        assert is_plain_call(inputs[0])


def test_without_gradients_the_backend_is_called_directly_and_gives_the_same():
    layer, inputs = layer_and_inputs()
    with_gradients = layer(*inputs)
    assert with_gradients.requires_grad
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        without = layer(*inputs)
    assert "hstuflow::attention" not in [event.key for event in profile.key_averages()]
    assert torch.equal(without, with_gradients)
