"""A warning in the log when hardly any draft is accepted, so that a useless head is not hidden.

Answers are right whatever the head drafts; a head that is untrained, or was trained for other
weights (a finer or coarser quantization of the target, another fine-tune), only makes them slower.
With `--speculative-adaptive` K = 0 is the answer to that, and its choices are in the log already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

# First drafts that are judged together: the share of a few hundred would swing with the prompts.
_DRAFTS = 1000
# Below this share drafting cannot pay: one more row alone costs a verification more.
_LOW = 0.05


class AcceptanceWatch:
    """Counts first drafts, and warns when a thousand in a row were accepted too rarely.

    It warns once, and again only after acceptance has been better in between.
    """

    def __init__(self) -> None:
        self._drafted = 0
        self._accepted = 0
        self._has_warned = False

    def observe(self, num_correct_drafts: Sequence[int]) -> None:
        """Count one verification: the accepted drafts of each request, all of which had drafts."""
        self._drafted += len(num_correct_drafts)
        self._accepted += sum(count > 0 for count in num_correct_drafts)
        if self._drafted < _DRAFTS:
            return
        share = self._accepted / self._drafted
        if share < _LOW and not self._has_warned:
            logger.warning(
                "Only %.1f %% of the last %d first drafts were accepted: drafting slows this "
                "server down. The head is untrained, or was trained for other weights than the "
                "target's (another fine-tune or quantization). Train it (`fastmtp train`), add "
                "--speculative-adaptive, or serve without --speculative-algorithm.",
                100 * share,
                self._drafted,
            )
        self._has_warned = share < _LOW
        self._drafted = self._accepted = 0
