"""A quantized table comes back within half a step, its outliers exactly; a packed file is a model's weights again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from components.checkpoint import load_model
from components.errors import StateError
from components.model.quantized import ITEM_TABLE, dequantize, pack, quantize, unpack
from components.recommender import Recommender

LIMITS = {8: 127, 4: 7}


def tables(max_rows=6, max_dim=9):
    values = st.floats(-100, 100, width=32)
    shape = st.tuples(st.integers(1, max_rows), st.integers(1, max_dim))
    return shape.flatmap(lambda s: st.lists(values, min_size=s[0] * s[1], max_size=s[0] * s[1]).map(lambda v: (s, v)))


def reference(table, bits, count):
    """In float64, a value at a time: the table that codes and outliers stand for, and each row's step."""
    flat = np.abs(table.ravel())
    kept = {int(place) for place in np.argsort(-flat, kind="stable")[:count]}
    back, steps = table.copy(), np.zeros(len(table))
    for row, values in enumerate(table):
        rest = [abs(v) for column, v in enumerate(values) if row * table.shape[1] + column not in kept]
        steps[row] = max(rest, default=0.0) / LIMITS[bits]
        for column, value in enumerate(values):
            if row * table.shape[1] + column not in kept:
                back[row, column] = round(value / steps[row]) * steps[row] if steps[row] > 0 else 0.0
    return back, steps


@settings(deadline=None, max_examples=150)
@given(table=tables(), bits=st.sampled_from([8, 4]), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_a_value_comes_back_within_half_a_step_and_an_outlier_exactly(table, bits, share):
    (rows, dim), values = table
    table_XD = torch.tensor(values, dtype=torch.float32).view(rows, dim)
    packed = quantize(table_XD, bits, outlier_share=share)
    back = dequantize(packed, dim)

    places = packed.outlier_places
    assert len(places) == round(share * rows * dim)
    assert torch.equal(back.flatten()[places], table_XD.flatten()[places])
    assert packed.codes.shape == (rows, dim if bits == 8 else (dim + 1) // 2)
    error = (back.double() - table_XD.double()).abs()
    assert (error <= packed.scales[:, None].double() / 2 * (1 + 1e-5)).all()
    kept = torch.zeros(rows * dim, dtype=torch.bool).index_fill(0, places, True)
    if share < 1 and len(places):
        left = table_XD.abs().flatten()[~kept]
        assert not len(left) or left.max() <= table_XD.abs().flatten()[kept].min()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [7, 8])
def test_it_is_what_a_float64_reference_says(bits, dim):
    table = np.random.default_rng(0).standard_t(3, (40, dim))
    back, steps = reference(table.astype(np.float32).astype(np.float64), bits, round(0.05 * table.size))
    packed = quantize(torch.tensor(table, dtype=torch.float32), bits, outlier_share=0.05)
    np.testing.assert_allclose(packed.scales, steps, rtol=1e-6)
    np.testing.assert_allclose(dequantize(packed, dim), back, atol=1e-5)


@given(codes=st.lists(st.integers(-7, 7), min_size=1, max_size=15))
def test_codes_of_4_bits_survive_packing_in_odd_widths_too(codes):
    row = torch.tensor([[*codes, 7]], dtype=torch.float32)  # step 1
    packed = quantize(row, 4, outlier_share=0.0)
    assert packed.codes.nbytes == (len(codes) + 2) // 2
    assert torch.equal(dequantize(packed, len(codes) + 1), row)


def test_rows_of_zeros_and_what_is_already_a_code_come_back_as_they_were():
    table = torch.tensor([[0.0, 0.0, 0.0], [127.0, -3.0, 1.0]])
    assert torch.equal(dequantize(quantize(table, 8, outlier_share=0.0), 3), table)


def test_values_that_are_not_finite_and_other_widths_are_refused():
    for table, bits in ((torch.tensor([[float("nan")]]), 8), (torch.ones(1, 1), 5)):
        with pytest.raises(ValueError, match="expected 8 or 4 bits and finite values"):
            quantize(table, bits)


def test_an_outlier_left_in_the_codes_would_coarsen_its_whole_row():
    table = torch.full((4, 50), 0.05)
    table[0, 0] = 10.0
    with_it, without = (dequantize(quantize(table, 4, outlier_share=share), 50) for share in (0.0, 0.005))
    assert (with_it[0, 1:] == 0).all()
    torch.testing.assert_close(without, table)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.2)])
def test_a_packed_checkpoint_serves_nearly_the_same_scores(tmp_path, bits, tolerance):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", list("abcdefghijkl"))
    before = Recommender.load(checkpoint)
    weights = load_file(checkpoint / "weights.safetensors")
    save_file(pack(weights, bits), checkpoint / "weights.safetensors")
    assert not torch.equal(load_model(checkpoint)[0].embedding.item.weight, weights[ITEM_TABLE])

    after = Recommender.load(checkpoint)

    rows, times = before.read([("a", 1), ("b", 2)])
    np.testing.assert_allclose(after.scores(rows, times, 3), before.scores(rows, times, 3), atol=tolerance)


def test_weights_that_are_not_packed_are_left_alone():
    weights = {ITEM_TABLE: torch.ones(2, 3), "other": torch.zeros(1)}
    assert unpack(weights, 3) == weights


DAMAGES = {
    "codes": lambda codes: codes[:, :2].clone(),
    "scales": lambda scales: scales[:5].clone(),
    "outlier_places": lambda places: places + 10**6,
    "outlier_values": lambda values: values[:1].clone(),
}


@pytest.mark.parametrize("part", DAMAGES)
def test_a_damaged_table_is_refused(tmp_path, part):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [f"item-{n}" for n in range(200)])
    weights = pack(load_file(checkpoint / "weights.safetensors"), 4)
    name = f"{ITEM_TABLE}.{part}"
    save_file(weights | {name: DAMAGES[part](weights[name])}, checkpoint / "weights.safetensors")
    with pytest.raises(StateError, match="does not fit the model"):
        load_model(checkpoint)
