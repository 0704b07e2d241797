"""What the commands meet: servers in threads, small targets, and no embedded model."""

from pathlib import Path

import pytest
from cleaning import clean, make
from fake_endpoint import endpoint, endpoints, read_lines, target
from streaming_server import server, servers
from vocabulary_targets import smollm2_target, texts, tiny, tiny_folder

from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2


@pytest.fixture
def embedded(monkeypatch):
    """Stand in for the embedded model and its head; returns a function that sets `trained`."""
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda progress: Path("/cache/smollm2"))

    def head(trained: bool) -> None:
        made = DraftHead(Path("/cache/head"), trained)
        monkeypatch.setattr(SMOLLM2, "draft_head", lambda num_steps, progress: made)

    head(trained=True)
    return head
