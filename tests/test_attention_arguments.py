"""hstu_attention: which backend is taken and why, and arguments that do not fit."""

import pytest
import torch

from kernels import RelativeBias, choose_backend, hstu_attention


@pytest.mark.parametrize(("device", "best"), [("cpu", "cpu"), ("cuda", "triton")])
def test_auto_takes_the_fused_kernels_of_the_device_and_says_so(monkeypatch, device, best):
    monkeypatch.setattr("kernels.choice._obstacle", lambda *_: "")
    name, reason = choose_backend(torch.device(device))
    assert name == best
    assert device in reason.lower()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_takes_plain_torch_where_these_do_not_run_and_says_why(monkeypatch, device):
    monkeypatch.setattr("kernels.cpu.library.obstacle", lambda: "no C++ compiler found")
    monkeypatch.setattr("kernels.choice.find_spec", lambda _: None)
    name, reason = choose_backend(device, "auto")
    assert name == "torch"
    assert {"cpu": "no C++ compiler found", "cuda": "triton is not installed"}[device] in reason


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cpu", "fast", "'fast'.*auto, reference, torch, cpu, triton"),
        ("cuda", "cpu", "'cpu' does not run here: it takes CPU tensors, and these are on cuda"),
        ("cpu", "triton", "'triton' does not run here: it needs an NVIDIA or AMD GPU"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(monkeypatch, device, backend, message):
    monkeypatch.setattr("kernels.choice.find_spec", lambda _: "installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        choose_backend(device, backend)


def bias_with(**changes):
    parts = {
        "position_weight": torch.zeros(9),
        "time_weight": torch.zeros(129),
        "timestamps": torch.zeros(4, dtype=torch.int64),
        "next_timestamps": torch.zeros(4, dtype=torch.int64),
    }
    return RelativeBias(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 2)}, r"q has shape \(4, 2\)"),
        ({"q": torch.zeros(4, 0, 2)}, r"q has shape \(4, 0, 2\), expected .* at least 1"),
        ({"v": torch.zeros(4, 1, 0)}, r"v has shape \(4, 1, 0\), expected .* at least 1"),
        ({"q": torch.zeros(4, 1, 2, dtype=torch.int64)}, "q is torch.int64"),
        ({"k": torch.zeros(4, 1, 2, dtype=torch.float64)}, "k is torch.float64"),
        ({"k": torch.zeros(4, 1, 3)}, "q, k, v have shapes"),
        ({"v": torch.zeros(5, 1, 2)}, "q, k, v have shapes"),
        ({"offsets": torch.tensor([0, 4], dtype=torch.int32)}, "offsets is torch.int32"),
        ({"offsets": torch.tensor([0, 3])}, "rise from 0 to L = 4"),
        ({"offsets": torch.tensor([1, 4])}, "rise from 0 to L = 4"),
        ({"offsets": torch.tensor([0, 5, 4])}, "rise from 0 to L = 4"),
        ({"max_len": 3}, "4 rows, more than max_len = 3"),
        ({"max_len": 0}, "max_len is 0"),
        ({"window": -1}, "window is -1"),
        ({"num_context": -1}, "num_context is -1"),
        ({"num_context": 5}, "shorter than its 5 context rows"),
        ({"num_targets": torch.tensor([1, 1])}, "num_targets is torch.int64"),
        ({"num_targets": torch.tensor([-1])}, "negative"),
        ({"num_targets": torch.tensor([3]), "num_context": 2}, "shorter than its 2 context rows and its targets"),
        ({"bias": bias_with(position_weight=torch.zeros(10))}, r"position_weight .* \(9,\)"),
        ({"bias": bias_with(time_weight=torch.zeros(128))}, r"time_weight .* \(129,\)"),
        ({"bias": bias_with(time_weight=torch.zeros(129, dtype=torch.float64))}, "time_weight is torch.float64"),
        ({"bias": bias_with(timestamps=None)}, "without timestamps"),
        ({"bias": bias_with(next_timestamps=torch.zeros(4))}, "next_timestamps is torch.float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    arguments = {
        "q": torch.zeros(4, 1, 2),
        "k": torch.zeros(4, 1, 2),
        "v": torch.zeros(4, 1, 2),
        "offsets": torch.tensor([0, 4]),
        "max_len": 5,
    }
    with pytest.raises(ValueError, match=message):
        hstu_attention(**(arguments | changes))
