"""The dtype that the embedded model is served in unless told otherwise."""

from pathlib import Path
from typing import Literal

Dtype = Literal["bfloat16", "float32"]

# Products of bfloat16 in hardware, as Linux names them. Other CPUs emulate them, slower than
# float32.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def default_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> Dtype:
    """Return bfloat16 where a CPU serves and multiplies it, else the checkpoint's own float32."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return "float32"  # no Linux
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if not _BFLOAT16_FLAGS & set(flags):
        return "float32"
    import torch  # takes seconds, so only where it decides

    return "float32" if torch.accelerator.is_available() else "bfloat16"
