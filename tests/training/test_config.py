"""The configuration of a run: defaults, overrides, and errors that say what to write.

Alone: pytest tests/training/test_config.py
"""

from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training.config import load_config

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))
MINIMAL = "target: t\noutput: o\ndata: {train: [d]}\n"


def load(tmp_path, text: str, *overrides: str, **options):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="latin-1")
    return load_config(path, overrides, **options)


def test_defaults_are_the_papers(tmp_path):
    config = load(tmp_path, MINIMAL)
    assert (config.head.num_steps, config.loss.beta) == (3, 0.6)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.betas) == (5e-5, (0.9, 0.95))
    assert (optimizer.batch_size, optimizer.epochs, optimizer.warmup) == (64, 3, 0.05)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    load_config(path)


def test_overrides_win(tmp_path):
    config = load(
        tmp_path, MINIMAL, "optimizer.learning_rate=1e-3", "data.train=[a, b]", "loss.kl=1"
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.data.train == [Path("a"), Path("b")]
    assert config.loss.kl == 1


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL + "loss: {betta: 1}", (), "loss.betta is no key; did you mean loss.beta?"),
        (MINIMAL + "learning_rate: 1", (), "did you mean optimizer.learning_rate?"),
        (MINIMAL, ("optimiser.epochs=1",), "optimiser is no key; did you mean optimizer"),
        (MINIMAL, ("target.x=1",), "target is a value, not a section"),
        (MINIMAL, ("target",), "write key=value"),
        (MINIMAL + "loss: {beta: -1}", (), "loss.beta: .*greater than 0.*given: -1"),
        (MINIMAL + "loss: {cross_entropy: 0}", (), "nothing would be learned"),
        ("target: t", (), "output: Field required"),
        ("- a", (), "must be a mapping"),
        ("a: [", (), "not valid YAML"),
        ("a: caf\u00e9", (), "not valid YAML"),
        ("a: 2026-13-45", (), "not valid YAML"),
        ("[" * 5000, (), "not valid YAML"),
        (MINIMAL, ("output=[x",), r"--set output=\[x is not valid YAML"),
    ],
)
def test_errors_name_the_key(tmp_path, text, overrides, message):
    with pytest.raises(FastMTPError, match=message) as error:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("typed", ["2026-11-28", "out #2", "[x", "true", "1e3", "a: b", "'x"])
def test_a_flag_is_taken_as_it_was_typed(tmp_path, typed):
    flags = {"output": Path(typed), "target": typed, "data.train": [Path(typed)]}
    config = load(tmp_path, MINIMAL, "output=by-set", flags=flags)
    assert (config.output, config.target) == (Path(typed), typed)
    assert config.data.train == [Path(typed)]


def test_missing_file(tmp_path):
    with pytest.raises(FastMTPError, match=r"none\.yaml cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
