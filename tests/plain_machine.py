"""A machine on which nothing is wrong, as `fastmtp doctor` sees it."""

import pytest

from fastmtp_sglang.doctor import diagnosis
from fastmtp_sglang.doctor.diagnosis import Finding

VARIABLES = ("SGLANG_PLUGINS", "SGLANG_PLATFORM", "SGLANG_USE_CPU_ENGINE", "FASTMTP_CPU")


@pytest.fixture
def plain_cpu_machine(monkeypatch, tmp_path):
    """No variable set, no accelerator, an empty cache, and a registration that succeeds."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(diagnosis, "_accelerator", lambda: None)
    monkeypatch.setattr(diagnosis, "registration", lambda: Finding("registration", "available"))
