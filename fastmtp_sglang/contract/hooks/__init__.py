"""The SGLang names that we override, call or read, one `Hook` each.

`compat` compares the table with the installed SGLang, and its test with what our code really uses.
"""

from fastmtp_sglang.contract.hooks import decoding, platform, requests
from fastmtp_sglang.contract.hooks.hook import Hook

__all__ = ["HOOKS", "Hook"]

HOOKS: tuple[Hook, ...] = (*decoding.HOOKS, *requests.HOOKS, *platform.HOOKS)
