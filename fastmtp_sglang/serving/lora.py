"""LoRA adapters on the target, while the head drafts unadapted, as SGLang has it for EAGLE.

SGLang compares names of algorithms in its check of what goes with adapters; `install` lets that
check, and what it refuses, be EAGLE's for FASTMTP. Called in the process that resolves arguments.
"""

from __future__ import annotations

import functools
from typing import Any

from fastmtp_sglang.contract.identity import ALGORITHM

# Under which SGLang's check knows an algorithm that verifies as many rows of each request.
_ALIKE = "EAGLE"


class _AsEagle:
    """SGLang's arguments, with another name of the algorithm."""

    speculative_algorithm = _ALIKE

    def __init__(self, server_args: Any) -> None:
        self._server_args = server_args

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server_args, name)


def install() -> None:
    """Let SGLang's check of adapters take FASTMTP for EAGLE; idempotent."""
    from sglang.srt.arg_groups import lora_hook

    stock, view = lora_hook.check_lora_speculative_compatibility, lora_hook.resolving_view
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def check(server_args: Any) -> None:
        resolving = view(server_args)
        if (resolving.speculative_algorithm or "").upper() != ALGORITHM:
            stock(server_args)
            return
        lora_hook.resolving_view = lambda _: _AsEagle(resolving)
        try:
            stock(server_args)
        finally:
            lora_hook.resolving_view = view

    lora_hook.check_lora_speculative_compatibility = check
