"""GPU kernels compiled for real, for GPUs that are not there, exactly as the host code that launches them asks for.

    compilations = compile_for("sm_90", lambda: gated_norm_triton.forward(o, u, 1e-6, 0.2, seed))

The launches go to a driver that compiles and runs nothing, so tensors stay on the CPU and results hold nothing.
Argument types, divisibility by 16, constants, warps and stages are those of the launch. Not for a process with
TRITON_INTERPRET=1, where kernels are never compiled.
"""

import re
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

KIB = 1024
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300X
}
# What one block may have: CUDA programming guide, technical specifications per compute capability; CDNA 3 ISA (LDS).
SHARED_BYTES = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
MAX_THREADS = 1024
MATRIX_INSTRUCTION = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_s?mfma_\w+)")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compilation:
    """A kernel as the target's own assembler left it."""

    kernel: str
    target: str
    assembly: str  # PTX or amdgcn
    num_warps: int
    registers: int  # of a thread
    spilled_bytes: int  # of a thread: registers that went to memory, and any other use of the stack
    shared_bytes: int  # of a block; more than the target has raises triton's OutOfResources in compile_for

    @property
    def matrix_instructions(self) -> set[str]:
        """The kinds of matrix instruction it uses; empty if none."""
        return set(MATRIX_INSTRUCTION.findall(self.assembly))


def compile_for(target: str, launch: Callable[[], object]) -> list[Compilation]:
    """Call `launch`; return each kernel it launches, once for each set of argument types, in order of first launch."""
    assert not triton.knobs.runtime.interpret, "kernels are interpreted here (TRITON_INTERPRET=1), never compiled"
    with _driver(_CompileOnly(target)), _listener() as compiled:
        launch()
    assert compiled, "nothing was launched"
    return [_read(target, metadata, files) for metadata, files in compiled]


def assert_fits(compilations: list[Compilation], *, uses_matrix_instructions: bool) -> None:
    """Fail unless every kernel keeps to its registers, and uses the matrix units just where it should."""
    for compilation in compilations:
        facts = (
            f"{compilation.kernel} on {compilation.target}, {compilation.num_warps} warps: {compilation.registers}"
            f" registers, {compilation.spilled_bytes} bytes spilled, {compilation.shared_bytes} bytes shared,"
            f" {compilation.matrix_instructions or 'no matrix instructions'}"
        )
        assert compilation.spilled_bytes == 0, facts
        assert compilation.shared_bytes <= SHARED_BYTES[compilation.target], facts
        assert bool(compilation.matrix_instructions) == uses_matrix_instructions, facts


class _CompileOnly:
    """A driver of a GPU that is not there, as far as triton's JITFunction and CompiledKernel ask for it."""

    def __init__(self, target: str) -> None:
        self.name, self.utils = target, self

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> object:
        return self  # the key of a kernel's cache in this process: every driver finds it empty

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES[self.name]}

    def load_binary(self, name: str, binary: bytes, shared: int, device: object) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, MAX_THREADS  # module, function, registers, spills, threads of a block

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *arguments: None


@contextmanager
def _driver(driver):
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(driver)
    try:
        yield
    finally:
        triton.runtime.driver._active = before


@contextmanager
def _listener():
    """Collect (metadata, files by name) of what is compiled, or found in triton's cache on disk."""
    compiled = []

    def listen(*, metadata, metadata_group, **rest):
        compiled.append((metadata, {Path(file).suffix: Path(file) for file in metadata_group.values()}))

    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = listen
        yield compiled


def _read(target, metadata, files) -> Compilation:
    if TARGETS[target].backend == "cuda":
        assembly = files[".ptx"].read_text()
        usage = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", files[".cubin"]], text=True)
        registers = _number(rf"Function {metadata['name']}:\s.*\bREG:(\d+)", usage)
        spilled = _number(r"\bSTACK:(\d+)", usage) + _number(r"\bLOCAL:(\d+)", usage)
    else:
        assembly = files[".amdgcn"].read_text()
        registers = _number(r"\.vgpr_count:\s+(\d+)", assembly)
        # Not .sgpr_spill_count: scalars (masks of a wave, mostly) go to lanes of a vector register, not to memory.
        spills = _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
        spilled = max(4 * spills, _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly))
    return Compilation(
        kernel=metadata["name"],
        target=target,
        assembly=assembly,
        num_warps=metadata["num_warps"],
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=metadata["shared"],
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the compiler's answer"
    return int(found[1])
