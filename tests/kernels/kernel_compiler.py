"""Compile the kernels for GPUs that this machine does not have, as the JIT would for real tensors.

``resources`` reports what the compiler allotted: registers, spilled bytes, shared memory.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    registers: int
    spilled: int
    shared_bytes: int


def compile_offline(
    kernel: triton.JITFunction,
    target: GPUTarget,
    types: dict[str, str],
    constants: dict[str, object],
    num_warps: int,
    num_stages: int,
    aligned: set[str],
) -> CompiledKernel:
    """Compile for ``target``; arguments in ``aligned`` are multiples of 16, as the JIT would find.

    Without those attributes loads are narrow and the result is not what runs on a GPU.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name in aligned or signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=target, options=options)


def resources(compiled: CompiledKernel) -> Resources:
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]

        def count(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", text).group(1))

        spilled = count("vgpr_spill_count") + count("sgpr_spill_count")
        return Resources(count("vgpr_count"), spilled, compiled.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers = int(re.search(r"REG:(\d+)", text).group(1))
    # ptxas keeps spilled registers in the stack frame and in local memory
    spilled = int(re.search(r"STACK:(\d+)", text).group(1))
    spilled += int(re.search(r"LOCAL:(\d+)", text).group(1))
    return Resources(registers, spilled, compiled.metadata.shared)


def _cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
