"""Any OpenAI-compatible /v1/chat/completions, streamed: SGLang's, vLLM's, or another's.

How many tokens a chunk holds is taken from token ids (vLLM), from usage that comes with every chunk
(SGLang, vLLM) or not at all: then only the totals of the final usage are known, and what needs
chunks (decode speed, inter-token latency) is not reported. Extra fields are sent only to servers
that are known to take them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import httpx

from fastmtp_benchmarks.endpoint import Answer, AnswerFailedError, Endpoint, Sampling
from fastmtp_benchmarks.native import spec_counters, told_by_sglang
from fastmtp_benchmarks.records import SpecCounters
from fastmtp_sglang.errors import FastMTPError

# By the `owned_by` of /v1/models.
_EXTRA: dict[str, dict[str, Any]] = {
    "vllm": {"return_token_ids": True},
    "sglang": {"return_output_ids_in_sglext": True, "return_spec_tokens_details": True},
}
# An answer that ends so is none; whether another attempt may help.
_FAILED = {"abort": True, "error": True, "content_filter": False}
_COUNTER = re.compile(r"^vllm:spec_decode_num_(\w+?)_total(\{[^}]*\})? (\S+)", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')


class OpenAIEndpoint(Endpoint):
    """An OpenAI-compatible server; see `Endpoint`. `describe` must be called first."""

    kind = "openai"
    _path = "/v1/chat/completions"
    _model = ""
    _server = ""

    async def describe(self) -> dict[str, Any]:
        """Return the served model and the server's name, which later requests depend on."""
        match await self._get_object("/v1/models"):
            case {"data": [{"id": str() as name, **others}, *_]}:
                self._model, self._server = name, str(others.get("owned_by") or "").lower()
            case _:
                self._model = ""
        if not self._model:
            raise FastMTPError(
                f"{self._flag} {self.url}: /v1/models names no model, so it is no OpenAI-"
                "compatible server: give the URL without /v1"
            )
        told = {"api": self.kind, "model_path": self._model, "server": self._server}
        # What the server is beside the protocol, where it is one that is known to say it.
        if self._server == "sglang" and (info := await self._get_object("/server_info")):
            return told_by_sglang(info) | told
        if self._server == "vllm" and (version := await self._get_object("/version")):
            return told | version
        return told

    async def flush(self) -> bool:
        """Empty the prefix cache where the server has a way to be told so."""
        path = "/reset_prefix_cache" if self._server == "vllm" else "/flush_cache"
        try:
            response = await self._client.post(f"{self.url}{path}")
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def counters(self) -> SpecCounters | None:
        """Return vLLM's counters since its start; it has none per answer."""
        if self._server != "vllm":
            return None
        response = await self._get("/metrics")
        return None if response is None else vllm_counters(response.text)

    def _request(self, messages: Sequence[dict[str, str]], sampling: Sampling) -> dict[str, Any]:
        known = self._server in _EXTRA
        fixed = sampling.output_length
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens if fixed is None else fixed,
            "stream": True,
            "stream_options": {"include_usage": True}
            | ({"continuous_usage_stats": True} if known else {}),
        } | _EXTRA.get(self._server, {})
        if sampling.temperature > 0:
            body["top_p"] = sampling.top_p
            if sampling.top_k > 0:
                body["top_k"] = sampling.top_k
        if fixed is not None:
            body["ignore_eos"] = True
        return body

    def _read(self, event: dict[str, Any], answer: Answer, seconds: float) -> None:
        usage = event.get("usage") or {}
        if usage.get("completion_tokens") is not None:
            answer.output_tokens = usage["completion_tokens"]
            answer.prompt_tokens = usage.get("prompt_tokens")
        extension = event.get("sglext") or {}
        if extension.get("output_ids"):
            answer.token_ids = extension["output_ids"][0]
        if extension.get("spec_tokens_details"):
            answer.speculation = spec_counters(extension["spec_tokens_details"])
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            answer.text += text
            answer.reasoning += reasoning
            ids = choice.get("token_ids")
            if ids:
                answer.token_ids = (answer.token_ids or []) + ids
            if text or reasoning or delta.get("tool_calls") or ids:
                so_far = usage.get("completion_tokens")
                if so_far is None and answer.token_ids is not None:
                    so_far = len(answer.token_ids)
                answer.arrived(seconds, so_far)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            if answer.finish_reason in _FAILED:
                raise AnswerFailedError(
                    f"ended with finish_reason {answer.finish_reason}",
                    again=_FAILED[answer.finish_reason],
                )


def vllm_counters(metrics: str) -> SpecCounters | None:
    """Sum vLLM's speculation counters over its engines, from Prometheus text; None without any."""
    sums: dict[str, int] = {}
    per_position: dict[int, int] = {}
    for name, labels, value in _COUNTER.findall(metrics):
        if name == "accepted_tokens_per_pos":
            if position := _POSITION.search(labels):
                index = int(position[1])
                per_position[index] = per_position.get(index, 0) + int(float(value))
        else:
            sums[name] = sums.get(name, 0) + int(float(value))
    if "drafts" not in sums or "accepted_tokens" not in sums:
        return None
    # Position p counts the verifications that accepted more than p drafts.
    reached = [sums["drafts"], *(per_position[p] for p in sorted(per_position)), 0]
    histogram = [a - b for a, b in itertools.pairwise(reached)]
    return SpecCounters(
        verifications=sums["drafts"],
        accepted_drafts=sums["accepted_tokens"],
        histogram=histogram if per_position else None,
    )
