"""Kinds of tasks: each makes user turns that differ, over the installed packages."""

from pathlib import Path
from random import Random

import pydantic
import pytest
import rich
import typer

from fastmtp_sglang.distill.tasks.kinds import KINDS, _broken
from fastmtp_sglang.distill.tasks.material import Material

# All of the installed packages take seconds to list.
FEW = [Path(module.__file__).parent for module in (pydantic, rich, typer)]


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(FEW, own=["The harbour of Elmsee was built in stages over thirty years. " * 30])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_makes_turns(kind, material):
    made = [KINDS[kind](Random(seed), material) for seed in range(12)]
    assert made[:3] == [KINDS[kind](Random(seed), material) for seed in range(3)]
    assert len({tuple(turns) for turns in made}) >= 10
    for turns in made:
        assert len(turns) in ((2, 3) if kind == "follow_up" else (1,))
        assert all(turn.strip() == turn and turn for turn in turns)


@pytest.mark.parametrize("kind", ["explain_code", "complete_code", "repair_code", "test_code"])
def test_code_is_fenced(kind, material):
    for seed in range(8):
        (turn,) = KINDS[kind](Random(seed), material)
        assert turn.count("```python\n") == 1
        assert "def " in turn


def test_broken_code_is_broken(material):
    for seed in range(10):
        function = material.function(Random(seed))
        assert _broken(Random(seed), function) != function.source
