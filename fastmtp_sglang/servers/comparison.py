"""The same prompts to a server with speculation and to one without: identical, and how fast?

Answers are compared by token id. Times are a client's: from sending a request to its last token,
so tokens per second are end to end and include the prompt. The acceptance length is 1 + accepted
drafts / verifications, from SGLang's raw counters over all answers of a server: SGLang's own
`spec_accept_length` counts the token of the prefill too, which makes 1.04 out of nothing accepted.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers import http_client

# A first request may wait for lazily built state; no answer of ours takes minutes.
_TIMEOUT_SECONDS = 300.0
_ENOUGH_TOKENS = 32


@dataclass(frozen=True)
class Answer:
    """One greedy answer. The counters are None where the server reported none."""

    text: str
    token_ids: tuple[int, ...]
    seconds: float
    verifications: int | None
    accepted_drafts: int | None


def ask(
    url: str, prompt: str, max_new_tokens: int, on_text: Callable[[str], None] | None = None
) -> Answer:
    """Send `prompt` to the native endpoint of the server at `url` and return its greedy answer.

    With `on_text` the answer is streamed and each new piece of text is handed to it. Raises
    FastMTPError when the server refuses or breaks off.
    """
    body = {
        "text": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens},
        "stream": on_text is not None,
    }
    began = time.perf_counter()
    try:
        with (
            http_client.client(None, _TIMEOUT_SECONDS, [url]) as client,
            client.stream("POST", f"{url}/generate", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise FastMTPError(f"{url} answered {response.status_code}: {response.text[:500]}")
            final = _follow(response, on_text) if on_text else json.loads(response.read())
    except httpx.HTTPError as error:
        raise FastMTPError(f"{url} broke off while answering: {error!r}") from error
    seconds = time.perf_counter() - began
    meta = final["meta_info"]
    reason = meta.get("finish_reason") or {}
    if reason.get("type") == "abort":
        raise FastMTPError(f"{url} gave an answer up: {reason.get('message')}")
    return Answer(
        text=final["text"],
        token_ids=tuple(final["output_ids"]),
        seconds=seconds,
        verifications=meta.get("spec_verify_ct"),
        accepted_drafts=meta.get("spec_num_correct_drafts"),
    )


def _follow(response: httpx.Response, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Hand on the new text of each event; return the last event, which holds the whole answer."""
    final: dict[str, Any] | None = None
    shown = 0
    for data in http_client.events(response.iter_bytes()):
        if data == "[DONE]":
            break
        final = json.loads(data)
        if "error" in final:
            raise FastMTPError(f"{response.url} failed while streaming: {final['error']}")
        on_text(final["text"][shown:])
        shown = len(final["text"])
    if final is None:
        raise FastMTPError(f"{response.url} streamed no answer")
    return final


def acceptance_length(answers: Sequence[Answer]) -> float | None:
    """Return 1 + accepted drafts / verifications over all `answers`; None if nothing was verified.

    An answer of one token comes from the prefill alone and has no counters. Raises FastMTPError
    when a longer one has none, since its server did not speculate.
    """
    verifications = accepted = 0
    for answer in answers:
        if answer.verifications is None or answer.accepted_drafts is None:
            if len(answer.token_ids) > 1:
                raise FastMTPError(
                    f"the server reported no speculation counters for an answer of "
                    f"{len(answer.token_ids)} tokens: FASTMTP was not active; run `fastmtp doctor`"
                )
            continue
        verifications += answer.verifications
        accepted += answer.accepted_drafts
    return 1 + accepted / verifications if verifications else None


def tokens_per_second(answers: Sequence[Answer]) -> float:
    """Return all output tokens over all seconds, end to end."""
    return sum(len(a.token_ids) for a in answers) / sum(a.seconds for a in answers)


def first_difference(one: Answer, other: Answer) -> int | None:
    """Return the position of the first token id in which the two differ, None if they are equal."""
    if one.token_ids == other.token_ids:
        return None
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    shorter = min(len(one.token_ids), len(other.token_ids))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def unsteadiness(answers: Sequence[Answer]) -> float:
    """Return how many times faster the fastest answer stepped than the slowest one.

    A step is a verification, or a token where nothing was verified; on an idle machine each costs
    nearly the same. Short answers do not count: the prompt weighs too much in them.
    """
    paces = [
        (answer.verifications or len(answer.token_ids)) / answer.seconds
        for answer in answers
        if len(answer.token_ids) >= _ENOUGH_TOKENS
    ]
    return max(paces) / min(paces) if paces else 1.0


@dataclass(frozen=True)
class Comparison:
    """The answers of both servers to the same prompts, in the same order."""

    baseline: tuple[Answer, ...]
    fastmtp: tuple[Answer, ...]

    @property
    def identical(self) -> int:
        """How many answers are equal, token id by token id."""
        pairs = zip(self.baseline, self.fastmtp, strict=True)
        return sum(first_difference(*pair) is None for pair in pairs)

    @property
    def all_identical(self) -> bool:
        """Whether no answer differs."""
        return self.identical == len(self.baseline)

    @property
    def speedup(self) -> float:
        """Tokens per second with FASTMTP over those without."""
        return tokens_per_second(self.fastmtp) / tokens_per_second(self.baseline)

    def summary(self) -> dict[str, Any]:
        """Return the one object that `fastmtp demo --json` prints."""
        length = acceptance_length(self.fastmtp)
        return {
            "requests": len(self.baseline),
            "identical": self.identical,
            "acceptance_length": None if length is None else round(length, 3),
            "tokens_per_second": {
                "baseline": round(tokens_per_second(self.baseline), 2),
                "fastmtp": round(tokens_per_second(self.fastmtp), 2),
            },
            "speedup": round(self.speedup, 3),
        }
