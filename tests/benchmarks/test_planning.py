"""From options to a plan, and what is refused before anything expensive starts.

Alone: pytest tests/benchmarks/test_planning.py
"""

import json
import sys
from pathlib import Path

import pytest

from fastmtp_benchmarks import planning
from fastmtp_benchmarks.configurations import Configuration, Model
from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.options import Options
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2


class Characters:
    """A tokenizer of characters."""

    def encode(self, text, add_special_tokens):
        return list(text)

    def decode(self, ids):
        return "".join(ids)


@pytest.fixture
def loaded(monkeypatch) -> list[tuple[str, str]]:
    """Tokenizers that were loaded: path and flag."""
    asked = []

    def load(path, flag):
        asked.append((path, flag))
        return Characters()

    monkeypatch.setattr(planning, "load_tokenizer", load)
    return asked


@pytest.fixture
def source(tmp_path):
    """Makes a task of some questions, `NAME=FILE`."""

    def make(name: str, count: int, text: str = "question") -> str:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": str(i), "turns": [f"{text} {i}"]} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"{name}={path}"

    return make


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Makes plans; `model` is None for endpoints."""
    monkeypatch.setattr(sys, "argv", ["fastmtp", "bench", "--api-key", "k1"])

    def make(model: Model | None = None, **options):
        made = Options(output=tmp_path / "out", **options)
        here = [Configuration("a", url="http://a")]
        return planning.make_plan(made, model, lambda directory: here, baseline="a")

    return make


def test_a_plan_says_what_was_asked(plan, source, loaded):
    made = plan(task=[source("qa", 3)], limit=2, temperature=0.5, top_k=7, seed=4, repeats=2)
    assert [(task.name, len(task.conversations)) for task in made.tasks] == [("qa", 2)]
    assert made.levels == [Level(concurrency=1)]
    assert (made.sampling.temperature, made.sampling.top_k, made.seed, made.repeats) == (
        0.5,
        7,
        4,
        2,
    )
    assert made.command == "fastmtp bench --api-key ..."
    assert (made.tokenizer, loaded) == (None, [])


def test_loads(plan, source):
    task = [source("qa", 1)]
    assert plan(task=task, concurrency="8,1,8").levels == [
        Level(concurrency=8),
        Level(concurrency=1),
    ]
    assert plan(task=task, rate="0.5").levels == [Level(rate=0.5)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, int) for text in ("", "1,", "1,0", "-1", "1.5", "inf", "x")),
        *((text, float) for text in ("nan", "1,nan", "nan,1", "0.0")),
    ],
)
def test_numbers_that_are_none(text, kind):
    with pytest.raises(FastMTPError, match=f"^--flag {text}: give numbers above 0 between commas"):
        planning.numbers("--flag", text, kind)


def test_shapes_are_cut_from_the_tasks_alone(plan, source, loaded):
    """Without --shape-text the tasks are text, and all of it counts, whatever the limit."""
    made = plan(task=[source("qa", 9, "abc")], shape=["4x2", "5x1"], limit=2, tokenizer="t")
    names = [(task.name, len(task.conversations)) for task in made.tasks]
    assert names == [("throughput 4x2", 2), ("throughput 5x1", 2)]
    # The second prompt begins in the middle of all the text: "abc 0", a blank line, "abc 1", ...
    assert made.tasks[0].conversations[1].turns == (" 4\n\n",)
    assert loaded == [("t", "--tokenizer")]
    assert isinstance(made.tokenizer, Characters)


def test_with_a_text_tasks_and_shapes_are_both_measured(plan, source, loaded):
    text = [source("text", 3, "z" * 40)]
    made = plan(Model("/m"), task=[source("qa", 3)], shape=["4x2"], shape_text=text, limit=2)
    asked, shaped = made.tasks
    assert [len(asked.conversations), len(shaped.conversations)] == [2, 2]
    assert shaped.conversations[0].turns == ("zzzz",)
    # Only to cut by: the endpoint loads what its server names.
    assert (loaded, made.tokenizer) == ([("/m", "--model")], None)


def test_the_embedded_model_has_its_tokenizer(plan, source, loaded, monkeypatch):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda: Path("/cache/smollm2"))
    made = plan(Model(SMOLLM2.name), task=[source("qa", 1)], shape=["4x2"])
    assert loaded == [("/cache/smollm2", "--model")]
    assert len(made.tasks[0].conversations) == 64


def test_flags_are_split_as_a_shell_does():
    model = planning.make_model(Options(sglang_flags="--a 'b c'"), 2, Path("v"))
    assert model == Model("smollm2", None, 2, Path("v"), ("--a", "b c"))


def test_options_that_servers_elsewhere_cannot_follow():
    planning.refuse_with_endpoint({"--num-steps": None, "--draft": ""})
    with pytest.raises(FastMTPError, match="--draft has no effect with --endpoint"):
        planning.refuse_with_endpoint({"--num-steps": None, "--draft": "head"})


def test_shapes_beside_values_of_k():
    asked = planning.drafted_shapes("3,1", "3x1,3x8")
    assert [str(shape) for shape in asked] == ["3x1x4", "1x1x2", "3x8x16"]
    assert [str(shape) for shape in planning.drafted_shapes(None, None)] == [
        *("1x1x2", "2x1x3", "3x1x4")
    ]
