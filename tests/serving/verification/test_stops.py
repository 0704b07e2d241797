"""A run of accepted tokens stops where decoding token by token stops."""

import random

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.serving.verification import stops

SEED = 20250918
# SGLang's own check, whether or not a test has installed ours before.
STOCK = getattr(Req.update_finish_state, "__wrapped__", Req.update_finish_state)
OURS = stops.token_by_token(STOCK)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    made.additional_stop_token_ids = None  # what SGLang's loader adds
    return made


def finish(check, tokenizer, ids, run_lengths, **sampling):
    """Feed `ids` in runs; returns (output ids, reason) as the client gets them."""
    params = SamplingParams(temperature=0, max_new_tokens=sampling.pop("tokens", 1000), **sampling)
    params.normalize(tokenizer)
    request = Req("r", "", [1, 2, 3], params, vocab_size=49152, eos_token_ids={2})
    request.tokenizer = tokenizer
    start = 0
    for length in run_lengths:
        run = ids[start : start + length]
        request.output_ids.extend(run)
        check(request, len(run))
        start += length
        if request.finished() or start >= len(ids):
            break
    assert list(request.output_ids) == ids[:start][: len(request.output_ids)]
    reason = request.finished_reason.to_json() if request.finished() else None
    return list(request.output_ids[: request.finished_len]), reason


def one_by_one(tokenizer, ids, **sampling):
    return finish(STOCK, tokenizer, ids, [1] * len(ids), **sampling)


CASES = {
    # An EOS, then a stop string, in one run.
    "eos first": ("Hello", [2], " world END", {"stop": ["END"]}),
    # Two stop strings: the first of the list comes second in the text.
    "list order": ("one two", [], " three four", {"stop": ["four", "two"]}),
    "stop string, then eos": ("Hello END", [2], " more", {"stop": ["END"]}),
    "stop string over two tokens": ("a stop", [], "word here", {"stop": ["stopword"]}),
    "regex": ("Item 42", [2], " then 7", {"stop_regex": [r"\d+ then"]}),
    "ignore eos": ("Hello", [2], " world END", {"stop": ["END"], "ignore_eos": True}),
    "length first": ("one two three four", [], " five END", {"stop": ["END"], "tokens": 4}),
    "stop token": ("Hello there", [], " world END", {"stop": ["END"], "stop_token_ids": [905]}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [2, 3, 4, 6, 64])
def test_runs_stop_like_single_tokens(tokenizer, name, width):
    before, special, after, sampling = CASES[name]
    ids = [*tokenizer.encode(before), *special, *tokenizer.encode(after)]
    expected = one_by_one(tokenizer, ids, **sampling)
    assert expected[1] is not None
    assert finish(OURS, tokenizer, ids, [width] * len(ids), **sampling) == expected


@pytest.mark.parametrize("name", ["eos first", "list order"])
def test_stock_differs(tokenizer, name):
    """What the test above would miss if SGLang had repaired it."""
    before, special, after, sampling = CASES[name]
    ids = [*tokenizer.encode(before), *special, *tokenizer.encode(after)]
    expected = one_by_one(tokenizer, ids, **sampling)
    assert finish(STOCK, tokenizer, ids, [64], **sampling) != expected


def test_random_texts_stops_and_runs(tokenizer):
    random.seed(SEED)
    words = ["one", " two", " END", " stop", "\n\n", " 3", ".", " é", "你好", " word", "!"]
    finished = 0
    for _ in range(400):
        ids = tokenizer.encode("".join(random.choices(words, k=12)))
        if random.random() < 0.5:
            ids.insert(random.randrange(len(ids)), 2)
        sampling = {
            "stop": random.sample(["END", "stop", "\n\n", "3.", "好", "two END"], k=2),
            "tokens": random.choice([4, 8, 1000]),
            "ignore_eos": random.random() < 0.3,
        }
        runs = [random.randint(1, 6) for _ in ids]
        expected = one_by_one(tokenizer, ids, **dict(sampling))
        assert finish(OURS, tokenizer, ids, runs, **dict(sampling)) == expected
        finished += expected[1] is not None
    assert finished > 300


def test_a_grammar_that_the_run_completes_ends_the_run(tokenizer):
    params = SamplingParams(temperature=0, max_new_tokens=100, stop=["END"])
    params.normalize(tokenizer)
    request = Req("r", "", [1], params, vocab_size=49152, eos_token_ids={2})
    request.tokenizer = tokenizer
    request.grammar = type("Grammar", (), {"is_terminated": lambda self: True})()
    request.output_ids.extend(tokenizer.encode("one two three"))
    OURS(request, len(request.output_ids))
    assert request.finished()
    assert request.finished_len == len(request.output_ids)
    assert request.grammar is not None


def test_installing_twice_wraps_once(monkeypatch):
    monkeypatch.setattr(Req, "update_finish_state", STOCK)
    stops.install()
    installed = Req.update_finish_state
    stops.install()
    assert Req.update_finish_state is installed
    assert installed.__wrapped__ is STOCK
