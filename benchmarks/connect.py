"""From a URL to an `Endpoint` of the right kind, with the tokenizer that its prompts need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastmtp_benchmarks.endpoint import Endpoint
from fastmtp_benchmarks.native import Encode, NativeEndpoint
from fastmtp_benchmarks.openai_api import OpenAIEndpoint
from fastmtp_sglang.errors import FastMTPError

Api = Literal["auto", "sglang", "openai"]


def load_tokenizer(path: str, flag: str) -> Any:
    """Load a tokenizer from a directory or by name; raises FastMTPError naming `flag`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise FastMTPError(
            f"{flag} {path}: no tokenizer there ({str(error).splitlines()[0][:200]}): give "
            "--tokenizer DIRECTORY, or --api openai to let the server apply its chat template"
        ) from error


def chat_encoder(tokenizer: Any, flag: str) -> Encode:
    """Return the function that applies the chat template, as an OpenAI-compatible server does.

    Raises FastMTPError when there is none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise FastMTPError(
            f"{flag}: the tokenizer has no chat template, so it is not known how a question is put "
            "to the model: give the --tokenizer of an instruction-tuned one"
        )

    def encode(messages: Sequence[dict[str, str]]) -> list[int]:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )

    return encode


async def connect(
    url: str, *, api: Api = "auto", tokenizer: Any = None, flag: str = "--endpoint", **options: Any
) -> tuple[Endpoint, dict[str, Any]]:
    """Return the endpoint and what it says of itself.

    Args:
        url: Base URL, without /v1.
        api: What to speak; "auto" speaks /generate to SGLang and OpenAI's protocol to others.
        tokenizer: For prompts to /generate; None loads the one that the server names.
        flag: The option that errors name.
        options: Of `Endpoint`.

    Raises:
        FastMTPError: Nobody answers, the key is refused, or it is another kind of server.
    """
    native = NativeEndpoint(url, flag=flag, **options)
    if api != "openai":
        model = await native.model_info()
        if model is not None:
            if tokenizer is None:
                path = model.get("tokenizer_path") or model["model_path"]
                tokenizer = load_tokenizer(path, f"{flag} {url}: its model")
            native.encode = chat_encoder(tokenizer, f"{flag} {url}")
            return native, await native.describe()
        if api == "sglang":
            raise FastMTPError(
                f"{flag} {url}: has no /model_info, so it is no SGLang server: give --api openai"
            )
    await native.close()
    endpoint = OpenAIEndpoint(url, flag=flag, **options)
    return endpoint, await endpoint.describe()
