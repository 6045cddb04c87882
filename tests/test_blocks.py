"""The parts that the models' blocks share, each against its formula."""

from math import erf, exp, sqrt

import pytest
import torch
from made_models import model_settings

from components.errors import SettingsError
from components.model.blocks import Residual, SwiGLU, make_feed_forward


def sigmoid(x):
    return 1 / (1 + exp(-x))


def test_a_plain_residual_adds_and_has_no_weights():
    residual = Residual(model_settings(gated_residual=False))
    x, f = torch.randn(2, 5, 8)
    assert list(residual.parameters()) == []
    assert torch.equal(residual(x, f), x + f)


def test_a_gated_residual_lets_through_what_its_input_decides():
    residual = Residual(model_settings(dim=3, gated_residual=True)).double()
    x, f = torch.randn(2, 5, 3, dtype=torch.float64)
    found = residual(x, f).detach()
    weight, bias = residual.gate.weight.tolist(), residual.gate.bias.tolist()
    for row, column in [(0, 0), (4, 2)]:
        logit = sum(w * value for w, value in zip(weight[column], x[row].tolist(), strict=True)) + bias[column]
        assert float(found[row, column]) == pytest.approx(float(x[row, column] + f[row, column] * sigmoid(logit)))


def test_swiglu_is_its_formula():
    network = SwiGLU(6).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    width = 16  # 8/3 of 6
    w_gate, w_value = network.gate_and_value.weight[:width], network.gate_and_value.weight[width:]
    gate, value = (x[:, None] * w_gate).sum(2), (x[:, None] * w_value).sum(2)
    inner = gate / (1 + (-gate).exp()) * value
    torch.testing.assert_close(network(x), (inner[:, None] * network.output.weight).sum(2))


def test_gelu_is_its_formula_four_times_as_wide():
    network = make_feed_forward(model_settings(dim=3, feed_forward="gelu")).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    inner = (x @ network[0].weight.T + network[0].bias).tolist()
    assert len(inner[0]) == 12
    bent = torch.tensor([[h * (1 + erf(h / sqrt(2))) / 2 for h in row] for row in inner], dtype=torch.float64)
    torch.testing.assert_close(network(x), bent @ network[2].weight.T + network[2].bias)


@pytest.mark.parametrize("dim", [8, 50, 64, 256])
def test_both_networks_have_as_many_weights(dim):
    sizes = [
        sum(weight.numel() for weight in make_feed_forward(model_settings(dim=dim, feed_forward=name)).parameters())
        for name in ("gelu", "swiglu")
    ]
    biases, rounding = 5 * dim, 1.5 * dim
    assert sizes[0] - sizes[1] == pytest.approx(biases, abs=rounding)


def test_there_may_be_no_network():
    assert make_feed_forward(model_settings(feed_forward="none")) is None


def test_an_unknown_network_is_refused():
    with pytest.raises(SettingsError, match="observed relu"):
        make_feed_forward(model_settings(feed_forward="relu"))
