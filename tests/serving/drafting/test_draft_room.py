"""The width of SGLang's table of cache slots with trees.

Alone: pytest tests/serving/drafting/test_draft_room.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.mem_cache import allocation_sizing, kv_cache_configurator

from fastmtp_sglang.serving.drafting import draft_room


@pytest.mark.parametrize(
    ("steps", "topk", "rows", "page_size"),
    [(3, 1, 4, 1), (3, 8, 16, 1), (5, 8, 48, 1), (3, 8, 16, 16)],
)
def test_a_request_at_the_end_of_the_context_has_room(monkeypatch, steps, topk, rows, page_size):
    spec = SimpleNamespace(
        speculative_algorithm="EAGLE",
        speculative_num_steps=steps,
        speculative_eagle_topk=topk,
    )
    monkeypatch.setattr(allocation_sizing, "get_spec", lambda: spec)
    monkeypatch.setattr(allocation_sizing, "max_speculative_num_draft_tokens", lambda: rows)
    monkeypatch.setattr(allocation_sizing, "get_alloc_page_size", lambda: page_size)
    name = "get_req_to_token_extra_context_len"
    monkeypatch.setattr(kv_cache_configurator, name, getattr(kv_cache_configurator, name))
    draft_room.install()
    widened = getattr(kv_cache_configurator, name)
    draft_room.install()
    assert getattr(kv_cache_configurator, name) is widened
    reserved = max(steps * topk, rows)  # taken off the context of a request
    held = allocation_sizing.get_alloc_reserve_per_decode()
    assert widened() >= held - reserved + steps + page_size - 1
