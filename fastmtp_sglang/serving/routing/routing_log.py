"""The router's counters for people: a line in the server's log, and Prometheus counters.

Reading them never makes the scheduler wait: the counters are copied on the device's stream and
looked at on a later step, when the copy has arrived.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from fastmtp_sglang.serving.host_copy import HostCopy
from fastmtp_sglang.serving.routing.router import Count, Router

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_DOCUMENTATION = {
    Count.DRAFTED: "Tokens drafted from the list",
    Count.ACCEPTED: "Tokens drafted from the list that the target accepted",
    Count.MISSES: "Rejected drafts whose right token neither the list nor the request's own had",
    Count.REROUTED: "Requests that came to the list from another one",
    Count.FALLBACKS: "Requests that left the list for the full vocabulary because it failed them",
    Count.AVOIDED: "Accepted drafts that the list lacks, from the request's own tokens",
}


class RoutingLog:
    """Writes what happened since the last line, every `interval` decode steps."""

    def __init__(self, router: Router, interval: int, *, with_metrics: bool) -> None:
        """Start counting from zero.

        Args:
            router: whose counters are shown.
            interval: decode steps between lines, SGLang's `--decode-log-interval`.
            with_metrics: also keep Prometheus counters `fastmtp:*_total` with the label `list`, in
                the process-wide registry that SGLang exposes at /metrics.
        """
        self._router = router
        self._interval = interval
        self._steps = 0
        self._written = torch.zeros_like(router.counts(), device="cpu")
        self._pending: HostCopy | None = None
        self._metrics = _metrics() if with_metrics else {}

    def step(self) -> None:
        """Note one decode step."""
        self._steps += 1
        if self._steps % self._interval == 0 and self._pending is None:
            self._pending = HostCopy.start(self._router.counts())
        if self._pending is not None and self._pending.arrived():
            counts, self._pending = self._pending.tensor, None
            self._write(counts - self._written)
            self._written = counts

    def _write(self, new: Tensor) -> None:
        lists = [i for i in range(len(self._router.names)) if new[:, i].any()]
        if lists:
            logger.info("Draft lists: %s.", "; ".join(self._describe(i, new[:, i]) for i in lists))
        for count, metric in self._metrics.items():
            for i in lists:
                metric.labels(list=self._router.names[i]).inc(int(new[count, i]))

    def _describe(self, index: int, new: Tensor) -> str:
        drafted, accepted, misses, rerouted, fallbacks, avoided = new.tolist()
        share = f"{accepted / drafted:.0%} of {drafted}" if drafted else "0 of 0"
        return (
            f"{self._router.names[index]} accepted {share} drafts, misses {misses} "
            f"({avoided} avoided), re-routed here {rerouted}, fallbacks {fallbacks}"
        )


def _metrics() -> dict[Count, Any]:
    # SGLang has set PROMETHEUS_MULTIPROC_DIR by now, which this import reads.
    from prometheus_client import Counter

    return {
        count: Counter(f"fastmtp:draft_list_{count.name.lower()}", text, labelnames=["list"])
        for count, text in _DOCUMENTATION.items()
    }
