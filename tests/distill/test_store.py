"""The output directory: what a kill leaves behind, and what must not be gone on with.

Alone: pytest tests/distill/test_store.py
"""

import json

import pytest

from fastmtp_sglang.distill.records import Message, Record
from fastmtp_sglang.distill.store import Store, read_manifest
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def record(settings):
    def make(index: int, turn: int = 0, **fields) -> Record:
        values = {
            "id": f"p/{index}/0/{turn}",
            "conversation": f"p/{index}/0",
            "turn": turn,
            "source": "p",
            "messages": [Message(role="user", content="question")],
            "prompt_ids": [1, 2, 3],
            "answer_ids": [4, 5, 2],
            "answer": "naïve 长城",
            "finish_reason": "stop",
            "sampling": settings.sampling,
            "model": "smollm2",
        }
        return Record(**(values | fields))

    return make


@pytest.fixture
def opened(tmp_path, settings):
    def opened(*, asked: int | None = None, **changes) -> Store:
        return Store(tmp_path / "out", settings.model_copy(update=changes), 3, asked)

    return opened


def test_shards_and_journal(opened, record, tmp_path, read_lines):
    with opened() as store:
        for index in range(5):
            store.add(record(index))
        assert sorted(path.name for path in (tmp_path / "out").glob("shard*")) == [
            "shard-00000.jsonl",
            "shard-00001.journal",
        ]
        store.complete()
    lines = read_lines(tmp_path / "out")
    assert [Record.model_validate(line) for line in lines] == [record(i) for i in range(5)]
    manifest = read_manifest(tmp_path / "out")
    assert manifest.complete
    assert [shard.records for shard in manifest.shards] == [3, 2]
    assert manifest.counts.answers == 5
    assert manifest.counts.answer_tokens == 15


def test_going_on_after_a_torn_write(opened, record, tmp_path, read_lines):
    with opened() as store:
        for index in range(4):
            store.add(record(index))
        store.add_prompt("self/0/0/0", "a question")
        store.skip("p/9/0", 0, "context full", "why")
    out = tmp_path / "out"
    finished = (out / "shard-00000.jsonl").stat()
    for name in ("shard-00001.journal", "prompts.journal", "skipped.journal"):
        with (out / name).open("ab") as file:
            file.write(b'{"id": "torn ' + b"x" * 100_000)
    with opened() as store:
        assert store.counts.answers == 4
        assert store.counts.skipped == {"context full": 1}
        assert store.skip_reason("p/9/0") == "context full"
        assert store.prompt("self/0/0/0") == "a question"
        assert list(store.opening_prompts) == ["a question"]
        assert store.last_record("p/3/0") == record(3)
        assert store.last_record("p/4/0") is None
        store.add(record(4))
        store.complete()
    assert [line["id"] for line in read_lines(out)] == [f"p/{i}/0/0" for i in range(5)]
    after = (out / "shard-00000.jsonl").stat()
    assert (after.st_mtime_ns, after.st_ino) == (finished.st_mtime_ns, finished.st_ino)


def test_last_record_is_found_after_its_journal_became_a_shard(opened, record):
    with opened() as store:
        store.add(record(0))
        store.add(record(0, turn=1, finish_reason="length"))
        store.add(record(1))
        last = store.last_record("p/0/0")
        assert last is not None
        assert (last.turn, last.finish_reason) == (1, "length")
        assert store.counts.length == 1


def test_kill_between_rename_and_manifest(opened, record, tmp_path):
    with opened() as store:
        for index in range(2):
            store.add(record(index))
    (tmp_path / "out" / "shard-00000.journal").rename(tmp_path / "out" / "shard-00000.jsonl")
    with opened() as store:
        assert store.counts.answers == 2
        store.add(record(2))
        store.complete()
    assert [shard.records for shard in read_manifest(tmp_path / "out").shards] == [2, 1]


def test_other_arguments_are_refused_by_name(opened, settings):
    sampling = settings.sampling.model_copy(update={"temperature": 0.9})
    with opened():
        pass
    with pytest.raises(FastMTPError, match=r"--temperature.*0\.6.*0\.9"), opened(sampling=sampling):
        pass
    with pytest.raises(FastMTPError, match=r"--seed was 0 and is 1"), opened(seed=1):
        pass


