"""HSTU one event at a time gives what HSTU over the whole window gives, whatever the times are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import HSTU_LEVERS, model_settings

from components.dataset import Batch
from components.model import build_model
from components.model.incremental import extend

N, NUM_ITEMS = 20, 30
GAPS = (0, 0, 1, 59, 86_400, 31_536_000, 2**33)  # ties, neighbours of bucket borders, years, centuries
MODELS = {}

gaps = st.lists(st.sampled_from(GAPS), min_size=1, max_size=N)
levers = pytest.mark.parametrize("lever", HSTU_LEVERS)


def made_model(lever, **changes):
    """Float64, and bias tables large enough to matter; one a lever."""
    key = (lever, *changes)
    if key not in MODELS:
        torch.manual_seed(3)
        model = build_model("hstu", model_settings(**HSTU_LEVERS[lever], **changes), NUM_ITEMS).double().eval()
        with torch.no_grad():
            for layer in model.layers:
                for table in (layer.position_weight, layer.time_weight):
                    if table is not None:
                        table *= 20
        MODELS[key] = model
    return MODELS[key]


def made_history(gaps):
    """Items, timestamps, next timestamps; the last gap leads to the request."""
    times = torch.tensor([1_000_000, *gaps]).cumsum(0)
    items = torch.randint(NUM_ITEMS, (len(gaps),), generator=torch.Generator().manual_seed(len(gaps)))
    return items, times[:-1], times[1:]


@torch.inference_mode()
def encode_whole(model, items, timestamps, next_timestamps):
    return model(Batch(items, timestamps, next_timestamps, torch.tensor([0, len(items)])))


@torch.inference_mode()
def encode_in_pieces(model, history, cuts):
    past, pieces, start = None, [], 0
    for end in [*sorted(cuts), len(history[0])]:
        if end > start:
            piece, past = extend(model, past, *(part[start:end] for part in history))
            pieces.append(piece)
            start = end
    return torch.cat(pieces), past


@levers
@settings(deadline=None)
@given(gaps=gaps, cuts=st.sets(st.integers(1, N)))
def test_pieces_of_any_size_give_what_the_whole_window_gives(lever, gaps, cuts):
    history = made_history(gaps)
    model = made_model(lever)
    cuts = {cut for cut in cuts if cut < len(gaps)}
    y, past = encode_in_pieces(model, history, cuts)
    torch.testing.assert_close(y, encode_whole(model, *history), rtol=0, atol=1e-12)
    assert len(past) == len(gaps)


@levers
def test_a_request_leaves_the_past_as_it_was(lever):
    items, timestamps, next_timestamps = made_history([60] * 12)
    model = made_model(lever)
    with torch.inference_mode():
        _, past = extend(model, None, items[:-1], timestamps[:-1], next_timestamps[:-1])
        before = [tensor.clone() for tensor in (*past.keys, *past.values)]
        answers = [extend(model, past, items[-1:], timestamps[-1:], timestamps[-1:] + gap)[0] for gap in (0, 10**7, 0)]
    assert all(torch.equal(a, b) for a, b in zip(before, (*past.keys, *past.values), strict=True))
    assert torch.equal(answers[0], answers[2])
    if model.layers[0].time_weight is not None:
        assert not torch.equal(answers[0], answers[1])


def test_in_float32_pieces_and_whole_differ_by_rounding_only():
    history = made_history([GAPS[i % len(GAPS)] for i in range(N)])
    model = made_model("as published").float()
    MODELS.clear()
    y, _ = encode_in_pieces(model, history, range(1, N))
    torch.testing.assert_close(y, encode_whole(model, *history), rtol=0, atol=1e-5)


def test_a_model_that_is_never_told_the_request_time_is_not_told_by_pieces_either():
    history = made_history([60] * 9)
    model = made_model("as published", request_time_dropout=1.0)
    y, _ = encode_in_pieces(model, history, {4, 8})
    items, timestamps, next_timestamps = history
    later = (items, timestamps, torch.cat([next_timestamps[:-1], next_timestamps[-1:] + 10**8]))
    assert torch.equal(encode_in_pieces(model, later, {4, 8})[0], y)
    torch.testing.assert_close(y, encode_whole(model, *history), rtol=0, atol=1e-12)


def test_a_window_longer_than_the_model_takes_is_refused():
    items, timestamps, next_timestamps = made_history([60] * N)
    model = made_model("as published")
    _, past = extend(model, None, items, timestamps, next_timestamps)
    with pytest.raises(ValueError, match=f"{N} \\+ 1 rows, expected at most {N}"):
        extend(model, past, items[:1], timestamps[:1], next_timestamps[:1])


def test_its_memory_is_that_of_the_keys_and_values():
    history = made_history([60] * 10)
    model = made_model("as published")
    with torch.inference_mode():
        _, past = extend(model, None, *history)
    rows = 10 * 2 * (4 + 3) * 8  # heads, widths of keys and values, float64
    assert past.num_bytes == 2 * rows + 10 * 8
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in (*past.keys, *past.values))
    assert past.without_last().num_bytes == 2 * rows + 9 * 8  # what it is a view of stays in memory
