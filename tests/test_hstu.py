"""HSTU: its parameters, the layer and its levers against the formulas, the way in and out, what it must not see."""

import math
from dataclasses import replace
from importlib import import_module
from itertools import pairwise, product

import pytest
import torch
from made_models import HSTU_LEVERS, SASREC_LEVERS, cut_out, made_batch, model_settings
from torch.nn.functional import layer_norm, normalize, silu

from components.errors import SettingsError
from components.model import build_model
from components.model.embedding import positions
from kernels import RelativeBias, hstu_attention
from kernels.time_buckets import time_buckets

PARITY = {"max_len": 211, "dim": 50}
BASE = PARITY | {"num_blocks": 2, "num_heads": 1, "head_dim_qk": 50, "head_dim_v": 50}
LARGE = PARITY | {"num_blocks": 8, "num_heads": 2, "head_dim_qk": 25, "head_dim_v": 25}


def build(seed=0, num_items=30, **changes):
    torch.manual_seed(seed)
    return build_model("hstu", model_settings(**changes), num_items)


def spread(model, factor=20.0):
    """Scale the bias tables from N(0, 0.02) to numbers that matter."""
    with torch.no_grad():
        for layer in model.layers:
            for table in (layer.position_weight, layer.time_weight):
                if table is not None:
                    table *= factor
    return model.eval()


levers = pytest.mark.parametrize("lever", HSTU_LEVERS.values(), ids=HSTU_LEVERS)


@pytest.mark.parametrize(("recipe", "expected"), [(BASE, 36_750), (LARGE, 115_350)], ids=["base", "large"])
def test_parameters_outside_the_item_table_are_as_many_as_published(recipe, expected):
    """A layer: 50 x 200 projection, 50 x 50 + 50 output, 421 + 129 bias tables = 13,100; positions: 211 x 50."""
    parameters = {name: p.numel() for name, p in build(num_items=3_706, **recipe).named_parameters()}
    assert parameters.pop("embedding.item.weight") == 3_706 * 50
    assert sum(parameters.values()) == expected
    assert expected == recipe["num_blocks"] * 13_100 + 211 * 50


@pytest.mark.parametrize(
    ("bias", "tables"),
    [
        ("none", set()),
        ("position", {"position_weight"}),
        ("time", {"time_weight"}),
        ("position+time", {"position_weight", "time_weight"}),
    ],
)
def test_a_bias_that_is_off_has_no_parameters(bias, tables):
    names = {name.split(".")[-1] for name, _ in build(bias=bias).layers.named_parameters()}
    assert names & {"position_weight", "time_weight"} == tables
    assert build(bias=bias)(made_batch([5, 3])).shape == (8, 8)


def test_parameters_start_as_published():
    model = build(num_items=2_000, **BASE)
    layer = model.layers[0]
    assert model.embedding.item.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.embedding.item.weight.abs().max() <= 2.0
    assert layer.uvqk.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.position_weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert layer.time_weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert layer.output.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 100), rel=0.01)
    assert model.embedding.position.std().item() == pytest.approx(math.sqrt(2 / 261), rel=0.05)


def test_a_layer_is_the_published_formula():
    settings = model_settings()
    model = spread(build())
    layer, batch = model.layers[1], made_batch([6, 0, 9])
    x = torch.randn(15, 8)
    z = silu(layer_norm(x, (8,), eps=1e-6) @ layer.uvqk)
    u, v, q, k = z[:, :6], z[:, 6:12], z[:, 12:20], z[:, 20:]
    bias = RelativeBias(layer.position_weight, layer.time_weight, batch.timestamps, batch.next_timestamps)
    o = hstu_attention(
        q.unflatten(1, (2, 4)),
        k.unflatten(1, (2, 4)),
        v.unflatten(1, (2, 3)),
        batch.offsets,
        max_len=settings.max_len,
        bias=bias,
        backend="reference",
    ).flatten(1)
    expected = x + (u * layer_norm(o, (6,), eps=1e-6)) @ layer.output.weight.T + layer.output.bias
    found = layer(x, batch.offsets, RelativeBias(None, None, batch.timestamps, batch.next_timestamps))
    torch.testing.assert_close(found, expected)


