"""SGLang's checks of what goes with EAGLE take FASTMTP for it: they compare names of algorithms.

LoRA adapters on the target (the head drafts unadapted, as EAGLE's does) and pipelines are served
with any algorithm of the family. What such a check refuses for EAGLE it refuses for FASTMTP.
"""

from __future__ import annotations

import functools
from typing import Any

from fastmtp_sglang.contract.identity import is_ours

# Under which SGLang's checks know an algorithm that verifies as many rows of each request.
_ALIKE = "EAGLE"


class _AsEagle:
    """SGLang's arguments, with another name of the algorithm."""

    speculative_algorithm = _ALIKE

    def __init__(self, server_args: Any) -> None:
        self._server_args = server_args

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server_args, name)


def as_eagle(server_args: Any) -> Any:
    """What a check is given instead of resolved arguments, if these ask for FASTMTP."""
    if is_ours(server_args.speculative_algorithm):
        return _AsEagle(server_args)
    return server_args


def before_check(server_args: Any) -> tuple[tuple[Any], dict[str, Any]]:
    """`as_eagle` as a hook before a check whose only argument is a view of resolved arguments."""
    return (as_eagle(server_args),), {}


def install_for_adapters() -> None:
    """Do so in the check of adapters, which makes its own view of the arguments; idempotent."""
    from sglang.srt.arg_groups import lora_hook

    stock, view = lora_hook.check_lora_speculative_compatibility, lora_hook.resolving_view
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def check(server_args: Any) -> None:
        resolving = as_eagle(view(server_args))
        lora_hook.resolving_view = lambda _: resolving
        try:
            stock(server_args)
        finally:
            lora_hook.resolving_view = view

    lora_hook.check_lora_speculative_compatibility = check
