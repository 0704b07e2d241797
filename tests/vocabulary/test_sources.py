"""Sources: every kind is read whole, in order, and from any position; bad input names its place.

Run alone: pytest tests/vocabulary/test_sources.py
"""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.sources import TEXT_BLOCK, Source, open_source


def encode(text: str) -> list[int]:
    return list(text.encode())


def read(source: Source, start: int = 0) -> bytes:
    return b"".join(bytes(document.ids.tolist()) for document, _ in source.documents(start))


def write_answers(path: Path, answers: list[list[int]], **fields) -> None:
    lines = [json.dumps({"prompt_ids": [9], "answer_ids": ids} | fields) for ids in answers]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source of every kind, with the same 300 numbered lines or answers in it."""
    lines = [f"line {number}, with some text: é的\n" for number in range(300)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("".join(lines[:200]))
    (tmp_path / "text" / "b.md").write_text("".join(lines[200:]))
    (tmp_path / "text" / ".hidden").write_text("no")
    (tmp_path / "answers").mkdir()
    ids = [encode(line) for line in lines]
    write_answers(tmp_path / "answers" / "00000.jsonl", ids[:100])
    write_answers(tmp_path / "answers" / "00001.jsonl", ids[100:])
    (tmp_path / "answers" / "settings.json").write_text("{}")
    rows = "".join(json.dumps({"content": line}) + "\n" for line in lines)
    (tmp_path / "rows.json").write_text(rows)
    return tmp_path


def specs(folder: Path) -> list[str]:
    return [
        f"{folder}/text",
        f"{folder}/answers",
        f"datasets:json?data_files={folder}/rows.json&column=content",
    ]


@pytest.mark.parametrize("kind", range(3))
def test_all_is_read_in_order_and_from_every_position(folder: Path, kind: int):
    source = open_source(specs(folder)[kind], encode)
    documents = list(source.documents(0))
    whole = read(source)
    assert whole.decode().split("\n")[:-1] == [
        f"line {number}, with some text: é的" for number in range(300)
    ]
    assert len(documents) > 1
    done = 0
    for document, position in documents[:: max(1, len(documents) // 7)]:
        done = sum(len(d.ids) for d, p in documents if p <= position)
        assert read(open_source(specs(folder)[kind], encode), position) == whole[done:]
        assert document.ids.dtype == np.int64
    if source.total is not None:
        assert documents[-1][1] == source.total


def test_labels_and_prompts(folder: Path):
    source = open_source(f"zh={folder}/answers/00000.jsonl", encode)
    assert source.label == "zh"
    assert next(source.documents(0))[0].prompt_ids.tolist() == [9]
    assert open_source(f"{folder}/answers", encode).label is None


def test_relative_folders_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder / "answers")
    assert read(open_source("../text", encode)) == read(open_source("../answers", encode))


@pytest.mark.parametrize(
    "text",
    [
        "x" * (3 * TEXT_BLOCK + 5),
        "的" * TEXT_BLOCK,
        "a" + "🙂" * TEXT_BLOCK,
        "word " * TEXT_BLOCK,
        "\n" + "y" * (2 * TEXT_BLOCK),
        " " + "z" * (2 * TEXT_BLOCK),
        "\n" * (2 * TEXT_BLOCK),
    ],
    ids=["ascii", "three bytes", "four bytes", "blanks", "early line", "early blank", "lines"],
)
def test_text_without_line_ends_is_cut_between_characters(tmp_path: Path, text: str):
    (tmp_path / "long.txt").write_text(text)
    seen: list[str] = []

    def keep(block: str) -> list[int]:
        seen.append(block)
        return [0]

    list(open_source(str(tmp_path / "long.txt"), keep).documents(0))
    assert "".join(seen) == text
    assert len(seen) > 1


def test_a_saved_data_set_is_read_from_disk(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "three"]})
    rows.save_to_disk(tmp_path / "single")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "several")
    source = open_source(f"datasets:{tmp_path}/single", encode)
    assert source.total == 3
    assert read(source, 1) == b"twothree"
    assert read(open_source(f"en=datasets:{tmp_path}/several?split=test", encode)) == b"onetwothree"


def test_rows_of_messages_and_of_token_ids(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    datasets.Dataset.from_dict({"messages": messages}).save_to_disk(tmp_path / "chat")
    assert read(open_source(f"datasets:{tmp_path}/chat?column=messages", encode)) == b"hi\nho"
    datasets.Dataset.from_dict({"turns": [["one", "two"]]}).save_to_disk(tmp_path / "turns")
    assert read(open_source(f"datasets:{tmp_path}/turns?column=turns", encode)) == b"one\ntwo"
    datasets.Dataset.from_dict({"answer_ids": [[65, 66]]}).save_to_disk(tmp_path / "ids")
    assert read(open_source(f"datasets:{tmp_path}/ids", encode)) == b"AB"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, byte 40: not valid JSON"),
        ('{"text": "hello"}', "line 2: has no field answer_ids.*datasets:json"),
        ("[1]", "has no field answer_ids"),
        ('{"answer_ids": "1 2"}', "line 2, answer_ids: must be a list of integer"),
        ('{"answer_ids": [1.5]}', "answer_ids: must be a list of integer"),
        ('{"answer_ids": [true]}', "answer_ids: must be a list of integer"),
        ('{"answer_ids": [1], "prompt_ids": 5}', "prompt_ids: must be a list of integer"),
    ],
)
def test_bad_answers_are_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "answers.jsonl"
    write_answers(path, [[1]])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FastMTPError, match=message) as error:
        list(open_source(str(path), encode).documents(0))
    assert str(path) in str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(FastMTPError, match=r"latin1\.txt, line 1, byte 3: 0xe9 is not UTF-8"):
        list(open_source(str(tmp_path / "latin1.txt"), encode).documents(0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.txt", "source nowhere.txt: no such file or folder"),
        ("EN=nowhere.txt", "source EN=nowhere.txt: no such file.*'EN' is no language name"),
        ("datasets:", "names no data set; the form is"),
        ("datasets:x?colum=text", "unknown option colum; the form is"),
        ("datasets:/nowhere/at/all", "datasets cannot open it"),
    ],
)
def test_bad_sources_are_refused(spec: str, message: str):
    with pytest.raises(FastMTPError, match=message):
        open_source(spec, encode)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(FastMTPError, match="the folder holds no files"):
        open_source(str(tmp_path), encode)


def test_a_missing_column_is_named(folder: Path):
    source = open_source(f"datasets:json?data_files={folder}/rows.json", encode)
    with pytest.raises(FastMTPError, match=r"row 0: has no column 'text'; it has content"):
        list(source.documents(0))


def test_a_column_of_numbers_is_refused(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": [1, 2]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(FastMTPError, match=r"row 1: column 'text' holds a int"):
        list(open_source(f"datasets:{tmp_path}/numbers", encode).documents(1))


def test_without_datasets_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    real_import = builtins.__import__

    def without_datasets(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(FastMTPError, match=r"fastmtp-sglang\[bench\]"):
        open_source("datasets:x", encode)
