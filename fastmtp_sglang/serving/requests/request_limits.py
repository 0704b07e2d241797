"""What is refused of a single request: what would kill the scheduler, and all other requests.

That is a prompt without tokens or with ids that the model does not have, more log-probabilities
than there are tokens, a logit processor that cannot be read, fields of other types than SGLang
declares, and with FASTMTP a `lang` that is no name. All are found in the process that receives
requests; the client gets HTTP 400 with the
text. SGLang calls `check` after its own validation of each request's parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmtp_sglang.contract.identity import is_ours

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_params import SamplingParams


def refuse_language(custom_params: Any) -> None:
    """Check what a request says of its draft list.

    Raises:
        ValueError: `custom_params` is no map, or its `lang` no text; SGLang answers HTTP 400.
    """
    if custom_params is None:
        return
    if not isinstance(custom_params, dict):
        raise ValueError(
            f'custom_params is {custom_params!r:.80}; it is a map, as {{"lang": "zh"}} is.'
        )
    name = custom_params.get("lang")
    if name is not None and not isinstance(name, str):
        raise ValueError(
            f'custom_params {{"lang": {name!r:.80}}}: lang is the name of a draft list, as "zh" is.'
        )


def check(result: None, params: SamplingParams, *args: object) -> None:
    """Hook after `SamplingParams.verify`; does nothing in servers that do not use FASTMTP."""
    from sglang.srt.runtime_context import get_context, get_spec

    published = get_context().is_config_namespace_published("spec")
    if published and is_ours(get_spec().speculative_algorithm):
        refuse_language(params.custom_params)


def refuse_token_ids(input_ids: Sequence[Any] | None, vocab_size: int) -> None:
    """Check the token ids of a prompt; None where it comes as embeddings.

    Raises:
        ValueError: there are none, or one is no id of the vocabulary; SGLang answers HTTP 400.
    """
    if input_ids is not None and len(input_ids) == 0:
        raise ValueError("The prompt has no tokens, so there is nothing to go on from.")
    for position, token in enumerate(input_ids or ()):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(
                f"input_ids[{position}] is {token!r}; token ids of this model are the integers "
                f"from 0 to {vocab_size - 1}."
            )


def refuse_logprobs(top_logprobs_num: int | None, vocab_size: int) -> None:
    """Check how many of the best tokens' log-probabilities a request asks for.

    Raises:
        ValueError: more than there are tokens, or less than none; SGLang answers HTTP 400.
    """
    if not 0 <= (top_logprobs_num or 0) <= vocab_size:
        raise ValueError(f"top_logprobs_num {top_logprobs_num} is not between 0 and {vocab_size}.")


def refuse_logit_processor(processor: str | None) -> None:
    """Check that a custom logit processor can be read, as the scheduler will read it.

    Raises:
        ValueError: it cannot; SGLang answers HTTP 400.
    """
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    if not processor:
        return
    try:
        made = CustomLogitProcessor.from_str(processor)
    except Exception as error:
        raise ValueError(f"custom_logit_processor cannot be read: {error}") from error
    if not callable(made):
        raise ValueError("custom_logit_processor is of a class that cannot be called.")


def refuse_wrong_types(request: Any) -> None:
    """Check that every field of a request has the type that SGLang declares for it.

    Args:
        request: SGLang's tokenized request.

    Raises:
        ValueError: naming the field of the wrong type; SGLang answers HTTP 400.
    """
    import msgspec
    from sglang.srt.managers import io_struct
    from sglang.srt.managers.embed_types import PositionalEmbeds

    overrides = request.positional_embed_overrides
    if overrides is not None and not isinstance(overrides, PositionalEmbeds):
        raise ValueError(
            f"positional_embed_overrides of the request has a wrong type: {overrides!r:.80}"
        )
    # SGLang's own objects, which may hold what only pickle takes. Pickle is its default, with which
    # nothing has a type before it is used; this is the other way of sending.
    own = {"positional_embed_overrides": None, "time_stats": None, "mm_inputs": None}
    parts = msgspec.structs.replace(request, **own)
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(parts))
    except Exception as error:
        where = re.search(r"\$\[(\d+)\]", str(error))
        field = request.__struct_fields__[int(where[1]) - 1] if where else "a field"
        raise ValueError(f"{field} of the request has a wrong type: {error}") from error


def install() -> None:
    """Let SGLang's tokenizer manager check all that too, in this process; idempotent."""
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    stock = TokenizerManager._validate_one_request
    stock_create = TokenizerManager._create_tokenized_object
    if stock.__module__ == __name__:
        return

    def validate(manager: TokenizerManager, obj: Any, input_ids: list[int]) -> None:
        vocab_size = manager.model_config.vocab_size
        refuse_token_ids(input_ids, vocab_size)
        if isinstance(obj, GenerateReqInput):
            refuse_logprobs(obj.top_logprobs_num, vocab_size)
        stock(manager, obj, input_ids)
        if isinstance(obj, GenerateReqInput):
            # After SGLang, which takes none where the server's flag is not set.
            refuse_logit_processor(obj.custom_logit_processor)

    def create(manager: TokenizerManager, obj: Any, *args: Any) -> Any:
        try:
            request = stock_create(manager, obj, *args)
        except ValueError:
            raise
        except Exception as error:
            # What SGLang reads here is the client's alone.
            what = "stop_regex" if isinstance(error, re.error) else "The request"
            raise ValueError(f"{what} cannot be read: {error}") from error
        refuse_wrong_types(request)
        return request

    TokenizerManager._validate_one_request = validate
    TokenizerManager._create_tokenized_object = create
