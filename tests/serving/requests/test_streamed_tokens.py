"""Tool calls and reasoning out of runs of tokens are those token by token, of every parser.

Real ids go through SGLang's detokenizer, its chat endpoint and its parsers; only the model is not
there. Alone: pytest tests/serving/requests/test_streamed_tokens.py
"""

import asyncio
import json
import random
import re
from types import SimpleNamespace

import pytest
from sglang.srt import runtime_context
from sglang.srt.entrypoints.openai import serving_chat
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses
from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
from sglang.srt.managers.detokenizer_manager import DetokenizerManager
from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES
from tool_formats import FORMATS

from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.serving.requests import streamed_tokens
from fastmtp_sglang.serving.requests.streamed_tokens import ChunkCuts, TokenCuts, _cut_all

pytestmark = pytest.mark.heavy

SEED = 20250918
STOCK = OpenAIServingChat._generate_stream_content
CUTTING = streamed_tokens._cutting_chat(STOCK)
# It reads a template that comes with the model's tokenizer; `beam` is one with its own.
OF_A_TEMPLATE = {"response_template"}

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "note": {"type": "string"},
        "days": {"type": "integer"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {
        "type": "function",
        "function": {"name": "close_window", "parameters": {"type": "object", "properties": {}}},
    },
]
CALLS = {
    # Two at once; the emoji are several tokens each, and each token a part of a character.
    "two": [
        ("get_weather", {"city": "北京", "note": "晴 ☀️ 👩‍👩‍👧 ok", "days": 3}),
        ("get_weather", {"city": "São Paulo", "note": "a b", "days": 12}),
    ],
    "no arguments": [("close_window", {})],
}
# Which of these SGLang's own parser does not read token by token, so that nothing is to be kept.
UNREAD = {
    ("cohere_command4", "two"),
    ("gemma4", "two"),
    ("gigachat3", "two"),
    ("gigachat3", "no arguments"),
    ("interns1", "two"),
    ("mistral", "two"),
}
# Seen to differ when a parser gets several tokens at once.
NEEDS_TOKENS = ("deepseekv3", "glm45", "gpt-oss", "hermes", "llama3", "qwen25")


def spoken(parser: str, case: str) -> str:
    """What a model says: text, its calls, and more text."""
    return f"Let me look.\n{FORMATS[parser](CALLS[case])}\nDone. 好了 🎉"


