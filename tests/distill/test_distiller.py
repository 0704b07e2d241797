"""Whole runs against a fake endpoint: turns, self-written prompts, cuts, and going on.

Alone: pytest tests/distill/test_distiller.py
"""

import itertools

import pytest

from fastmtp_sglang.distill.chat import ChatTemplate, PlainText
from fastmtp_sglang.distill.store import read_manifest
from fastmtp_sglang.errors import FastMTPError

pytestmark = pytest.mark.heavy


def numbered(prefix: str = "question"):
    """An endpoint's answers: a new question for every user turn, else what it was asked."""
    count = itertools.count()

    def answer(text: str, _: dict) -> str:
        if text.endswith("user\n"):
            return f"{prefix} {next(count)}"
        return f"answer to {text.rpartition('user')[2].partition('<')[0].strip()}"

    return answer


def test_record(run, endpoint, prompts, tmp_path, read_lines, chat, target):
    run(endpoint.url, prompts=[prompts({"prompt": "Name a fruit."})], system="Be brief.")
    (record,) = read_lines(tmp_path / "out")
    assert record["id"] == "p/0/0/0"
    assert record["conversation"] == "p/0/0"
    assert (record["turn"], record["source"], record["model"]) == (0, "p", "smollm2")
    assert record["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a fruit."},
    ]
    (sent,) = endpoint.requests
    assert record["prompt_ids"] == sent["input_ids"]
    assert record["answer_ids"][-1] == 2
    assert target.tokenizer.decode(record["answer_ids"][:-1]) == record["answer"]
    asked = sent["sampling_params"]
    assert record["sampling"] == {name: asked[name] for name in record["sampling"]}
    assert isinstance(asked["sampling_seed"], int)


def test_later_turns_see_the_models_own_answers(run, endpoint, prompts, tmp_path, read_lines):
    endpoint.answer = lambda text, _: f"answer {text.count('<|im_start|>user')}"
    run(endpoint.url, prompts=[prompts({"turns": ["one", "two", "three"]})], turns=2)
    first, second = read_lines(tmp_path / "out")
    assert [first["turn"], second["turn"]] == [0, 1]
    assert [message["content"] for message in second["messages"]] == ["one", "answer 1", "two"]
    assert second["prompt_ids"][: len(first["prompt_ids"])] == first["prompt_ids"]


def test_samples_and_limit(run, endpoint, prompts, tmp_path, read_lines):
    rows = [{"prompt": f"question {i}"} for i in range(5)]
    progress, counts = run(endpoint.url, prompts=[prompts(*rows)], samples=2, limit=3)
    assert counts.answers == progress.conversations == progress.total == 6
    ids = {record["id"] for record in read_lines(tmp_path / "out")}
    assert ids == {f"p/{index}/{sample}/0" for index in range(3) for sample in range(2)}
    seeds = {request["sampling_params"]["sampling_seed"] for request in endpoint.requests}
    assert len(seeds) == 6


def test_bad_rows_are_counted(run, endpoint, prompts):
    rows = [{"prompt": "fine"}, {"x": 1}, {"prompt": ""}]
    _, counts = run(endpoint.url, prompts=[prompts(*rows)])
    assert counts.answers == 1
    assert counts.skipped == {"bad row": 2}


def test_self_prompts_are_distinct_and_as_many_as_asked(run, endpoint, tmp_path, read_lines):
    texts = itertools.cycle(["What is rain?", "what is  RAIN?", "Why?", "Who?", "", "When?"])
    answer = numbered()
    endpoint.answer = lambda text, sampling: (
        next(texts) if text.endswith("user\n") else answer(text, sampling)
    )
    progress, counts = run(endpoint.url, self_prompt=4)
    records = read_lines(tmp_path / "out")
    assert counts.answers == progress.conversations == len(records) == 4
    said = {record["messages"][0]["content"] for record in records}
    assert {" ".join(text.lower().split()) for text in said} == {
        "what is rain?",
        "why?",
        "who?",
        "when?",
    }
    assert counts.skipped["prompt duplicate"] >= 1
    assert counts.skipped["prompt empty"] >= 1
    written = [r for r in endpoint.requests if r["sampling_params"]["temperature"] == 1.0]
    assert written[0]["sampling_params"]["stop_token_ids"] == [2]


