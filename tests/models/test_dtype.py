"""The default dtype, from what Linux says of CPUs.

Alone: pytest tests/models/test_dtype.py
"""

import pytest
import torch

from fastmtp_sglang.models.dtype import default_dtype


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Make /proc/cpuinfo of a CPU with these flags."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    def make(flags: str):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nmodel name\t: x\nflags\t\t: {flags}\nbugs\t\t: y\n")
        return path

    return make


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2", "float32"),
        ("fpu avx512f avx512bw avx512vnni", "float32"),  # oneDNN emulates bfloat16 there
        ("fpu avx512f avx512_bf16", "bfloat16"),  # Zen 4
        ("fpu avx512f amx_bf16 avx512_fp16 amx_tile", "bfloat16"),  # Sapphire Rapids
        ("", "float32"),
    ],
)
def test_flags(cpu, flags, dtype):
    assert default_dtype(cpu(flags)) == dtype


def test_an_accelerator_and_no_linux(cpu, tmp_path, monkeypatch):
    assert default_dtype(tmp_path / "none") == "float32"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert default_dtype(cpu("amx_bf16")) == "float32"
