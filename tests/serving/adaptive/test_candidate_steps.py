"""--speculative-adaptive-config: SGLang's own default table reads, and what is none is refused.

Alone: pytest tests/serving/adaptive/test_candidate_steps.py
"""

import json

import pytest
from sglang.srt.speculative.adaptive_spec_params import DEFAULT_ADAPTIVE_CONFIG

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.adaptive.candidate_steps import CandidateSteps
from fastmtp_sglang.serving.adaptive.shapes import candidate_shapes


@pytest.fixture
def table(tmp_path):
    def write(content) -> str:
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_the_table_of_sglangs_policy(table):
    steps = CandidateSteps.read(table({**DEFAULT_ADAPTIVE_CONFIG, "ema_alpha": 0.2}), most=7)
    assert {size: set(of) for size, of in steps.by_size.items()} == {
        1: {1, 3, 5, 7},
        8: {0, 1, 3},
        32: {0, 1},
        64: {0},
    }
    closest = {1: 1, 4: 1, 5: 8, 20: 8, 21: 32, 48: 32, 49: 64, 1000: 64}
    assert {size: steps.closest(size) for size in closest} == closest
    shapes = candidate_shapes(TreeShape.of(7))
    assert [shape.num_steps for shape in steps.among(shapes, 8)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "Give a JSON file"),
        ([1, 2], "names no size of batch"),
        ({"small": {"candidate_steps": [1]}}, "names no size of batch"),
        ({"1": [1, 2]}, "candidate_steps of size 1 is None"),
        ({"8": {"candidate_steps": []}}, r"candidate_steps of size 8 is \[\]"),
        ({"8": {"candidate_steps": [1, "2"]}}, "Give a list of whole numbers"),
        ({"8": {"candidate_steps": [True]}}, "Give a list of whole numbers"),
        ({"8": {"candidate_steps": [0, -1]}}, "names -1 steps"),
        ({"8": {"candidate_steps": [5, 4]}}, "names 5 steps, .* Give --speculative-num-steps 5"),
    ],
)
def test_what_is_no_table(table, tmp_path, content, message):
    path = str(tmp_path / "missing.json") if content is None else table(content)
    with pytest.raises(FastMTPError, match=message):
        CandidateSteps.read(path, most=3)
