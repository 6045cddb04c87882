"""HSTU one event at a time gives what HSTU over the whole window gives, whatever the times are."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import HSTU_LEVERS, model_settings

from components.dataset import Batch
from components.model import build_model
from components.model.incremental import Encoder, Past
from kernels import choose_backend
from kernels.cpu import library as cpu_library

N, NUM_ITEMS = 20, 30
COMPILED = choose_backend("cpu")[0] == "cpu"
GAPS = (0, 0, 1, 59, 86_400, 31_536_000, 2**33)  # ties, neighbours of bucket borders, years, centuries
MODELS = {}

gaps = st.lists(st.sampled_from(GAPS), min_size=1, max_size=N)
levers = pytest.mark.parametrize("lever", HSTU_LEVERS)


def made_model(lever, **changes):
    """Float64, and bias tables large enough to matter; one a lever."""
    key = (lever, *changes.items())
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


def encode_in_pieces(encoder, history, cuts):
    """The last rows of all pieces, and where these end."""
    past, rows, ends = None, [], [*sorted(cuts), len(history[0])]
    for start, end in pairwise([0, *ends]):
        y_1D, past = encoder.extend(past, *(part[start:end] for part in history))
        rows.append(y_1D)
    return torch.cat(rows), torch.tensor(ends) - 1, past


def in_single(model):
    """The same in float32, and its encoder."""
    single = copy.deepcopy(model).float()
    return single, Encoder(single)


@levers
@settings(deadline=None)
@given(gaps=gaps, cuts=st.sets(st.integers(1, N)))
def test_pieces_of_any_size_give_what_the_whole_window_gives(lever, gaps, cuts):
    history = made_history(gaps)
    model = made_model(lever)
    y, ends, past = encode_in_pieces(Encoder(model), history, {cut for cut in cuts if cut < len(gaps)})
    torch.testing.assert_close(y, encode_whole(model, *history)[ends], rtol=0, atol=1e-12)
    assert len(past) == len(gaps)


@pytest.mark.parametrize("bias", ["position+time", "position", "time", "none"])
@pytest.mark.parametrize("shape", [(8, 2, 4, 3), (50, 1, 50, 50), (33, 3, 17, 5), (16, 1, 16, 32)], ids=str)
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_the_layers_in_one_call_give_what_they_give_in_float64(bias, shape, num_blocks):
    """Lengths around the kernel's tiles of 64 rows, in pieces of any size."""
    dim, num_heads, dim_qk, dim_v = shape
    widths = {"dim": dim, "num_heads": num_heads, "head_dim_qk": dim_qk, "head_dim_v": dim_v}
    model = made_model("as published", bias=bias, max_len=200, num_blocks=num_blocks, **widths)
    _, encoder = in_single(model)
    assert (encoder._packed is not None) == COMPILED
    for length, cuts in ((1, ()), (2, (1,)), (63, ()), (64, (62, 63)), (65, (64,)), (130, (1, 66, 129)), (200, (150,))):
        history = made_history([GAPS[(i + length) % len(GAPS)] for i in range(length)])
        y, ends, _ = encode_in_pieces(encoder, history, cuts)
        whole = encode_whole(model, *history)
        torch.testing.assert_close(y.double(), whole[ends], rtol=0, atol=2e-6)
        rows, times, next_times = (part.numpy() for part in history)
        once = encoder.encode(rows, times, int(next_times[-1]))
        torch.testing.assert_close(once.double(), whole[-1:], rtol=0, atol=2e-6)
        assert torch.equal(once, encoder.resume(None, rows, times, int(next_times[-1]))[0])


@levers
def test_a_request_leaves_the_past_as_it_was(lever):
    items, timestamps, next_timestamps = made_history([60] * 12)
    model, encoder = in_single(made_model(lever))
    _, past = encoder.extend(None, items[:-1], timestamps[:-1], next_timestamps[:-1])
    before = [tensor.clone() for layer in past.layers for tensor in layer]
    answers = [encoder.extend(past, items[-1:], timestamps[-1:], timestamps[-1:] + gap)[0] for gap in (0, 10**7, 0)]
    assert all(torch.equal(a, b) for a, b in zip(before, sum(past.layers, ()), strict=True))
    assert torch.equal(answers[0], answers[2])
    if model.layers[0].time_weight is not None:
        assert not torch.equal(answers[0], answers[1])


@levers
@pytest.mark.parametrize("has_compiler", [True, False])
def test_in_float32_pieces_and_whole_differ_by_rounding_only(lever, has_compiler, monkeypatch):
    if not has_compiler:
        monkeypatch.setattr(cpu_library, "_attempt", lambda: (None, "none on this machine"))
    history = made_history([GAPS[i % len(GAPS)] for i in range(N)])
    model, encoder = in_single(made_model(lever))
    assert (encoder._packed is not None) == (lever == "as published" and has_compiler and COMPILED)
    y, ends, _ = encode_in_pieces(encoder, history, range(1, N))
    torch.testing.assert_close(y, encode_whole(model, *history)[ends], rtol=0, atol=1e-5)