def test_only_a_finished_order_is_complete(opened, record):
    with opened(asked=1) as store:
        assert not store.is_complete
        store.add(record(0))
        store.complete()
    with opened(asked=1) as store:
        assert store.is_complete
    with opened(asked=2) as store:  # a larger order goes on
        assert not store.is_complete
    with opened(asked=1) as store:
        assert not store.is_complete


def test_two_runs_at_once_are_refused(opened):
    with opened(), pytest.raises(FastMTPError, match="another `fastmtp distill`"), opened():
        pass


def test_foreign_and_damaged_directories_are_refused(opened, record, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(FastMTPError, match=r"holds thesis\.txt"), opened():
        pass
    (out / "thesis.txt").unlink()
    with opened() as store:
        for index in range(3):
            store.add(record(index))
    shard = out / "shard-00000.jsonl"
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(lines[:2]))
    with pytest.raises(FastMTPError, match="was changed after"), opened():
        pass
    shard.write_text("".join(lines[:2]) + lines[2].replace("answer_ids", "ids"))
    with pytest.raises(FastMTPError, match=r"shard-00000\.jsonl, byte \d+: answer_ids"), opened():
        pass
    shard.unlink()
    with pytest.raises(FastMTPError, match=r"lacks shard-00000\.jsonl"), opened():
        pass


@pytest.mark.parametrize("line", [b"\xff\x00garbage\n", b"[1]\n", b'{"x": 1}\n', b"7\n"])
@pytest.mark.parametrize("name", ["skipped.journal", "prompts.journal", "shard-00000.journal"])
def test_garbage_in_a_journal_is_one_line_and_can_be_deleted(opened, record, tmp_path, name, line):
    with opened() as store:
        store.add(record(0))
        store.add_prompt("self/0/0/0", "a question")
        store.skip("p/9/0", 0, "context full")
    path = tmp_path / "out" / name
    good = path.read_bytes()
    path.write_bytes(good + line + good)
    with pytest.raises(
        FastMTPError, match=rf"{name}, byte {len(good)}: .*delete that line"
    ) as told:
        opened().__enter__()
    assert "\n" not in str(told.value)
    path.write_bytes(good)
    with opened() as store:
        assert store.counts.answers == 1


def test_a_damaged_shard_may_be_emptied(opened, record, tmp_path, read_lines):
    with opened() as store:
        for index in range(4):
            store.add(record(index))
    shard = tmp_path / "out" / "shard-00000.jsonl"
    shard.write_bytes(b"\0" * 100)
    with pytest.raises(FastMTPError, match=r"shard-00000\.jsonl, byte 0: .*empty the file") as told:
        opened().__enter__()
    assert "\n" not in str(told.value)
    shard.write_bytes(b"")
    with opened() as store:
        assert store.last_record("p/0/0") is None  # asked again
        assert store.last_record("p/3/0") == record(3)
        for index in range(3):
            store.add(record(index))
        store.complete()
    with opened() as store:
        assert store.counts.answers == 4
    assert len(read_lines(tmp_path / "out")) == 4


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]"])
def test_damaged_manifest_is_one_line(opened, tmp_path, content):
    with opened():
        pass
    (tmp_path / "out" / "manifest.json").write_bytes(content)
    with pytest.raises(FastMTPError, match=r"manifest\.json: not a manifest") as told:
        opened().__enter__()
    assert "\n" not in str(told.value)


def test_full_disk_keeps_what_is_answered(opened, record, monkeypatch):
    import os

    with opened() as store:
        store.add(record(0))

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FastMTPError, match=r"No space left.*is kept"):
            store.add(record(1))
        monkeypatch.undo()
    with opened() as store:
        assert store.counts.answers >= 1


def test_lone_surrogates_survive(opened, record, tmp_path, read_lines):
    with opened() as store:
        store.add(record(0, messages=[Message(role="user", content="\ud83d broken")]))
        store.complete()
    assert json.dumps(read_lines(tmp_path / "out")[0]["messages"]).count("\\ud83d") == 1
