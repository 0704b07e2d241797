"""Conversations from every kind of source, and what is refused.

Alone: pytest tests/benchmarks/test_tasks.py
"""

import json
import sys
import types

import pytest

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
