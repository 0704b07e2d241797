"""Cache slots for the drafts of requests that reach the end of the context.

A running request holds slots for two steps of drafts beyond what is decided: SGLang's
`get_alloc_reserve_per_decode`. With pages of one slot its table of slots has room for fewer
positions behind the context than a tree takes, so that the last steps of a long request would write
behind its row, into the next request's.
"""

from __future__ import annotations


def install() -> None:
    """Widen the table, in the scheduler process and before it is made; idempotent."""
    from sglang.srt.mem_cache import kv_cache_configurator
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

    stock = kv_cache_configurator.get_req_to_token_extra_context_len
    if stock.__module__ == __name__:
        return

    def extra_context_len() -> int:
        return max(stock(), get_alloc_reserve_per_decode())

    kv_cache_configurator.get_req_to_token_extra_context_len = extra_context_len