@pytest.fixture(scope="module")
def tokenizer():
    """SmolLM2's, with the markers of all formats as special tokens, as their models have them."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    texts = "".join(spoken(parser, case) for parser in FORMATS for case in CALLS)
    markers = set(re.findall(r"<[^<>\s=]{3,40}>|\[TOOL_CALLS\]|\]<\]minimax\[>\[", texts))
    made.add_special_tokens({"additional_special_tokens": sorted(markers | set(THINKING))})
    return made


THINKING = ("<think>", "</think>")


class Stream:
    """One streamed answer, out of runs of tokens; put together as a client does it."""

    def __init__(
        self,
        monkeypatch,
        tokenizer,
        *,
        tools=None,
        tool_choice="auto",
        reasoning=None,
        incremental=False,
    ):
        settings = SimpleNamespace(incremental_streaming_output=incremental)
        for module in (serving_chat, runtime_context):
            monkeypatch.setattr(module, "get_serving", lambda: settings)
        serving = self.serving = object.__new__(OpenAIServingChat)
        serving.tool_call_parser, serving.reasoning_parser = tools, reasoning
        serving._encoding_adapter = None
        serving.tokenizer_manager = SimpleNamespace(tokenizer=tokenizer)
        # The one that takes nothing else.
        serving.template_manager = SimpleNamespace(force_reasoning=reasoning == "k2_horizon")
        serving._get_reasoning_from_request = lambda request: False
        self.tokenizer, self.incremental = tokenizer, incremental
        self.request = ChatCompletionRequest(
            model="m",
            messages=[{"role": "user", "content": "?"}],
            tools=TOOLS if tools else None,
            tool_choice=tool_choice if tools else None,
            skip_special_tokens=False,
        )

    def run(self, generate, ids, run_lengths) -> dict:
        return asyncio.run(self._run(generate, ids, run_lengths))

    async def _run(self, generate, ids, run_lengths) -> dict:
        got = {"content": "", "reasoning": "", "calls": {}}
        kept = {
            "stream_offsets": {},
            "reasoning_parser_dict": {},
            "parser_dict": {},
            "has_tool_calls": {},
        }
        for chunk in self._chunks(ids, run_lengths):
            reason = chunk["meta_info"]["finish_reason"]
            async for event in generate(
                self.serving,
                content=chunk,
                index=0,
                request=self.request,
                created=0,
                **kept,
                choice_logprobs=None,
                finish_reason_type=reason and reason["type"],
                continuous_usage_stats=False,
                prompt_tokens={},
                reasoning_tokens={},
                completion_tokens={},
            ):
                (choice,) = json.loads(event.removeprefix("data: "))["choices"]
                delta = choice["delta"]
                got["content"] += delta.get("content") or ""
                got["reasoning"] += delta.get("reasoning_content") or ""
                for call in delta.get("tool_calls") or []:
                    name, arguments = got["calls"].get(call["index"], ("", ""))
                    function = call["function"]
                    got["calls"][call["index"]] = (
                        name + (function["name"] or ""),
                        arguments + (function["arguments"] or ""),
                    )
        got["calls"] = list(got["calls"].values())
        return got

    def _chunks(self, ids, run_lengths):
        """What the tokenizer manager hands on, after the detokenizer."""
        detokenizer = object.__new__(DetokenizerManager)
        detokenizer.tokenizer, detokenizer.vocab_size = self.tokenizer, len(self.tokenizer)
        detokenizer.decode_status, detokenizer.disable_tokenizer_batch_decode = {}, False
        text, sent = "", 0
        for length in run_lengths:
            run = ids[sent : sent + length]
            sent += len(run)
            reason = {"type": "length", "length": sent} if sent == len(ids) else None
            told = SimpleNamespace(
                rids=["r"],
                decoded_texts=[""],
                decode_ids=[run],
                read_offsets=[0],
                finished_reasons=[reason],
                no_stop_trim=[False],
                skip_special_tokens=[False],
                spaces_between_special_tokens=[True],
            )
            (new,) = detokenizer._decode_batch_token_id_output(told)
            text += new
            yield {
                "text": new if self.incremental else text,
                # All ids so far, and some that came while the chunk waited.
                "output_ids": run if self.incremental else ids[: sent + 2],
                "meta_info": {"id": "r", "completion_tokens": sent, "finish_reason": reason},
            }
            if reason:
                return


def random_runs(generator: random.Random, count: int, most: int) -> list[int]:
    return [generator.randint(1, most) for _ in range(count)]


def test_every_parser_has_a_format():
    assert set(TOOL_CALL_PARSER_NAMES) - set(FORMATS) == OF_A_TEMPLATE


@pytest.mark.parametrize("parser", FORMATS)
def test_tool_calls(monkeypatch, tokenizer, parser):
    for case, calls in CALLS.items():
        ids = tokenizer.encode(spoken(parser, case), add_special_tokens=False)
        stream = Stream(monkeypatch, tokenizer, tools=parser)
        expected = stream.run(STOCK, ids, [1] * len(ids))
        if (parser, case) not in UNREAD:
            found = [(name, json.loads(arguments or "{}")) for name, arguments in expected["calls"]]
            assert found == calls
        generator = random.Random(SEED)
        for most in (2, 4, 8, 64):
            runs = random_runs(generator, len(ids), most)
            assert stream.run(CUTTING, ids, runs) == expected


@pytest.mark.parametrize("parser", NEEDS_TOKENS)
def test_stock_differs(monkeypatch, tokenizer, parser):
    """What the test above would miss if SGLang had repaired it."""
    ids = tokenizer.encode(spoken(parser, "two"), add_special_tokens=False)
    stream = Stream(monkeypatch, tokenizer, tools=parser)
    expected = stream.run(STOCK, ids, [1] * len(ids))
    generator = random.Random(SEED)
    runs = [random_runs(generator, len(ids), 4) for _ in range(8)]
    assert any(stream.run(STOCK, ids, lengths) != expected for lengths in runs)


def test_forced_calls(monkeypatch, tokenizer):
    """Of parsers whose format no grammar describes, they are a JSON array."""
    said = [{"name": name, "parameters": arguments} for name, arguments in CALLS["two"]]
    ids = tokenizer.encode(json.dumps(said, ensure_ascii=False), add_special_tokens=False)
    stream = Stream(monkeypatch, tokenizer, tools="pythonic", tool_choice="required")
    expected = stream.run(STOCK, ids, [1] * len(ids))
    assert [(name, json.loads(arguments)) for name, arguments in expected["calls"]] == CALLS["two"]
    generator = random.Random(SEED)
    for most in (2, 4, 8, 64):
        assert stream.run(CUTTING, ids, random_runs(generator, len(ids), most)) == expected


@pytest.mark.parametrize("parser", ["hermes", "kimi_k2"])
def test_chunks_that_hold_only_what_is_new(monkeypatch, tokenizer, parser):
    """--incremental-streaming-output."""
    ids = tokenizer.encode(spoken(parser, "two"), add_special_tokens=False)
    stream = Stream(monkeypatch, tokenizer, tools=parser, incremental=True)
    expected = stream.run(STOCK, ids, [1] * len(ids))
    generator = random.Random(SEED)
    for most in (2, 4, 8):
        assert stream.run(CUTTING, ids, random_runs(generator, len(ids), most)) == expected


@pytest.mark.parametrize("parser", sorted(set(REASONING_PARSER_NAMES) - OF_A_TEMPLATE))
def test_reasoning(monkeypatch, tokenizer, parser):
    forced = True if parser == "k2_horizon" else None
    detector = ReasoningParser(parser, force_reasoning=forced, tokenizer=tokenizer).detector
    begin = getattr(detector, "think_start_token", None) or THINKING[0]
    end = getattr(detector, "think_end_token", None) or THINKING[1]
    text = f"{begin}\n想一想 🤔, step by step.\n{end}\n\nIt is 42. 好了 🎉"
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = Stream(monkeypatch, tokenizer, reasoning=parser)
    expected = stream.run(STOCK, ids, [1] * len(ids))
    assert "想一想 🤔, step by step." in expected["content"] + expected["reasoning"]
    generator = random.Random(SEED)
    for most in (2, 4, 8, 64):
        assert stream.run(CUTTING, ids, random_runs(generator, len(ids), most)) == expected


def test_reasoning_and_tool_calls(monkeypatch, tokenizer):
    ids = tokenizer.encode(
        f"<think>\n想 🤔\n</think>\n\n{spoken('qwen25', 'two')}", add_special_tokens=False
    )
    stream = Stream(monkeypatch, tokenizer, tools="qwen25", reasoning="qwen3")
    expected = stream.run(STOCK, ids, [1] * len(ids))
    assert expected["reasoning"].strip() == "想 🤔"
    assert [json.loads(arguments) for _, arguments in expected["calls"]] == [
        arguments for _, arguments in CALLS["two"]
    ]
    generator = random.Random(SEED)
    for most in (2, 4, 8, 64):
        assert stream.run(CUTTING, ids, random_runs(generator, len(ids), most)) == expected


# --- the cuts themselves ---


def test_pieces_are_tokens_and_never_parts_of_characters(tokenizer):
    text = "Hello, wörld 你好 👩‍👩‍👧🎉 <tool_call> end"
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = TokenCuts(tokenizer.decode).cut(text, ids)
    assert "".join(pieces) == text
    assert "<tool_call>" in pieces
    assert pieces[:2] == ["Hello", ","]
    assert len(pieces) == len(ids)
    for piece, token in zip(pieces, ids, strict=True):
        assert piece in tokenizer.decode([token]) or not piece.isascii()
    assert "" in pieces  # tokens that end inside a character


def test_a_text_that_does_not_fit_its_tokens_is_kept(tokenizer):
    """A stop string was trimmed, a token has no text, or there are no tokens at all."""
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    for text in ("one tw", "something else altogether", "", "one two three"):
        for given in (ids, ids[:1], []):
            cuts = TokenCuts(tokenizer.decode)
            assert "".join(cuts.cut(text, given)) == text
            assert cuts.cut("!", [17]) == ["!"]


def test_only_the_last_chunk_ends_the_answer(tokenizer):
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    meta = {"completion_tokens": len(ids), "finish_reason": {"type": "stop"}}
    chunk = {"text": "one two three", "output_ids": ids, "meta_info": meta}

    async def results():
        yield SimpleNamespace(last_output=chunk)  # as the Responses API has it
        yield "something else"

    async def read():
        cuts = ChunkCuts(tokenizer, skip_special_tokens=True, is_incremental=False)
        return [piece async for piece in _cut_all(cuts, results())]

    *pieces, last, other = asyncio.run(read())
    assert [piece["text"] for piece in (*pieces, last)] == ["one", "one two", "one two three"]
    assert all(piece["meta_info"]["finish_reason"] is None for piece in pieces)
    assert last["meta_info"] == meta
    assert other == "something else"


def test_installing_twice_wraps_once(monkeypatch):
    monkeypatch.setattr(OpenAIServingChat, "_generate_stream_content", STOCK)
    monkeypatch.setattr(
        OpenAIServingResponses,
        "responses_stream_generator_non_harmony",
        OpenAIServingResponses.responses_stream_generator_non_harmony,
    )
    streamed_tokens.install()
    installed = OpenAIServingChat._generate_stream_content
    assert installed is not STOCK
    streamed_tokens.install()
    assert OpenAIServingChat._generate_stream_content is installed