def test_self_prompts_begin_with_the_given_words_in_turn(run, endpoint, tmp_path, read_lines):
    said, answer = itertools.count(), numbered()
    endpoint.answer = lambda text, sampling: (
        f" {next(said)} things" if text.endswith(("List", "Why")) else answer(text, sampling)
    )
    run(endpoint.url, self_prompt=4, concurrency=1, prompt_starts=["List", "Why"])
    prompts = [record["messages"][0]["content"] for record in read_lines(tmp_path / "out")]
    assert prompts == ["List 0 things", "Why 1 things", "List 2 things", "Why 3 things"]


def test_self_written_turns(run, endpoint, tmp_path, read_lines):
    endpoint.answer = numbered()
    _, counts = run(endpoint.url, self_prompt=2, turns=2)
    assert counts.answers == 4
    later = [record for record in read_lines(tmp_path / "out") if record["turn"] == 1]
    for record in later:
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant", "user"]


def prompts_begin_with(*texts: str):
    """As an endpoint's answers: the first prompts that it writes itself, and then numbers."""
    given, answer = iter(texts), numbered()
    return lambda text, sampling: (
        next(given, None) or answer(text, sampling)
        if text.endswith("user\n")
        else answer(text, sampling)
    )


def test_prompt_that_is_cut_or_holds_control_tokens_is_replaced(run, endpoint):
    endpoint.answer = prompts_begin_with("never ends", "ends <|im_start|> badly")
    once = iter([True])
    endpoint.cut = lambda text: next(once, False)
    _, counts = run(endpoint.url, self_prompt=2, concurrency=1)
    assert counts.answers == 2
    assert counts.skipped == {"prompt without an end": 1, "prompt with control tokens": 1}


def test_a_text_may_go_on_from_where_it_was_cut(run, endpoint, tmp_path, read_lines, monkeypatch):
    """A target without a chat template takes any beginning; but for half a character."""
    monkeypatch.setattr(ChatTemplate, "needs_whole_turns", PlainText.needs_whole_turns)
    endpoint.answer = prompts_begin_with("Half of a wo", "Half of a character\ufffd")
    cuts = iter([True, False, True, False])
    endpoint.cut = lambda text: next(cuts, False)
    _, counts = run(endpoint.url, self_prompt=2, concurrency=1)
    assert (counts.answers, counts.skipped) == (2, {})
    prompts = [record["messages"][0]["content"] for record in read_lines(tmp_path / "out")]
    assert prompts == ["Half of a wo", "Half of a character"]


def test_target_without_variety_is_an_error_that_keeps_what_is_done(
    run, endpoint, tmp_path, read_lines
):
    endpoint.answer = lambda text, _: "the same"
    with pytest.raises(FastMTPError, match=r"of \d+ prompts.*duplicate.*--prompt-temperature"):
        run(endpoint.url, self_prompt=3)
    assert len(read_lines(tmp_path / "out" / "shard-00000.journal")) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_answers_cut_by_length(run, endpoint, prompts, tmp_path, read_lines, keep):
    endpoint.cut = lambda text: "long" in text
    rows = [{"turns": ["a long one", "never asked"]}, {"prompt": "short"}]
    progress, counts = run(endpoint.url, prompts=[prompts(*rows)], keep_truncated=keep)
    assert progress.conversations == 2
    assert len(endpoint.requests) == 2
    records = {record["id"]: record for record in read_lines(tmp_path / "out")}
    assert records["p/1/0/0"]["finish_reason"] == "stop"
    if keep:
        assert records["p/0/0/0"]["finish_reason"] == "length"
        assert records["p/0/0/0"]["answer_ids"][-1] != 2
        assert (counts.finished, counts.length, counts.skipped) == (1, 1, {})
    else:
        assert len(records) == 1
        assert counts.skipped == {"cut by length": 1}


def test_context_bounds_the_answer(run, endpoint, prompts, settings, tmp_path, read_lines):
    wide = settings.sampling.model_copy(update={"max_new_tokens": 100_000})
    rows = [{"prompt": "fits"}, {"prompt": "word " * 8200}]
    _, counts = run(endpoint.url, prompts=[prompts(*rows)], sampling=wide)
    (record,) = read_lines(tmp_path / "out")
    room = record["sampling"]["max_new_tokens"] + len(record["prompt_ids"])
    assert 8192 - 64 <= room < 8192
    assert counts.skipped == {"context full": 1}