def formula(layer, x, batch, *, gate=None):
    """A layer of two heads, 4 and 3 wide, row by row and head by head in float64."""
    z = silu(layer_norm(x, (8,), eps=1e-6) @ layer.uvqk)
    u, v, q, k = z[:, :6], z[:, 6:12], z[:, 12:20], z[:, 20:]
    o = torch.zeros(len(x), 6, dtype=x.dtype)
    for (start, end), h in product(pairwise(batch.offsets.tolist()), range(2)):
        for i in range(start, end):
            scores = torch.stack([q[i, 4 * h : 4 * h + 4] @ k[j, 4 * h : 4 * h + 4] for j in range(start, i + 1)])
            if layer.is_softmax:
                weights = (scores / 2).softmax(0)  # sqrt(Dqk)
            else:
                weights = silu(scores + torch.stack([bias_of(layer, batch, h, i, j) for j in range(start, i + 1)])) / 20
            o[i, 3 * h : 3 * h + 3] = weights @ v[start : i + 1, 3 * h : 3 * h + 3]
    f = (u * layer_norm(o, (6,), eps=1e-6)) @ layer.output.weight.T + layer.output.bias
    return x + (f if gate is None else f * torch.sigmoid(x @ gate.weight.T + gate.bias))


def bias_of(layer, batch, h, i, j):
    bucket = time_buckets(batch.next_timestamps[i] - batch.timestamps[j])
    return layer.position_weight[h, 19 + j - i] + layer.time_weight[h, bucket]


def in_float64(model):
    batch = made_batch([6, 0, 9])
    x = torch.randn(15, 8, dtype=torch.float64)
    return model.double().layers[1], batch, x, RelativeBias(None, None, batch.timestamps, batch.next_timestamps)


@pytest.mark.parametrize("lever", [{"bias_per_head": True}, {"attention": "softmax", "bias": "none"}], ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["residual", "gated"])
def test_each_kind_of_attention_is_its_formula(lever, gated):
    layer, batch, x, times = in_float64(spread(build(gated_residual=gated, **lever)))
    expected = formula(layer, x, batch, gate=layer.residual.gate)
    torch.testing.assert_close(layer(x, batch.offsets, times), expected)


def test_heads_whose_tables_are_equal_are_heads_that_share_them():
    shared, per_head = spread(build()), spread(build(bias_per_head=True))
    weights = shared.state_dict()
    for name in weights:
        if name.endswith(("position_weight", "time_weight")):
            weights[name] = weights[name].expand(2, -1)
    per_head.load_state_dict(weights)
    batch = made_batch([7, 20, 1])
    torch.testing.assert_close(per_head(batch), shared(batch))


def test_a_feed_forward_network_follows_the_attention():
    with_network = spread(build(feed_forward="gelu", gated_residual=True))
    layer, batch, x, times = in_float64(with_network)
    found = layer(x, batch.offsets, times)
    layer.feed_forward, network = None, layer.feed_forward
    attended = layer(x, batch.offsets, times)
    normed = layer_norm(attended, (8,), layer.forward_norm.weight, layer.forward_norm.bias)
    gate = torch.sigmoid(layer.forward_residual.gate(attended))
    torch.testing.assert_close(found, attended + network(normed) * gate)


def test_softmax_attention_refuses_a_bias():
    with pytest.raises(SettingsError, match=r"train\.hstu\.bias.*observed position.*expected none"):
        build(attention="softmax", bias="position")


def test_a_model_that_never_saw_the_request_time_does_not_look_at_one():
    batch = made_batch([7, 20, 1])
    later = replace(batch, next_timestamps=batch.next_timestamps + 400 * 86_400)
    told, untold = spread(build(request_time_dropout=0.9)), spread(build(request_time_dropout=1.0))
    assert not torch.isclose(told(batch), told(later)).all()
    assert torch.equal(untold(batch), untold(later))
    assert torch.equal(untold(batch), told(replace(batch, next_timestamps=batch.timestamps)))


