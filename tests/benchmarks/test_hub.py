"""The tasks of the paper, through a stand-in for `datasets`.

Alone: pytest tests/benchmarks/test_hub.py
"""

import sys
import types

import pytest

from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.errors import FastMTPError

HUB_ROWS = {
    "HuggingFaceH4/mt_bench_prompts": [{"prompt": ["a", "b"]}],
    "HuggingFaceH4/MATH-500": [{"problem": "1+1"}],
    "ceval/ceval-exam": [{"question": "x____", "A": "1", "B": "2", "C": "3", "D": "4"}] * 20,
    "json": [
        {"category": "qa", "turns": ["who"], "question_content": "code this"},
        {"category": "rag", "turns": ["text who"], "question_content": "code that"},
        {"category": "summarization", "turns": ["Summarize: x"], "question_content": "code"},
    ],
}


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("mt_bench", ("a", "b"), 1),
        ("math_500", "1+1\nPlease reason step by step", 1),
        ("qa", ("who",), 1),
        ("rag", ("text who",), 1),
        ("summarization", ("Summarize: x",), 1),
        ("livecodebench", ("code this",), 3),
        ("c_eval", "以下是中国关于注册会计师考试的单项选择题", 80),
    ],
)
def test_the_tasks_of_the_paper_from_the_hub(monkeypatch, name, first, count):
    datasets = types.ModuleType("datasets")
    datasets.load_dataset = lambda path, **options: HUB_ROWS[path]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    (task,) = load_tasks([f"hub:{name}"])
    turns = task.conversations[0].turns
    assert turns == first if isinstance(first, tuple) else turns[0].startswith(first)
    assert (task.name, len(task.conversations)) == (name, count)
    assert len({conversation.id for conversation in task.conversations}) == count


def test_a_hub_that_cannot_be_reached(monkeypatch):
    datasets = types.ModuleType("datasets")

    def load_dataset(path, **options):
        raise ConnectionError("no network")

    datasets.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(FastMTPError, match=r"--task hub:qa: .*no network.*local \.jsonl"):
        load_tasks(["hub:qa"])
    with pytest.raises(FastMTPError, match="--task hub:nothing: unknown; there are mt_bench"):
        load_tasks(["hub:nothing"])


def test_a_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FastMTPError, match=r"hub:qa: needs the package datasets.*\.jsonl file"):
        load_tasks(["hub:qa"])


def test_a_data_set_that_has_changed(monkeypatch):
    datasets = types.ModuleType("datasets")
    datasets.load_dataset = lambda path, **options: [{"category": "other", "turns": ["who"]}]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(FastMTPError, match="hub:qa: the data set has no such rows any more"):
        load_tasks(["hub:qa"])
