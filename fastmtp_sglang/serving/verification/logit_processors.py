"""Custom logit processors under speculation, which SGLang's verification leaves out.

A processor is called for each verified row with what it would have seen token by token: the output
tokens that lead to the row (`"__req__"` in its parameters), and its parameters as its own earlier
calls on that path have left them. What it writes comes last, behind penalties, logit_bias and
grammar, as in SGLang's sampler. (SGLang with --disable-overlap-schedule; with overlapped scheduling
its own processors see a request that lags one token behind.)

Processors are Python that reads tokens on the host, so that a batch with one waits for the device
before its verification; others never do.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastmtp_sglang.serving.verification.tree_links import parents

if TYPE_CHECKING:
    from torch import Tensor

# The parameter in which SGLang hands a processor its request.
_REQUEST = "__req__"


class RequestView:
    """A request as a processor reads it, with other output tokens than SGLang knows of yet."""

    def __init__(self, request: Any, output_ids: array[int]) -> None:
        self._request = request
        self.output_ids = output_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


@dataclass(frozen=True)
class _Verified:
    """What a verification has left on the device.

    Attributes:
        requests: those with a processor, by their index in the batch.
        tokens: integer [B, n], what each emitted.
        counts: integer [B], how many of them.
        last_rows: integer [B], the row that the last of them follows; None after a prefill.
        states: of each request its parameters after each row.
    """

    requests: dict[int, Any]
    tokens: Tensor
    counts: Tensor
    last_rows: Tensor | None
    states: dict[int, list[dict[str, Any] | None]]


class LogitProcessors:
    """Calls the processors of requests, and keeps what these have produced so far."""

    def __init__(self) -> None:
        self._outputs: WeakKeyDictionary[Any, array[int]] = WeakKeyDictionary()
        self._unread: _Verified | None = None

    def start(self, requests: Sequence[Any]) -> None:
        """Take up requests that are about to be prefilled, whose `output_ids` are complete."""
        self._read()
        for request in requests:
            if request.custom_logit_processor is not None:
                self._take_up(request)

    def _take_up(self, request: Any) -> None:
        self._outputs[request] = request.output_ids[:]
        params = request.sampling_params.custom_params
        if params is not None and not isinstance(params[_REQUEST], RequestView):
            params[_REQUEST] = RequestView(params[_REQUEST], request.output_ids)
        if params is not None:
            params[_REQUEST].output_ids = self._outputs[request]

    def after_prefill(self, requests: Sequence[Any], tokens: Tensor) -> None:
        """Note the first tokens, integer [B]; SGLang's sampler has called the processors."""
        chosen = self._chosen(requests)
        if chosen:
            ones = tokens.new_ones(len(tokens))
            self._unread = _Verified(chosen, tokens.unsqueeze(1), ones, None, {})

    def apply(
        self,
        requests: Sequence[Any],
        sampling_info: Any,
        logits: Tensor,
        tokens: Tensor,
        next_token: Tensor,
        next_sibling: Tensor,
    ) -> dict[int, list[dict[str, Any] | None]]:
        """Call the processors of a batch, row by row; each row comes after its parent.

        Args:
            requests: of the batch.
            sampling_info: SGLang's SamplingBatchInfo, with a processor.
            logits: float [B, n, V], written in place.
            tokens: int64 [B, n], of the rows; row 0 is the last token that was decided.
            next_token: int64 [B, n], each row's first child, -1 for none.
            next_sibling: int64 [B, n], the next child of the same parent, -1 for none.

        Returns:
            For `after_verification`.
        """
        self._read()
        chosen = self._chosen(requests)
        above = parents(next_token, next_sibling).clamp(min=0).tolist()
        drafts = tokens.tolist()
        outputs: dict[int, list[array[int]]] = {}
        states: dict[int, list[dict[str, Any] | None]] = {i: [] for i in chosen}
        for index, request in chosen.items():
            if request not in self._outputs:  # another server has prefilled it
                self._take_up(request)
            outputs[index] = [self._outputs[request]]
            for row in range(1, tokens.shape[1]):
                outputs[index].append(outputs[index][above[index][row]][:])
                outputs[index][row].append(drafts[index][row])
        for entry in sampling_info.custom_logit_processor.values():
            for row in range(tokens.shape[1]):
                for index in entry.rows:
                    before = requests[index].sampling_params.custom_params
                    if row:
                        before = states[index][above[index][row]]
                    states[index].append(_following(before, outputs[index][row]))
                selected = logits[entry.indices, row]
                result = entry.processor(selected, [states[i][row] for i in entry.rows])
                logits[entry.indices, row] = result.to(logits.dtype)
        return states

    def after_verification(
        self,
        requests: Sequence[Any],
        predict: Tensor,
        accept_lens: Tensor,
        accept_index: Tensor,
        states: dict[int, list[dict[str, Any] | None]],
    ) -> None:
        """Note what SGLang's `eagle_sample` has returned."""
        rows = accept_index.clamp(min=0).long()
        last = rows.gather(1, accept_lens.long().unsqueeze(1) - 1).squeeze(1)
        rows_each = len(predict) // len(accept_lens)
        self._unread = _Verified(
            self._chosen(requests), predict[rows], accept_lens, last % rows_each, states
        )

    def _read(self) -> None:
        """Wait for what was noted last."""
        if self._unread is None:
            return
        verified, self._unread = self._unread, None
        tokens, counts = verified.tokens.tolist(), verified.counts.tolist()
        last = None if verified.last_rows is None else verified.last_rows.tolist()
        for index, request in verified.requests.items():
            self._outputs[request].extend(tokens[index][: counts[index]])
            state = None if last is None else verified.states[index][last[index]]
            if state is not None:
                state.pop(_REQUEST)
                request.sampling_params.custom_params.update(state)

    @staticmethod
    def _chosen(requests: Sequence[Any]) -> dict[int, Any]:
        return {i: r for i, r in enumerate(requests) if r.custom_logit_processor is not None}


def _following(before: dict[str, Any] | None, output_ids: array[int]) -> dict[str, Any] | None:
    """Parameters for another row, a copy of those that its parent has left."""
    if before is None:
        return None
    request = before[_REQUEST]._request
    after = copy.deepcopy({name: v for name, v in before.items() if name != _REQUEST})
    return {**after, _REQUEST: RequestView(request, output_ids)}
