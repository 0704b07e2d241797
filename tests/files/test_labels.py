"""`NAME=PLACE` in every command: what exists is a path.

Alone: pytest tests/files/test_labels.py
"""

import json

import pytest

from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.distill.prompts import open_prompts
from fastmtp_sglang.files.labels import split_label
from fastmtp_sglang.vocabulary.sources import open_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.txt", (None, "a.txt")),
        ("en=a.txt", ("en", "a.txt")),
        ("en=a=b.txt", ("en", "a=b.txt")),
        ("en=/x/epoch=1/a", ("en", "/x/epoch=1/a")),
        ("/x/epoch=1/a", (None, "/x/epoch=1/a")),
        ("runs/epoch=1/a", (None, "runs/epoch=1/a")),
        ("datasets:json?data_files=a", (None, "datasets:json?data_files=a")),
        ("q=datasets:json?data_files=a", ("q", "datasets:json?data_files=a")),
        ("=a", (None, "=a")),
        ("a=", (None, "a=")),
        ("x" * 5000, (None, "x" * 5000)),
    ],
)
def test_names_and_places(text, expected):
    assert split_label(text) == expected


def test_an_existing_path_is_a_path_in_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch=1").mkdir()
    (tmp_path / "epoch=1" / "a.txt").write_text("text")
    for name in ("epoch=1/a.jsonl", "k=v.jsonl"):
        (tmp_path / name).write_text(json.dumps({"turns": ["x"], "answer_ids": [1]}) + "\n")

    def no_text(text: str) -> list[int]:
        return [len(text)]

    assert open_source("epoch=1/a.txt", no_text).label is None
    assert open_source("epoch=1", no_text).label is None
    assert open_source("en=epoch=1/a.txt", no_text).label == "en"
    for name, stem in (("epoch=1/a.jsonl", "a"), ("k=v.jsonl", "k=v")):
        (source,) = open_prompts([name])
        assert source.name == stem
        assert [task.name for task in load_tasks([name])] == [stem]
    assert [task.name for task in load_tasks(["mine=k=v.jsonl"])] == ["mine"]
