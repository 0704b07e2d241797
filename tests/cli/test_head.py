"""`fastmtp head init`: a head of the target, with the K asked for, and how to serve it.

Alone: pytest tests/cli/test_head.py
"""

import json

import pytest
import tiny_models as models
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import check_compatible
from fastmtp_sglang.models.catalog import SMOLLM2


@pytest.mark.heavy
def test_a_head_that_fits_its_target(tmp_path):
    target, out = models.target(tmp_path / "target"), tmp_path / "head"
    command = ["head", "init", "--target", str(target), "--out", str(out), "--num-steps", "4"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    check_compatible(target, out)
    assert json.loads((out / "config.json").read_text())["num_speculative_steps"] == 4
    assert "an untrained head with K=4" in result.output
    assert f"fastmtp serve {target} --draft {out}" in result.output.replace("\n", " ")
    with pytest.raises(FastMTPError, match="exists already"):
        app(command, standalone_mode=False)


def test_the_embedded_model_by_its_name(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda: tmp_path / "cached")
    monkeypatch.setattr(
        "fastmtp_sglang.head.checkpoint.init_head",
        lambda *given, **options: made.append((given, options)),
    )
    out = tmp_path / "head"
    result = CliRunner().invoke(app, ["head", "init", "--target", "smollm2", "--out", str(out)])
    assert result.exit_code == 0
    assert made == [((tmp_path / "cached", out), {"num_speculative_steps": 3})]
    # As it is typed: the path of the cache is nobody's business.
    assert f"fastmtp serve smollm2 --draft {out}" in result.output
