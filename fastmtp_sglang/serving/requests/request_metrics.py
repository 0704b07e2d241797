"""Counters of drafting for each finished request and for the server, from raw counts.

SGLang divides an answer's tokens by its verifications and calls that the acceptance length: the
token of the prefill makes it larger than K + 1. Here it is 1 + accepted / verifications. With
`--speculative-adaptive` SGLang does not know how many tokens were drafted and assumes the largest
K; what is not known is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

# Fields of an answer's `meta_info` that need the number of drafted tokens.
_OF_DRAFTED = ("spec_accept_rate", "spec_num_proposed_drafts")


def correct(meta_info: dict[str, Any], num_steps: int, *, adaptive: bool) -> None:
    """Put right, in place, what SGLang has computed for a finished request.

    Adds `spec_accepted_per_step`: entry i counts the drafts accepted at step i + 1, for
    `num_steps` steps, which is K. Each verification drafted K tokens (with `adaptive`, at most).
    A request without a verification has none of these fields.
    """
    verifications = meta_info.get("spec_verify_ct")
    if not verifications:
        return
    accepted = meta_info["spec_num_correct_drafts"]
    meta_info["spec_accept_length"] = 1 + accepted / verifications
    histogram = meta_info.get("spec_correct_drafts_histogram") or []
    meta_info["spec_accepted_per_step"] = [
        sum(histogram[step:]) for step in range(1, num_steps + 1)
    ]
    if adaptive:
        for field in _OF_DRAFTED:
            meta_info.pop(field, None)


class StepCounters:
    """Prometheus counters of a server, at /metrics with --enable-metrics.

    `fastmtp:verifications_total`, and by `step` from 1 to K `fastmtp:accepted_tokens_total` and,
    with a fixed K, `fastmtp:drafted_tokens_total`. They count requests as they finish.
    """

    def __init__(self, *, adaptive: bool) -> None:
        # SGLang has set PROMETHEUS_MULTIPROC_DIR by now, which this import reads.
        from prometheus_client import Counter

        self._verifications = Counter(
            "fastmtp:verifications", "Forward passes of the target that verified drafts"
        )
        self._accepted = Counter(
            "fastmtp:accepted_tokens", "Drafts accepted at this step", labelnames=["step"]
        )
        self._drafted = None
        if not adaptive:
            self._drafted = Counter(
                "fastmtp:drafted_tokens", "Tokens drafted at this step", labelnames=["step"]
            )

    def count(self, meta_info: dict[str, Any]) -> None:
        """Add a finished request, its `meta_info` corrected."""
        verifications = meta_info.get("spec_verify_ct", 0)
        self._verifications.inc(verifications)
        for step, accepted in enumerate(meta_info.get("spec_accepted_per_step", ()), 1):
            self._accepted.labels(step=step).inc(accepted)
            if self._drafted is not None:
                self._drafted.labels(step=step).inc(verifications)


def install(num_steps: int, *, adaptive: bool) -> None:
    """Let SGLang's tokenizer manager report so, in this process; idempotent."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    stock = TokenizerManager._calculate_spec_decoding_metrics
    if stock.__module__ == __name__:
        return
    counters: list[StepCounters] = []

    def calculate(
        manager: TokenizerManager, meta_info: dict[str, Any], recv_obj: Any, i: int
    ) -> None:
        stock(manager, meta_info, recv_obj, i)
        correct(meta_info, num_steps, adaptive=adaptive)
        if manager.enable_metrics:
            if not counters:
                counters.append(StepCounters(adaptive=adaptive))
            counters[0].count(meta_info)

    TokenizerManager._calculate_spec_decoding_metrics = calculate
