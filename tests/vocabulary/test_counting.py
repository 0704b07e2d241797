"""Counting: right, evenly held out, and the same after any interruption.

Run alone: pytest tests/vocabulary/test_counting.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts, count_tokens, is_held_out
from fastmtp_sglang.vocabulary.scripts import Script
from fastmtp_sglang.vocabulary.sources import Source, open_source

VOCAB_SIZE = 60
# Ids 0 to 15 are the scripts, the others are Latin.
TABLE = torch.tensor([*range(16), *[int(Script.LATIN)] * (VOCAB_SIZE - 16)], dtype=torch.int8)


def no_text(text: str) -> list[int]:
    raise AssertionError("nothing here is text")


def write_answers(path: Path, answers: list[list[int]], prompt: list[int] | None = None) -> Path:
    lines = [json.dumps({"prompt_ids": prompt or [], "answer_ids": ids}) for ids in answers]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def count(sources: list[Source], checkpoint: Path, **changes) -> TokenCounts:
    options = {
        "tokenizer_fingerprint": "sha256:f",
        "heldout_share": 0.1,
        "checkpoint": checkpoint,
        "on_progress": lambda counts: None,
    }
    return count_tokens(sources, TABLE, **(options | changes))


def same(first: TokenCounts, second: TokenCounts) -> bool:
    return (
        first.documents == second.documents
        and first.undecided == second.undecided
        and all(
            group.keys() == other.keys() and all(np.array_equal(group[k], other[k]) for k in group)
            for group, other in (
                (first.counted, second.counted),
                (first.heldout, second.heldout),
                (first.repeats, second.repeats),
            )
        )
    )


@pytest.fixture
def answers(tmp_path: Path) -> list[str]:
    """Two shards of 120 answers in three languages and none."""
    rng = random.Random(7)
    made = []
    for _ in range(120):
        script = rng.choice([Script.LATIN, Script.HAN, Script.HANGUL, Script.NEUTRAL])
        body = [int(script)] * rng.randrange(6, 40)
        extra = rng.choices(range(16, VOCAB_SIZE), k=rng.randrange(3)) if script == 2 else []
        made.append(body + extra)
    write_answers(tmp_path / "a.jsonl", made[:50])
    write_answers(tmp_path / "b.jsonl", made[50:])
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_every_token_is_counted_once(tmp_path: Path):
    ids = [16, 17, 17, 18, 18, 18]
    path = write_answers(tmp_path / "a.jsonl", [ids] * 20 + [[int(Script.NEUTRAL)] * 9])
    counts = count([open_source(str(path), no_text)], tmp_path / "c")
    assert counts.documents == {"en": 20}
    assert counts.undecided == 9
    assert counts.together["en"][16:19].tolist() == [20, 40, 60]
    assert counts.tokens == 20 * 6 + 9


def test_the_prompt_decides_for_a_short_answer_and_is_not_counted(tmp_path: Path):
    path = write_answers(tmp_path / "a.jsonl", [[0, 0]], prompt=[int(Script.CYRILLIC)] * 20)
    counts = count([open_source(str(path), no_text)], tmp_path / "c")
    assert {name: int(values.sum()) for name, values in counts.counted.items()} == {"ru": 2}


def test_a_label_wins_over_scripts(tmp_path: Path):
    path = write_answers(tmp_path / "a.jsonl", [[int(Script.LATIN)] * 30])
    counts = count([open_source(f"fr={path}", no_text)], tmp_path / "c")
    assert list(counts.counted) == ["fr"]


def test_an_answer_in_two_languages_counts_for_both(tmp_path: Path):
    path = write_answers(tmp_path / "a.jsonl", [[int(Script.LATIN)] * 320 + [3] * 320])
    counts = count([open_source(str(path), no_text)], tmp_path / "c")
    assert counts.counted["en"][int(Script.LATIN)] == 320
    assert counts.counted["zh"][int(Script.HAN)] >= 320 - 64
    assert counts.counted["en"].sum() + counts.counted["zh"].sum() == 640


def test_repeats_of_held_out_documents_are_counted_with_their_prompts(tmp_path: Path):
    answer = [16, 17, 17, 18, 18, 18, 19]
    path = write_answers(tmp_path / "a.jsonl", [answer], prompt=[int(Script.LATIN), 16])
    counts = count([open_source(f"en={path}", no_text)], tmp_path / "c", heldout_share=0.999999)
    assert counts.heldout["en"][16:20].tolist() == [1, 2, 3, 1]
    assert counts.repeats["en"][16:20].tolist() == [1, 1, 2, 0]
    counted = count([open_source(f"en={path}", no_text)], tmp_path / "d", heldout_share=0.0)
    assert not counted.repeats


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_documents_are_held_out_by_what_they_hold(share: float):
    documents = [np.array([index % VOCAB_SIZE, index]) for index in range(2000)]
    held = [is_held_out(ids, share) for ids in documents]
    # Five standard deviations; the hash is fixed, so this passes always or never.
    assert abs(sum(held) - 2000 * share) <= 5 * (2000 * share * (1 - share)) ** 0.5
    assert [is_held_out(ids.astype(np.int32), share) for ids in documents] == held


def test_the_same_documents_are_held_out_in_any_order(tmp_path: Path, answers: list[str]):
    forward = count([open_source(spec, no_text) for spec in answers], tmp_path / "c")
    assert forward.heldout
    lines = [line for path in answers for line in Path(path).read_text().splitlines()]
    random.Random(7).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines))
    shuffled = open_source(str(tmp_path / "shuffled.jsonl"), no_text)
    assert same(count([shuffled], tmp_path / "d"), forward)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up."""


