"""Accepted drafts count as far as a client gets them: those behind the end of an answer do not.

SGLang counts the accepted drafts of a verification before it looks for the end of the answer among
them (its length, EOS, stops, its grammar), and with overlap scheduling it verifies an answer that
has ended once more. Here a verification counts its emitted tokens but one, which the target adds in
any case: an answer has 1 + verifications + counted drafts tokens. Runs in the scheduler process, on
top of `verification.stops`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter


class EmittedDrafts:
    """Counts the drafts of each decoding step once the ends of its answers are known."""

    def __init__(self, on_step: Callable[[list[tuple[str, int]]], None]) -> None:
        """Start with no step.

        Args:
            on_step: called after each decoding step with its requests, without those that had ended
                before, and the counted drafts of each.
        """
        self._on_step = on_step
        self._of_step: list[tuple[str, int]] = []

    def install(self) -> None:
        """Take SGLang's place; for good, since its process serves nothing but our worker."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.managers.scheduler_components.metrics_reporter import (
            SchedulerMetricsReporter,
        )

        histogram = Req.update_spec_correct_drafts_histogram
        Req.update_spec_correct_drafts_histogram = _remember
        Req.update_finish_state = self._counting(Req.update_finish_state, histogram)
        SchedulerMetricsReporter.report_decode_stats = self._reporting(
            SchedulerMetricsReporter.report_decode_stats
        )

    def _counting(
        self, check: Callable[..., None], histogram: Callable[..., None]
    ) -> Callable[..., None]:
        """Wrap SGLang's check whether a request has ended with its newest tokens."""

        @functools.wraps(check)
        def update_finish_state(request: Req, new_accepted_len: int = 1) -> None:
            before = len(request.output_ids) - new_accepted_len
            check(request, new_accepted_len)
            accepted = vars(request).pop("unsettled_drafts", None)
            if accepted is None:
                return  # a token of the prefill
            end = request.finished_len
            if end is None:
                end = len(request.output_ids)
            counted = max(end - before - 1, 0)
            request.spec_num_correct_drafts += counted - accepted
            histogram(request, counted)
            self._of_step.append((request.rid, counted))

        return update_finish_state

    def _reporting(self, report: Callable[..., None]) -> Callable[..., None]:
        """Wrap the last call of SGLang's processing of a step's result, which logs and measures."""

        def report_decode_stats(
            reporter: SchedulerMetricsReporter,
            can_run_cuda_graph: bool,
            running_batch: Any = None,
            num_generated_tokens: int = 0,
        ) -> None:
            counted, self._of_step = self._of_step, []
            emitted = len(counted) + sum(count for _, count in counted)
            ended = len(running_batch.reqs) - len(counted)
            # SGLang divides by the verifications, of which a log interval may have no others.
            if reporter.spec_num_forward_ct > ended:
                surplus = num_generated_tokens - emitted
                reporter.num_generated_tokens -= surplus
                reporter.spec_num_accept_tokens -= surplus
                reporter.spec_num_correct_drafts -= surplus - ended
                reporter.spec_num_forward_ct -= ended
            report(reporter, can_run_cuda_graph, running_batch, emitted)
            self._on_step(counted)

        return report_decode_stats


def _remember(request: Req, num_correct_drafts: int) -> None:
    """Instead of entering them into the histogram, which waits for the end of the run."""
    request.unsettled_drafts = num_correct_drafts
