"""Conversations from every kind of source, and what is refused.

Alone: pytest tests/benchmarks/test_tasks.py
"""

import json
import sys
import types

import pytest

from fastmtp_benchmarks.shapes import parse_shape, shape_task
from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def file(tmp_path):
    def make(name, rows):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows))
        return str(path)

    return make


def test_evaluation_files(file):
    source = file(
        "any.jsonl",
        [
            {"id": "m/1", "task": "mt_bench", "turns": ["a", "b"]},
            {"id": "q/1", "task": "qa", "system": "be brief", "turns": ["c"]},
            {"id": "m/2", "task": "mt_bench", "turns": ["d"]},
        ],
    )
    assert load_tasks([source]) == [
        Task("mt_bench", (Conversation("m/1", ("a", "b")), Conversation("m/2", ("d",)))),
        Task("qa", (Conversation("q/1", ("c",), "be brief"),)),
    ]
    assert [len(task.conversations) for task in load_tasks([source], limit=1)] == [1, 1]
    assert [task.name for task in load_tasks([f"mine={source}"])] == ["mine"]


def test_a_directory_and_rows_without_a_task(file, tmp_path):
    file("b.jsonl", [{"prompt": "x"}])
    file("a.jsonl", [{"messages": [{"role": "user", "content": "y\u2028z"}]}])
    assert load_tasks([str(tmp_path)]) == [
        Task("a", (Conversation("0", ("y\u2028z",)),)),
        Task("b", (Conversation("0", ("x",)),)),
    ]


def test_sharegpt(file):
    source = file(
        "share.json",
        [
            {
                "id": "s1",
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "not asked"},
                    {"from": "human", "value": "b"},
                ],
            }
        ],
    )
    assert load_tasks([source]) == [Task("share", (Conversation("s1", ("a", "b")),))]


def test_a_data_set(monkeypatch, tmp_path):
    datasets = types.ModuleType("datasets")
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return [{"question": "q0"}, {"question": "q1"}]

    datasets.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    tasks = load_tasks(["qa=datasets:org/name?config=c&split=test&column=question"], limit=1)
    assert tasks == [Task("qa", (Conversation("0", ("q0",)),))]
    assert asked[0][0] == ("org/name", "c")
    assert asked[0][1]["split"] == "test"


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


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.jsonl", [], "holds no conversation"),
        ("a.jsonl", [{"id": 1}], "row 1 has the fields id"),
        ("a.jsonl", [{"turns": ["x"]}, {"turns": [""]}], "row 2 has an empty user turn"),
        ("a.jsonl", [{"id": "x", "turns": ["a"]}] * 2, "2 conversations with the id 'x'"),
        ("a.json", {"turns": ["a"]}, "must hold a list"),
        ("a.jsonl", [{"task": "x" * 300, "turns": ["a"]}], "a name of 300 letters, and 100 are"),
        ("a.csv", [], r"give a \.jsonl or a \.json file"),
    ],
)
def test_bad_files(file, name, rows, message):
    with pytest.raises(FastMTPError, match=f"--task.*{message}"):
        load_tasks([file(name, rows)])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FastMTPError, match=r"--task nowhere\.jsonl: no such file"):
        load_tasks(["nowhere.jsonl"])
    with pytest.raises(FastMTPError, match=r"holds no \.jsonl"):
        load_tasks([str(tmp_path)])
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(FastMTPError, match="not valid JSON"):
        load_tasks([str(tmp_path / "a.jsonl")])


def test_the_digest_follows_the_questions():
    task = Task("t", (Conversation("a", ("x",)),))
    assert task.digest == Task("other", task.conversations).digest
    assert task.digest != Task("t", (Conversation("a", ("y",)),)).digest
    assert task.digest != Task("t", (Conversation("a", ("x",), output_length=3),)).digest


class Words:
    """A tokenizer of words."""

    def encode(self, text, add_special_tokens):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def test_throughput_prompts_have_their_length_and_no_common_prefix():
    texts = [Task("t", tuple(Conversation(str(i), (f"a{i} b{i} c{i}",)) for i in range(10)))]
    task = shape_task(parse_shape("7x5"), 6, Words(), texts)
    prompts = [conversation.turns[0].split() for conversation in task.conversations]
    assert [len(prompt) for prompt in prompts] == [7] * 6
    assert len({prompt[0] for prompt in prompts}) == 6
    assert {conversation.output_length for conversation in task.conversations} == {5}
    assert task.name == "throughput 7x5"
    assert len(shape_task((100, 5), 6, Words(), texts).conversations[5].turns[0].split()) == 100


@pytest.mark.parametrize("text", ["7", "0x5", "7x", "7x5x3", "axb"])
def test_bad_shapes(text):
    with pytest.raises(FastMTPError, match=f"--shape {text}: give prompt tokens x output tokens"):
        parse_shape(text)


def test_shapes_need_text():
    with pytest.raises(FastMTPError, match="--shape: there is no text"):
        shape_task((7, 5), 6, Words(), [])