def test_refused_request_is_counted_and_the_others_go_on(run, endpoint, prompts):
    endpoint.replies = [(400, {"error": "no"})]
    rows = [{"prompt": f"question {i}"} for i in range(4)]
    progress, counts = run(endpoint.url, prompts=[prompts(*rows)])
    assert (counts.answers, counts.skipped) == (3, {"failed": 1})
    assert (progress.conversations, progress.dropped) == (4, 1)


def test_failed_requests_are_asked_again_by_the_same_command(
    run, endpoint, prompts, tmp_path, read_lines
):
    path = prompts(*({"turns": [f"first {i}", f"second {i}"]} for i in range(4)))
    usual = endpoint.generate

    def outage(body):
        asked = target_text(endpoint, body)
        return (400, {"error": "no"}) if "second 1" in asked or "first 3" in asked else usual(body)

    endpoint.generate = outage
    _, counts = run(endpoint.url, prompts=[path])
    assert (counts.answers, counts.skipped) == (5, {"failed": 2})
    assert not read_manifest(tmp_path / "out").complete
    _, counts = run(endpoint.url, prompts=[path])  # the outage lasts
    assert (counts.answers, counts.skipped) == (5, {"failed": 2})
    endpoint.generate = usual
    progress, counts = run(endpoint.url, prompts=[path])
    assert (counts.answers, counts.skipped) == (8, {})
    assert (progress.conversations, progress.dropped) == (4, 0)
    assert len(read_lines(tmp_path / "out")) == 8
    assert max(endpoint.prompts().values()) == 1
    assert read_manifest(tmp_path / "out").complete


def target_text(endpoint, body) -> str:
    return endpoint.target.tokenizer.decode(body["input_ids"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"output_ids": [5, 49152, 2]},
        {"output_ids": [5, -1, 2]},
        {"output_ids": [5, "x", 2]},
        {"finish_reason": {"type": "stop", "matched": "NaN happened"}},
    ],
    ids=["outside", "negative", "text", "NaN"],
)
def test_answers_that_cannot_be_trained_on_are_failed_requests(run, endpoint, prompts, wrong):
    meta = {"prompt_tokens": None, "finish_reason": {"type": "stop", "matched": 2}}
    usual = endpoint.generate

    def broken(body):
        if "question 1" not in target_text(endpoint, body):
            return usual(body)
        content = {"output_ids": [5, 2], **wrong}
        told = meta | {"prompt_tokens": len(body["input_ids"])}
        if "finish_reason" in content:
            told["finish_reason"] = content.pop("finish_reason")
        return 200, {**content, "meta_info": told}

    endpoint.generate = broken
    rows = [{"prompt": f"question {i}"} for i in range(3)]
    _, counts = run(endpoint.url, prompts=[prompts(*rows)])
    assert (counts.answers, counts.skipped) == (2, {"failed": 1})


def test_going_on_asks_only_what_is_missing(run, endpoint, prompts, tmp_path, read_lines):
    """Killed in the middle of conversations: later turns go on from the recorded answers."""
    path = prompts(*({"turns": [f"first {i}", f"second {i}"]} for i in range(6)))
    usual = endpoint.generate
    endpoint.generate = lambda body: usual(body) if len(endpoint.requests) < 5 else (503, {})
    with pytest.raises(FastMTPError, match="none answers"):
        run(endpoint.url, prompts=[path])
    endpoint.generate = usual
    progress, counts = run(endpoint.url, prompts=[path])
    assert counts.answers == len(read_lines(tmp_path / "out")) == 12
    assert progress.conversations == 6
    assert max(endpoint.prompts().values()) == 1
    again, _ = run(endpoint.url, prompts=[path])
    assert len(endpoint.requests) == 12
    assert again.conversations == 6


def test_going_on_with_self_written_prompts(run, endpoint, tmp_path, read_lines):
    """A prompt that was written but not yet answered is answered, and not written again."""
    endpoint.answer = numbered()
    usual = endpoint.generate
    endpoint.generate = lambda body: usual(body) if len(endpoint.requests) < 9 else (503, {})
    with pytest.raises(FastMTPError, match="none answers"):
        run(endpoint.url, self_prompt=6)
    endpoint.generate = usual
    _, counts = run(endpoint.url, self_prompt=6)
    assert counts.answers == 6
    assert len(endpoint.requests) == 12
    run(endpoint.url, self_prompt=8)  # a larger order keeps what is there
    assert len(read_lines(tmp_path / "out")) == 8
    assert len(endpoint.requests) == 16
