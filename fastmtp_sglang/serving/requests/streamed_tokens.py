"""Streamed tool calls and reasoning: SGLang's parsers get one token at a time.

A step with accepted drafts brings several tokens at once. Many of SGLang's parsers were written for
one token a chunk: of more, the hermes one lets `</tool_call>` through as text and drops arguments
(sglang#37634, #31915). Here a chunk is cut at its tokens before it is parsed, so that a parser sees
what it sees without speculation. Not at characters: some look for their markers at a chunk's end.

Installed in the process that answers HTTP. Answers that nothing parses are streamed as they come,
and so are those of which SGLang parses token ids (`_encoding_output`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, ResponsesRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

# What a tokenizer decodes bytes to that are no whole character yet.
_TORN = "\N{REPLACEMENT CHARACTER}"


class TokenCuts:
    """Cuts the texts of one streamed answer where its tokens end.

    Tokens are decoded as SGLang's detokenizer does it: after those before them, which some
    tokenizers need to tell a leading blank.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """Begin an answer; `decode` gives the text of token ids."""
        self._decode = decode
        self._context: list[int] = []
        self._torn: list[int] = []
        # Where whole characters end, and the tokens whose text is held back with a torn one's, from
        # the beginning of the next chunk.
        self._end = 0
        self._held_back: list[int] = []

    def cut(self, text: str, token_ids: Sequence[int]) -> list[str]:
        """Cut a chunk.

        Args:
            text: what the chunk adds to the answer.
            token_ids: the tokens it adds; the last ones may be a torn character's.

        Returns:
            Pieces of `text` in order, one for each token whose text is in it and at least one; that
            of a token which ends inside a character is empty, as its chunk would be. Where the
            tokenizer decodes otherwise than the detokenizer did, as at a stop string that was
            trimmed, only the cuts up to the next whole character are off.
        """
        from sglang.utils import find_printable_text

        ends = self._held_back
        for token in token_ids:
            self._torn.append(token)
            before = self._decode(self._context)
            new = self._decode(self._context + self._torn)[len(before) :]
            if new and not new.endswith(_TORN):
                self._end += len(new)
                self._context, self._torn = self._torn, []
                ends.append(self._end)
            else:
                ends.append(self._end + len(find_printable_text(new)))
        if self._torn:
            self._end -= len(text)
            self._held_back = [end - len(text) for end in ends if end > len(text)]
            ends = [end for end in ends if end <= len(text)]
        else:
            self._end, self._held_back = 0, []
            ends[-1:] = [len(text)]
        cuts = list(accumulate((min(end, len(text)) for end in ends), max, initial=0))
        if len(cuts) == 1 or cuts[-1] < len(text):
            cuts.append(len(text))
        return [text[a:b] for a, b in pairwise(cuts)]


class ChunkCuts:
    """Cuts SGLang's chunks of one answer into chunks of a token each."""

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool, is_incremental: bool) -> None:
        """Begin an answer.

        Args:
            tokenizer: the served model's.
            skip_special_tokens: of the request.
            is_incremental: chunks hold what is new, not all (--incremental-streaming-output).
        """
        self._cuts = TokenCuts(partial(tokenizer.decode, skip_special_tokens=skip_special_tokens))
        self._is_incremental = is_incremental
        self._num_tokens = self._length = 0

    def cut(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Return chunks like `chunk` in its place; only the last one ends the answer."""
        text, token_ids, meta_info = chunk["text"] or "", chunk["output_ids"], chunk["meta_info"]
        if self._is_incremental:
            pieces = self._cuts.cut(text, token_ids)
        else:
            # The list goes on growing while its chunk waits here.
            known = meta_info["completion_tokens"]
            pieces = self._cuts.cut(text[self._length :], token_ids[self._num_tokens : known])
            self._num_tokens = known
        going_on = meta_info | {"finish_reason": None}
        chunks = []
        for piece in pieces:
            self._length += len(piece)
            so_far = piece if self._is_incremental else text[: self._length]
            chunks.append({**chunk, "text": so_far, "meta_info": going_on})
        chunks[-1]["meta_info"] = meta_info
        return chunks


def install() -> None:
    """Cut what the chat endpoints (OpenAI's, Anthropic's) and /v1/responses parse; idempotent."""
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

    if OpenAIServingChat._generate_stream_content.__module__ != __name__:
        OpenAIServingChat._generate_stream_content = _cutting_chat(
            OpenAIServingChat._generate_stream_content
        )
        OpenAIServingResponses.responses_stream_generator_non_harmony = _cutting_responses(
            OpenAIServingResponses.responses_stream_generator_non_harmony
        )


def _cutting_chat(
    stock: Callable[..., AsyncGenerator[str, None]],
) -> Callable[..., AsyncGenerator[str, None]]:
    async def generate_stream_content(
        serving: OpenAIServingChat,
        *,
        content: dict[str, Any],
        index: int,
        request: ChatCompletionRequest,
        stream_offsets: dict[Any, Any],
        choice_logprobs: dict[str, Any] | None,
        finish_reason_type: str | None,
        **others: Any,
    ) -> AsyncGenerator[str, None]:
        """Parse and send one chunk; `stream_offsets` lives as long as the stream does."""
        chunks = [content]
        is_parsed = (serving.reasoning_parser and request.separate_reasoning) or (
            serving._tool_call_parsing_active(request)
        )
        if is_parsed and serving._encoding_output() is None:
            cuts = stream_offsets.setdefault(
                ("cuts", index), _chunk_cuts(serving, request.skip_special_tokens)
            )
            chunks = cuts.cut(content)
        for position, chunk in enumerate(chunks):
            async for event in stock(
                serving,
                content=chunk,
                index=index,
                request=request,
                stream_offsets=stream_offsets,
                choice_logprobs=choice_logprobs if position == 0 else None,
                finish_reason_type=finish_reason_type if position == len(chunks) - 1 else None,
                **others,
            ):
                yield event

    return generate_stream_content


def _cutting_responses(
    stock: Callable[..., AsyncGenerator[str, None]],
) -> Callable[..., AsyncGenerator[str, None]]:
    def responses_stream_generator_non_harmony(
        serving: OpenAIServingResponses,
        request: ResponsesRequest,
        sampling_params: dict[str, Any],
        result_generator: AsyncIterator[Any],
        *others: Any,
        **named: Any,
    ) -> AsyncGenerator[str, None]:
        if serving._encoding_output() is None:
            skip_special_tokens = sampling_params.get("skip_special_tokens", True)
            result_generator = _cut_all(_chunk_cuts(serving, skip_special_tokens), result_generator)
        return stock(serving, request, sampling_params, result_generator, *others, **named)

    return responses_stream_generator_non_harmony


async def _cut_all(cuts: ChunkCuts, results: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Cut chunks, which the Responses API keeps as the last output of a conversation."""
    async for result in results:
        chunk = result if isinstance(result, dict) else getattr(result, "last_output", None)
        if isinstance(chunk, dict) and "output_ids" in chunk:
            for piece in cuts.cut(chunk):
                yield piece
        else:
            yield result


def _chunk_cuts(serving: OpenAIServingChat, skip_special_tokens: bool) -> ChunkCuts:
    from sglang.srt.runtime_context import get_serving

    return ChunkCuts(
        serving.tokenizer_manager.tokenizer,
        skip_special_tokens=skip_special_tokens,
        is_incremental=get_serving().incremental_streaming_output,
    )