def test_a_model_that_is_never_told_the_request_time_is_not_told_by_pieces_either():
    history = made_history([60] * 9)
    items, timestamps, next_timestamps = history
    later = (items, timestamps, torch.cat([next_timestamps[:-1], next_timestamps[-1:] + 10**8]))
    for model, encoder in (
        (double := made_model("as published", request_time_dropout=1.0), Encoder(double)),
        in_single(double),
    ):
        y, ends, _ = encode_in_pieces(encoder, history, {4, 8})
        assert torch.equal(encode_in_pieces(encoder, later, {4, 8})[0], y)
        torch.testing.assert_close(y, encode_whole(model, *history)[ends], rtol=0, atol=1e-6)


def test_an_encoder_keeps_the_weights_it_was_made_from_and_takes_more_items():
    model, encoder = in_single(made_model("as published"))
    history = made_history([60] * 9)
    before, _ = encoder.extend(None, *history)
    longer = copy.deepcopy(model.embedding)
    longer.item = torch.nn.Embedding.from_pretrained(torch.cat([model.embedding.item.weight, torch.ones(1, 8)]))
    more = encoder.with_embedding(longer)
    assert torch.equal(more.extend(None, *history)[0], before)
    new = history[0].index_fill(0, torch.tensor([8]), NUM_ITEMS)
    assert not torch.allclose(more.extend(None, new, *history[1:])[0], before)
    if COMPILED:
        with torch.no_grad():
            for layer in model.layers:
                layer.uvqk *= 2
        assert torch.equal(encoder.extend(None, *history)[0], before)


def refusals():
    """What C++, which gets addresses, would misread."""
    items, times, next_times = history = made_history([60] * 9)
    kept = Encoder(made_model("as published").to(torch.float64)).extend(None, *history)[1]
    return {
        "no rows": (None, items[:0], times[:0], next_times[:0]),
        "fewer times than items": (None, items, times[:3], next_times),
        "fewer next times": (None, items, times, next_times[:3]),
        "times that are no integers": (None, items, times.double(), next_times),
        "every other item": (None, items.repeat_interleave(2)[::2], times, next_times),
        "a past of another dtype": (kept, items, times + 1000, next_times + 1000),
        "a past without its layers": (Past(times, ()), items, times + 1000, next_times + 1000),
        "a past of other lengths": (Past(times[:4], in_single_past(history)), items, times + 1000, next_times + 1000),
    }


def in_single_past(history):
    return in_single(made_model("as published"))[1].extend(None, *history)[1].layers


@pytest.mark.skipif(not COMPILED, reason="no C++ compiler")
@pytest.mark.parametrize("what", list(refusals()))
def test_what_does_not_fit_together_is_refused_and_not_misread(what):
    _, encoder = in_single(made_model("as published"))
    with pytest.raises(ValueError, match=r"expected|are known and"):
        encoder.extend(*refusals()[what])


@pytest.mark.skipif(not COMPILED, reason="no C++ compiler")
def test_a_model_that_became_another_one_is_refused_and_not_misread():
    model, encoder = in_single(made_model("as published"))
    model.double()
    with pytest.raises(ValueError, match=r"a tensor is torch\.float64 on cpu.*expected torch\.float32 on the CPU"):
        encoder.extend(None, *made_history([60] * 9))
    model.float().to("meta")
    with pytest.raises(ValueError, match=r"a tensor is torch\.float32 on meta"):
        encoder.extend(None, *made_history([60] * 9))


def test_layers_of_another_dtype_than_the_items_are_not_for_the_kernel():
    model, _ = in_single(made_model("as published"))
    model.layers[1].double()
    assert Encoder(model)._packed is None


@pytest.mark.parametrize("item", [-1, NUM_ITEMS])
@pytest.mark.parametrize("is_single", [True, False])
def test_an_item_that_the_table_lacks_is_refused(item, is_single):
    items, *times = made_history([60] * 9)
    model = made_model("as published")
    encoder = in_single(model)[1] if is_single else Encoder(model)
    with pytest.raises((ValueError, IndexError), match=r"expected at most 20 rows of items from 0 to 29|out of range"):
        encoder.extend(None, items.index_fill(0, torch.tensor([3]), item), *times)


def test_a_window_longer_than_the_model_takes_is_refused():
    items, timestamps, next_timestamps = made_history([60] * N)
    encoder = Encoder(made_model("as published"))
    _, past = encoder.extend(None, items, timestamps, next_timestamps)
    with pytest.raises(ValueError, match=f"{N} \\+ 1 rows, expected at most {N}"):
        encoder.extend(past, items[:1], timestamps[:1], next_timestamps[:1])


@pytest.mark.parametrize("is_single", [True, False])
def test_its_memory_is_that_of_the_keys_and_values(is_single):
    model = made_model("as published")
    encoder = in_single(model)[1] if is_single else Encoder(model)
    _, past = encoder.extend(None, *made_history([60] * 10))
    rows = 10 * 2 * (4 + 3) * (4 if is_single else 8)  # heads, widths of keys and values, bytes
    assert past.num_bytes == 2 * rows + 10 * 8
    assert all(t.untyped_storage().nbytes() == t.nbytes for layer in past.layers for t in layer)
    assert past.without_last().num_bytes == 2 * rows + 9 * 8  # what it is a view of stays in memory
