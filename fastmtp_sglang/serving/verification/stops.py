"""Stops inside a run of accepted tokens: what decoding token by token would have stopped at.

SGLang checks a run of up to K + 1 tokens at once: any stop string in it wins over an EOS before it,
and among several the first in the list wins, not the first in the text. Here the tokens of a run
are checked one after the other, by SGLang's own check. Installed in the scheduler process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def install() -> None:
    """Replace `Req.update_finish_state`; idempotent."""
    from sglang.srt.managers.schedule_batch import Req

    if not hasattr(Req.update_finish_state, "__wrapped__"):
        Req.update_finish_state = token_by_token(Req.update_finish_state)


def token_by_token(check: Callable[..., None]) -> Callable[..., None]:
    """Wrap SGLang's check of `new_accepted_len` tokens so that it sees one more at a time."""

    @functools.wraps(check)
    def update_finish_state(request: Req, new_accepted_len: int = 1) -> None:
        params = request.sampling_params
        # Token ids alone are found in text order by SGLang itself.
        has_text_stops = params.stop_strs or params.stop_regex_strs
        if new_accepted_len <= 1 or not has_text_stops or request.finished() or request.to_finish:
            check(request, new_accepted_len)
            return
        ids = request.output_ids
        run = ids[-new_accepted_len:]
        del ids[-new_accepted_len:]
        # The grammar has been advanced by the whole run: only its end may be judged by it.
        grammar: Any = request.grammar
        request.grammar = None
        for position, token in enumerate(run):
            ids.append(token)
            if position == len(run) - 1:
                request.grammar = grammar
            check(request, 1)
            if request.finished():
                if request.finished_len is None:
                    request.finished_len = len(ids)
                ids.extend(run[position + 1 :])
                break
        request.grammar = grammar

    return update_finish_state
