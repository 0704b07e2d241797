"""`fastmtp train`: flags win over the file, and what cannot be written is refused at once.

Alone: pytest tests/cli/test_train.py
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def trained(monkeypatch) -> list:
    """The configurations that would be trained."""
    configs = []

    def train(config):
        configs.append(config)
        return config.output / "head"

    monkeypatch.setattr("fastmtp_sglang.training.run.train", train)
    return configs


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(f"target: of the file\noutput: {tmp_path}/run\ndata: {{train: [a]}}\n")
    return str(path)


def test_the_file_alone(trained, config, tmp_path):
    result = CliRunner().invoke(app, ["train", config], catch_exceptions=False)
    assert result.exit_code == 0
    (found,) = trained
    assert (found.target, found.data.train) == ("of the file", [Path("a")])
    assert (found.data.offline, found.head.start) == (None, "scratch")
    head = tmp_path / "run" / "head"
    assert result.output == f"wrote {head}\nserve it: fastmtp serve of the file --draft {head}\n"


def test_flags_win_over_set_and_the_file(trained, config, tmp_path):
    flags = ["--target", "smollm2", "--output", str(tmp_path / "other"), "--start", "native"]
    flags += ["--data", "b", "--data", "c", "--offline", "states"]
    sets = ["--set", "target=by set", "--set", "optimizer.epochs=1", "--set", "loss.kl=0.5"]
    result = CliRunner().invoke(app, ["train", config, *sets, *flags], catch_exceptions=False)
    assert result.exit_code == 0
    (found,) = trained
    assert (found.target, found.output) == ("smollm2", tmp_path / "other")
    assert found.data.train == [Path("b"), Path("c")]
    assert (found.data.offline, found.head.start) == (Path("states"), "native")
    assert (found.optimizer.epochs, found.loss.kl) == (1, 0.5)


@pytest.mark.parametrize("flag", ["--target", "--start"])
def test_an_empty_flag_is_none_of_the_files_settings(trained, config, flag):
    """`--target "$UNSET"` must not train for the target of the file."""
    CliRunner().invoke(app, ["train", config, flag, ""], catch_exceptions=False)
    (found,) = trained
    assert (found.target if flag == "--target" else found.head.start) == ""


def test_an_output_that_is_a_file_is_refused_before_anything_runs(trained, config, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FastMTPError, match=r"^output .*run is not a folder; give another one"):
        app(["train", config], standalone_mode=False)
    assert trained == []
    assert (tmp_path / "run").read_text() == "mine"


def test_a_key_that_is_none_is_refused(trained, config):
    with pytest.raises(FastMTPError, match=r"did you mean optimizer\.epochs"):
        app(["train", config, "--set", "optimizer.epoch=1"], standalone_mode=False)
    assert trained == []