@pytest.mark.parametrize("kill_after", [1, 49, 50, 51, 119])
def test_a_killed_run_goes_on_without_repeating_or_losing(
    tmp_path: Path, answers: list[str], kill_after: int
):
    expected = count([open_source(spec, no_text) for spec in answers], tmp_path / "whole")
    documents = Counter()

    def kill(counts: TokenCounts) -> None:
        documents["seen"] += 1
        if documents["seen"] > kill_after:
            raise Killed

    with pytest.raises(Killed):
        count(
            [open_source(spec, no_text) for spec in answers],
            tmp_path / "c",
            on_progress=kill,
            checkpoint_seconds=0.0,
        )
    resumed = count([open_source(spec, no_text) for spec in answers], tmp_path / "c")
    assert same(resumed, expected)


@pytest.mark.heavy
def test_kill_minus_nine(tmp_path: Path, answers: list[str]):
    """A real process, killed again and again wherever it happens to be."""
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from fastmtp_sglang.vocabulary.counting import count_tokens
from fastmtp_sglang.vocabulary.sources import open_source
table = torch.tensor({TABLE.tolist()}, dtype=torch.int8)
print("ready", flush=True)
count_tokens(
    [open_source(spec, None) for spec in {answers!r}], table, tokenizer_fingerprint="sha256:f",
    heldout_share=0.1, checkpoint=__import__("pathlib").Path({str(tmp_path / "c")!r}),
    on_progress=lambda counts: time.sleep(0.005), checkpoint_seconds=0.0,
)
print("done", flush=True)
"""
    kills = 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout.readline() == "ready\n"
        if kills < 1:
            time.sleep(0.3)
            process.send_signal(signal.SIGKILL)
        finished = process.stdout.read() == "done\n"
        process.wait()
        if finished:
            break
        kills += 1
        assert kills < 10
    assert kills
    resumed = count([open_source(spec, no_text) for spec in answers], tmp_path / "c")
    expected = count([open_source(spec, no_text) for spec in answers], tmp_path / "whole")
    assert same(resumed, expected)


def test_finished_counts_are_read_back_and_not_counted_again(tmp_path: Path, answers: list[str]):
    sources = [open_source(spec, no_text) for spec in answers]
    first = count(sources, tmp_path / "c")

    for source in sources:
        source.documents = None  # any attempt to read is an error
    assert same(count(sources, tmp_path / "c"), first)


@pytest.mark.parametrize("change", ["label", "share", "tokenizer", "order"])
def test_a_checkpoint_of_other_inputs_is_refused(tmp_path: Path, answers: list[str], change: str):
    count([open_source(spec, no_text) for spec in answers], tmp_path / "c")
    options = {}
    if change == "label":
        answers[0] = "en=" + answers[0]
    elif change == "share":
        options["heldout_share"] = 0.2
    elif change == "tokenizer":
        options["tokenizer_fingerprint"] = "sha256:g"
    else:
        answers.reverse()
    with pytest.raises(FastMTPError, match=r"counts of other sources.*--restart"):
        count([open_source(spec, no_text) for spec in answers], tmp_path / "c", **options)


@pytest.mark.parametrize("changed", ["same size", "longer"])
def test_a_corpus_that_was_edited_is_counted_again(tmp_path: Path, changed: str):
    path = write_answers(tmp_path / "a.jsonl", [[16, 17] * 4] * 20)
    count([open_source(str(path), no_text)], tmp_path / "c")
    write_answers(path, [[16, 18] * 4] * (20 if changed == "same size" else 30))
    counts = count([open_source(str(path), no_text)], tmp_path / "c")
    assert counts.together["en"][17] == 0
    assert counts.together["en"][18] == 4 * len(path.read_text().splitlines())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, answers: list[str]):
    (tmp_path / "c").write_bytes(b"something else")
    with pytest.raises(FastMTPError, match=r"not a checkpoint of token counts.*--restart"):
        count([open_source(spec, no_text) for spec in answers], tmp_path / "c")


@pytest.mark.parametrize("ids", [[1, VOCAB_SIZE], [-1, 1]])
def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, ids: list[int]):
    path = write_answers(tmp_path / "a.jsonl", [[1, 2], ids])
    with pytest.raises(FastMTPError, match=r"a\.jsonl: the document at \d+ holds token ids from"):
        count([open_source(str(path), no_text)], tmp_path / "c")
