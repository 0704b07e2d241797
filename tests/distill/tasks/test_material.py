"""Material of prompts: pieces of sources and texts, the same for the same random numbers."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from fastmtp_sglang.distill.tasks.material import FUNCTION_LINES, PASSAGE_WORDS, Material
from fastmtp_sglang.errors import FastMTPError

PROSE = "The Lighthouse of Alder sends `beam_code` every minute so that ships find the bay. " * 6
FUNCTION = '''
class Lamp:
    def turn(self, angle: float,
             speed: float = 1.0) -> float:
        """Turn the lamp.

        Slowly.
        """
        # Full circles are the same place.
        angle = angle % 360
        return angle / speed
'''


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "lamp.py").write_text(f'"""{PROSE}"""\n{FUNCTION}')
    (folder / "broken.py").write_text("def (:\n")
    (folder / "gone.py").symlink_to(tmp_path / "nowhere")
    (folder / "README.md").write_text(f"| a | b |\n|---|---|\n\n{PROSE}\n\n----\n")
    (folder / "LICENSE.txt").write_text("You may not. " * 100)
    return tmp_path


def test_a_function_is_cut_in_parts(package):
    function = Material([package]).function(Random(0))
    assert function.name == "turn"
    assert function.signature.startswith("def turn(self, angle: float,\n")
    assert function.signature.endswith("-> float:")
    assert function.purpose == "Turn the lamp."
    assert function.body == "    angle = angle % 360\n    return angle / speed"


def test_passages_are_prose_with_their_terms(package):
    material = Material([package])
    random = Random(1)
    passages = [material.passage(random) for _ in range(20)]
    assert {passage.origin for passage in passages} == {"lamp", "README"}
    for passage in passages:
        assert "You may not" not in passage.text
        assert "|" not in passage.text
        assert len(passage.text.split()) >= PASSAGE_WORDS[0]
        assert "beam_code" in passage.terms()


def test_own_texts_are_every_second_passage(package):
    own = "I am an answer of the target about nothing in particular, said in many words. " * 90
    material = Material([package], own=[own, "too short"])
    random = Random(2)
    texts = [material.passage(random).text for _ in range(200)]
    mine = [text for text in texts if text.startswith("I am")]
    assert 70 < len(mine) < 130
    assert max(len(text.split()) for text in mine) <= PASSAGE_WORDS[1]


def test_the_same_numbers_draw_the_same_pieces():
    """From packages of Python itself: a piece keeps to its sizes, and code is code."""
    folders = [Path(json.__file__).parent, Path(asyncio.__file__).parent]
    one, other = Material(folders), Material(folders)
    for seed in range(5):
        passage = one.passage(Random(seed))
        function = one.function(Random(seed))
        assert passage == other.passage(Random(seed))
        assert function == other.function(Random(seed))
        assert passage.terms()
        assert FUNCTION_LINES[0] - 2 <= function.source.count("\n") + 1 <= FUNCTION_LINES[1]
        compile(function.source.replace("await ", ""), "function", "exec")


def test_nothing_to_draw_from(tmp_path):
    with pytest.raises(FastMTPError, match="no Python sources"):
        Material([tmp_path])
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(FastMTPError, match="no prose"):
        Material([tmp_path]).passage(Random(0))
    with pytest.raises(FastMTPError, match="no documented functions"):
        Material([tmp_path]).function(Random(0))
