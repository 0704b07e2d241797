"""The line by which each process reports what is registered.

Alone: pytest tests/contract/test_identity.py
"""

import logging

from fastmtp_sglang import __version__
from fastmtp_sglang.contract import identity


def test_the_line_waits_for_a_log_that_shows_it(caplog, monkeypatch):
    """SGLang loads plugins before it configures logging."""
    monkeypatch.setattr(identity, "_announced", False)
    with caplog.at_level(logging.WARNING, logger="fastmtp_sglang"):
        identity.announce()
    assert caplog.records == []
    with caplog.at_level(logging.INFO, logger="fastmtp_sglang"):
        identity.announce()
        identity.announce()
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert line.startswith(f"fastmtp-sglang {__version__}: registered")