def test_the_way_in_is_scaled_items_plus_places_and_the_way_out_has_length_one():
    model, batch = build(num_blocks=0).eval(), made_batch([4, 0, 2])
    places = torch.tensor([0, 1, 2, 3, 0, 1])
    embedded = model.embedding.item.weight[batch.items] * math.sqrt(8) + model.embedding.position[places]
    torch.testing.assert_close(model(batch), normalize(embedded))
    torch.testing.assert_close(model.item_vectors(), normalize(model.embedding.item.weight))
    assert model.item_vectors().norm(dim=1).tolist() == pytest.approx([1.0] * 30)


def test_positions_count_from_the_oldest_event():
    assert positions(torch.tensor([0, 2, 2, 5]), 5).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "lever"),
    [("hstu", lever) for lever in HSTU_LEVERS.values()] + [("sasrec", lever) for lever in SASREC_LEVERS.values()],
    ids=[f"hstu {lever}" for lever in HSTU_LEVERS] + [f"sasrec {lever}" for lever in SASREC_LEVERS],
)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 3], [20]], ids=str)
def test_empty_batches_and_sequences_are_encoded_and_trained_on(name, lever, lengths):
    model = build_model(name, model_settings(**lever), 30)
    y = model(made_batch(lengths))
    assert y.shape == (sum(lengths), 8)
    (y.sum() + model.item_vectors().sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@levers
def test_a_row_sees_neither_later_events_nor_other_sequences(lever, backend):
    model, batch = spread(build(backend=backend, **lever)), made_batch([7, 20, 1])
    before = model(batch)
    items = batch.items.clone()
    items[11:] = (items[11:] + 1) % 30
    after = model(replace(batch, items=items))
    torch.testing.assert_close(after[:11], before[:11])
    assert not torch.isclose(after[11:], before[11:]).all(dim=1).any()


@levers
def test_a_history_is_encoded_the_same_alone_and_in_a_batch(lever):
    model, batch = spread(build(**lever)), made_batch([7, 20, 1, 0, 12])
    together = model(batch)
    for b, (start, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        torch.testing.assert_close(model(cut_out(batch, b)), together[start:end])


def test_the_request_time_changes_the_last_row_only():
    model, batch = spread(build()), made_batch([9])
    later = batch.next_timestamps.clone()
    later[-1] += 400 * 86_400
    changed = ~torch.isclose(model(batch), model(replace(batch, next_timestamps=later))).all(dim=1)
    assert changed.tolist() == [False] * 8 + [True]


@levers
def test_backends_give_the_same_training_gradients_dropout_included(lever):
    gradients = []
    for backend in ("reference", "torch", "cpu"):
        model = spread(build(backend=backend, dropout=0.3, **lever)).train()
        torch.manual_seed(7)
        (model(made_batch([5, 20, 0, 13])) @ torch.ones(8)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for found, (name, gradient) in product(gradients[1:], gradients[0].items()):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_every_operator_of_a_layer_takes_the_backend_of_the_settings(monkeypatch):
    called = []
    cpp = [("silu_split", "_library"), ("hstu_cpu", "forward"), ("gated_norm_cpu", "forward")]
    plain = [("hstu_torch", "forward"), ("gated_norm_torch", "forward")]
    for place in [*cpp, *plain]:
        note_calls(monkeypatch, called, *place)
    for backend, expected in (("torch", plain), ("cpu", cpp)):
        called.clear()
        build(backend=backend).eval()(made_batch([5, 3]))
        assert called == 2 * expected  # two layers


def note_calls(monkeypatch, called, module_name, name):
    module = import_module(f"kernels.{module_name}")
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: called.append((module_name, name)) or original(*a))


def test_dropout_acts_in_training_only():
    model, batch = build(), made_batch([10])
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_an_unknown_model_is_refused():
    with pytest.raises(SettingsError, match=r"observed bert, expected hstu or sasrec"):
        build_model("bert", model_settings(), 30)


def test_torch_compile_sees_one_graph_of_the_whole_model_in_training():
    model, batch = spread(build(dropout=0.2)).train(), made_batch([7, 20, 1])
    compiled = torch.compile(lambda: model(batch), backend="aot_eager", fullgraph=True)
    gradients = []
    for run in (lambda: model(batch), compiled):
        torch.manual_seed(4)
        model.zero_grad()
        run().square().cumsum(1).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
