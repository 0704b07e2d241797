"""SGLang's native /generate: token ids in, token ids and speculation counters out.

The chat template is applied here, by the model's own tokenizer; without one the messages are a text
that the model goes on with (`models.prompting`). Chunks are cumulative by default
and disjoint with SGLang's `--incremental-streaming-output`; both are understood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastmtp_benchmarks.endpoint import Answer, AnswerFailedError, Endpoint, Sampling
from fastmtp_benchmarks.records import SpecCounters
from fastmtp_sglang.errors import FastMTPError

# Messages -> token ids of the prompt, up to where the answer begins.
Encode = Callable[[Sequence[dict[str, str]]], list[int]]

# Of SGLang's server_info, which also holds keys and paths of certificates: what figures depend on.
_TOLD = (
    "version",
    "model_path",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "device",
    "tp_size",
    "dp_size",
    "attention_backend",
    "max_running_requests",
    "max_total_tokens",
    "chunked_prefill_size",
    "page_size",
    "disable_radix_cache",
    "disable_cuda_graph",
    "disable_overlap_schedule",
    "stream_interval",
    "incremental_streaming_output",
    "context_length",
    "random_seed",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "speculative_token_map",
    "speculative_accept_threshold_single",
    "mem_fraction_static",
)


class NativeEndpoint(Endpoint):
    """An SGLang server; see `Endpoint`."""

    kind = "sglang"
    _path = "/generate"
    encode: Encode | None = None  # set before the first answer

    async def model_info(self) -> dict[str, Any] | None:
        """Return SGLang's /model_info, None when the server has none and so is no SGLang."""
        response = await self._get("/model_info")
        try:
            told = response.json() if response is not None else None
        except ValueError:  # a page in HTML
            return None
        return told if isinstance(told, dict) and "model_path" in told else None

    async def describe(self) -> dict[str, Any]:
        """Return version, model, and the resolved arguments that figures depend on."""
        info = await self._get_object("/server_info")
        if info is None:
            raise FastMTPError(
                f"{self._flag} {self.url}: has no /server_info, so it is no SGLang server: give "
                "--api openai"
            )
        return {"api": self.kind} | told_by_sglang(info)

    async def flush(self) -> bool:
        """Empty the radix cache, which works only while no request runs."""
        response = await self._client.post(f"{self.url}/flush_cache", params={"timeout": 30})
        return response.status_code == 200

    def _request(self, messages: Sequence[dict[str, str]], sampling: Sampling) -> dict[str, Any]:
        assert self.encode is not None
        fixed = sampling.output_length
        parameters: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_new_tokens": sampling.max_new_tokens if fixed is None else fixed,
        }
        if sampling.temperature > 0:
            parameters |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
        if fixed is not None:
            parameters["ignore_eos"] = True
        return {"input_ids": self.encode(messages), "sampling_params": parameters, "stream": True}

    def _read(self, event: dict[str, Any], answer: Answer, seconds: float) -> None:
        meta = event.get("meta_info") or {}
        told = meta.get("completion_tokens")
        new_ids = event.get("output_ids")
        before = answer.token_ids or []
        # A cumulative chunk may already hold ids that its count does not: SGLang goes on meanwhile.
        cumulative = new_ids is None or told is None or len(new_ids) >= told
        if new_ids is not None:
            answer.token_ids = new_ids[:told] if cumulative else before + new_ids
        if told is None and answer.token_ids is not None:
            told = len(answer.token_ids)
        text = event.get("text") or ""
        answer.text = text if cumulative else answer.text + text
        answer.output_tokens = told
        answer.prompt_tokens = meta.get("prompt_tokens", answer.prompt_tokens)
        if told:
            answer.arrived(seconds, told)
        reason = meta.get("finish_reason")
        if reason:
            if reason["type"] == "abort":
                status = reason.get("status_code") or 500
                raise AnswerFailedError(f"aborted: {reason.get('message')}", again=status >= 500)
            answer.finish_reason = reason["type"]
            answer.speculation = spec_counters(meta)


def told_by_sglang(server_info: dict[str, Any]) -> dict[str, Any]:
    """Return of SGLang's /server_info what figures depend on, and no secrets."""
    return {name: server_info[name] for name in _TOLD if name in server_info}


def spec_counters(fields: dict[str, Any]) -> SpecCounters | None:
    """Return SGLang's counters out of `meta_info`, None where they are missing or null.

    `spec_accept_length` is not used: it counts the token of the prefill too.
    """
    verifications, accepted = fields.get("spec_verify_ct"), fields.get("spec_num_correct_drafts")
    if not verifications or accepted is None:
        return None
    histogram = fields.get("spec_correct_drafts_histogram") or None
    return SpecCounters(verifications=verifications, accepted_drafts=accepted, histogram=histogram)
