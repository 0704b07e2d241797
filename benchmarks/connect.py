"""From a URL to an `Endpoint` of the right kind, with the tokenizer that its prompts need."""

from __future__ import annotations

import functools
from typing import Any, Literal

from fastmtp_benchmarks.endpoint import Endpoint
from fastmtp_benchmarks.native import NativeEndpoint
from fastmtp_benchmarks.openai_api import OpenAIEndpoint
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.prompting import prompt_ids

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
            native.encode = functools.partial(prompt_ids, tokenizer)
            return native, await native.describe()
        if api == "sglang":
            raise FastMTPError(
                f"{flag} {url}: has no /model_info, so it is no SGLang server: give --api openai"
            )
    await native.close()
    endpoint = OpenAIEndpoint(url, flag=flag, **options)
    return endpoint, await endpoint.describe()
