"""Every GPU kernel, compiled as its host code launches it: no register spilled, shared memory within the target's."""

import pytest
import torch
import triton
import triton.language as tl
from made_attention import make_problem
from made_compilations import TARGETS, assert_fits, compile_for

from kernels import RelativeBias, gated_norm_triton, hstu_triton
from kernels.arguments import Arguments, Wants

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def launch_attention(width, dtype, bias, lengths=(300, 150)):
    """Launch forward and backward with targets, context and window."""
    problem = make_problem(lengths, widths=(2, width, width), bias=bias, targets=True, max_len=512).to(dtype)
    tables = RelativeBias(problem.position_weight, problem.time_weight, problem.timestamps, problem.next_timestamps)
    arguments = Arguments(problem.offsets, tables, problem.num_targets, 512, 1.0, num_context=2, window=100)
    q, k, v = problem.qkv
    output = hstu_triton.forward(q, k, v, arguments)
    hstu_triton.backward(torch.empty_like(output), q, k, v, arguments, Wants(bias != "none", bias != "none"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("width", "dtype", "bias"),
    [
        (64, BFLOAT16, "position+time"),
        (128, BFLOAT16, "position+time"),
        (50, FLOAT32, "position+time"),
        (50, BFLOAT16, "position+time"),
        (64, BFLOAT16, "none"),
        (128, BFLOAT16, "none"),
    ],
    ids=str,
)
def test_attention(target, width, dtype, bias):
    compilations = compile_for(target, lambda: launch_attention(width, dtype, bias))
    kernels = ["attention_forward", "keys_backward", "queries_backward", "bias_backward"]
    assert [compilation.kernel for compilation in compilations] == kernels[: 3 if bias == "none" else 4]
    assert_fits(compilations, uses_matrix_instructions=True)
    for compilation in compilations:
        assert ("tanh.approx.f32" in compilation.assembly) == (target.startswith("sm") and dtype == BFLOAT16)
        if target == "sm_90" and dtype == BFLOAT16:
            assert any(name.startswith("wgmma") for name in compilation.matrix_instructions)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("width", "dtype", "vectors"),
    [(50, FLOAT32, False), (64, BFLOAT16, True), (1024, BFLOAT16, True), (8192, FLOAT32, True)],
    ids=str,
)
def test_gated_norm(target, width, dtype, vectors):
    o, u = torch.zeros(400, width, dtype=dtype), torch.zeros(400, 4 * width, dtype=dtype)[:, :width]

    def launch():
        gated_norm_triton.forward(o, u, 1e-6, 0.2, 7)
        gated_norm_triton.backward(o, o, u, 1e-6, 0.2, 7)

    forward, backward = compile_for(target, launch)
    assert_fits([forward, backward], uses_matrix_instructions=False)
    load = "ld.global.v4.b32" if target.startswith("sm") else "buffer_load_dwordx4"
    for kernel, num_loads in ((forward, 2), (backward, 3)):
        assert (kernel.assembly.count(load) >= num_loads) == vectors  # 16 bytes a thread and load


def test_a_batch_of_another_length_is_not_compiled_anew_for_attention():
    def launch():
        for lengths in [(2,), (16,), (17, 300), (64,) * 16, (512,) * 40]:
            launch_attention(32, BFLOAT16, "position+time", lengths)

    assert len(compile_for("sm_90", launch)) == 4


def test_a_batch_of_another_length_is_not_compiled_anew_for_gated_norm():
    def launch():
        for num_rows in (1, 2, 16, 17, 4096):
            o = torch.zeros(num_rows, 64)
            gated_norm_triton.forward(o, o, 1e-6, 0.2, num_rows)

    assert len(compile_for("sm_90", launch)) == 1


# ---- what the checks see


@triton.jit
def _centered(x_ptr, SIZE: tl.constexpr):
    place = x_ptr + tl.arange(0, SIZE)
    x = tl.load(place)
    tl.store(place, x - tl.sum(x))


@triton.jit
def _product(x_ptr, SIZE: tl.constexpr):
    place = x_ptr + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(place)
    tl.store(place, tl.dot(x, x))


@pytest.mark.parametrize("target", TARGETS)
def test_a_spill_is_seen(target):
    # Every value is kept until the sum is known: 256 registers of a thread, or 512 on AMD, where it may have 512.
    size = 256 * 32 if target.startswith("sm") else 512 * 64
    compilations = compile_for(target, lambda: _centered[(1,)](torch.zeros(size), size, num_warps=1))
    with pytest.raises(AssertionError, match=r"[1-9]\d* bytes spilled"):
        assert_fits(compilations, uses_matrix_instructions=False)


@pytest.mark.parametrize("target", TARGETS)
def test_matrix_instructions_are_seen(target):
    x = torch.zeros(64, 64, dtype=BFLOAT16)
    (compilation,) = compile_for(target, lambda: _product[(1,)](x, 64, num_warps=8))
    assert len(compilation.matrix_instructions) == 1
    with pytest.raises(AssertionError, match=r"mma|mfma"):
        assert_fits([compilation], uses_matrix_instructions=False)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_too_much_shared_memory_is_refused(target):
    x = torch.zeros(256, 256, dtype=FLOAT32)
    with pytest.raises(triton.OutOfResources, match="shared memory"):
        compile_for(target, lambda: _product[(1,)](x, 256, num_warps=8))
