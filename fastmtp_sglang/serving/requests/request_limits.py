"""What FASTMTP refuses of a single request: sampling parameters that SGLang's verification ignores
or applies to the wrong tokens, so that answers would silently differ from the model's own.

SGLang calls `check` after its own validation of each request's parameters, in the process that
receives requests; the client gets HTTP 400 with the text. So does a prompt without tokens, or
with ids that the model does not have: they would kill the scheduler, and all other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastmtp_sglang.contract.identity import ALGORITHM

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_params import SamplingParams


@dataclass(frozen=True)
class RequestLimit:
    """One sampling parameter that is not taken with FASTMTP.

    Attributes:
        parameter: its name in SGLang's `SamplingParams`.
        neutral: the value that asks for nothing.
        reason: why, as the second half of a sentence.
        when_sampling: refused only where the request samples; a greedy one does not see it.
    """

    parameter: str
    neutral: float | None
    reason: str
    when_sampling: bool = False


REQUEST_LIMITS = (
    RequestLimit(
        "sampling_seed",
        None,
        "is ignored by SGLang without --enable-deterministic-inference, which FASTMTP does not "
        "support yet",
        when_sampling=True,
    ),
)


def refuse(params: SamplingParams) -> None:
    """Check a request's sampling parameters against the table.

    Raises:
        ValueError: for the first one that is refused; SGLang answers HTTP 400.
    """
    # SGLang turns temperature 0 into top_k 1.
    samples = params.top_k != 1
    for limit in REQUEST_LIMITS:
        value = getattr(params, limit.parameter)
        if value != limit.neutral and (samples or not limit.when_sampling):
            raise ValueError(
                f"{limit.parameter} {value} {limit.reason}; with --speculative-algorithm FASTMTP "
                "it is refused. Leave it out, or use a server without speculation."
            )


def check(result: None, params: SamplingParams, *args: object) -> None:
    """Hook after `SamplingParams.verify`; does nothing in servers that do not use FASTMTP."""
    from sglang.srt.runtime_context import get_context, get_spec

    if get_context().is_config_namespace_published("spec"):
        algorithm = get_spec().speculative_algorithm
        if algorithm is not None and algorithm.upper() == ALGORITHM:
            refuse(params)


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


def install() -> None:
    """Let SGLang's tokenizer manager check token ids too, in this process; idempotent."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    stock = TokenizerManager._validate_one_request
    if stock.__module__ == __name__:
        return

    def validate(manager: TokenizerManager, obj: Any, input_ids: list[int]) -> None:
        refuse_token_ids(input_ids, manager.model_config.vocab_size)
        stock(manager, obj, input_ids)

    TokenizerManager._validate_one_request = validate
