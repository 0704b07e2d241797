"""The arguments of `sglang serve`, and the head that is looked at before it starts.

What `fastmtp serve` makes of its options is shown in tests/cli/test_serve.py.
Alone: pytest tests/servers/test_launch.py
"""

from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head import compatibility
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.models.dtype import DEFAULT_DTYPE
from fastmtp_sglang.servers import launch
from fastmtp_sglang.vocabulary import fit
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME

ON = ["--speculative-algorithm", "FASTMTP"]


def test_what_is_not_given_is_left_to_the_plugin():
    assert launch.speculation_flags(None, None) == ON
    assert launch.speculation_flags("h", 2, Path("v")) == [
        *ON,
        *("--speculative-draft-model-path", "h", "--speculative-num-steps", "2"),
        *("--speculative-token-map", "v"),
    ]


def test_flags_given_by_hand_come_last():
    made = launch.arguments("org/m", ["--dtype", "half"], num_steps=2, dtype="float32")
    assert made == [
        *("--model-path", "org/m", "--dtype", "float32", *ON),
        *("--speculative-num-steps", "2", "--dtype", "half"),
    ]


@pytest.mark.parametrize("by_hand", [None, "float32"])
def test_what_people_are_told_of_the_embedded_model(monkeypatch, by_hand):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda progress: Path("/m"))
    head = DraftHead(Path("/h"), trained=False)
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda num_steps, progress: head)
    said: list[str] = []
    made = launch.arguments(SMOLLM2.name, [], dtype=by_hand, progress=said.append)
    assert made[:4] == ["--model-path", "/m", "--dtype", by_hand or DEFAULT_DTYPE]
    assert said[-1].startswith("the draft head is untrained")
    assert (said[:-1] == []) == (by_hand is not None)  # what was asked for is not repeated


@pytest.fixture
def checked(monkeypatch) -> list:
    """Which pairs and vocabularies were looked at; no file is read."""
    seen = []
    monkeypatch.setattr(compatibility, "check_compatible", lambda *pair: seen.append(pair))
    monkeypatch.setattr(fit, "load_for", lambda *pair: seen.append(pair))
    return seen


@pytest.fixture
def folders(tmp_path) -> tuple[str, str]:
    """A target and a head."""
    for name in ("m", "h"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "m"), str(tmp_path / "h")


def flags(model: str, head: str | None = None, *more: str) -> list[str]:
    return ["--model-path", model, *launch.speculation_flags(head, None), *more]


def test_a_head_is_looked_at_where_both_lie_here(checked, folders):
    model, head = folders
    launch.check_speculation(flags(model, head))
    launch.check_speculation(flags(model))
    assert checked == [(model, head), (model, None)]


def test_what_lies_elsewhere_is_not_looked_at(checked, folders):
    model, head = folders
    for given in (flags("org/m", head), flags(model, "org/h"), flags("org/m"), ON):
        launch.check_speculation(given)
    assert checked == []


def test_a_draft_vocabulary_is_looked_at_as_it_will_be_used(checked, folders):
    """The flag before the file beside the head, and that before the one beside the target."""
    model, head = folders
    files = [Path(folder) / FILE_NAME for folder in folders]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    launch.check_speculation(flags(model))
    launch.check_speculation(flags(model, head))
    launch.check_speculation(flags(model, head, "--speculative-token-map", "v"))
    assert checked[1::2] == [(files[0], model), (files[1], model), ("v", model)]


@pytest.mark.parametrize("error", [OSError("no config.json"), ValueError("unknown model type")])
def test_what_transformers_cannot_read_is_left_to_sglang(monkeypatch, folders, error):
    def fail(*pair):
        raise error

    monkeypatch.setattr(compatibility, "check_compatible", fail)
    launch.check_speculation(flags(*folders))
    error = FastMTPError("another size")
    with pytest.raises(FastMTPError, match="another size"):
        launch.check_speculation(flags(*folders))
