"""Two pipeline stages: answers are those of one stage without speculation.

The last stage drafts and verifies; the first one answers clients and computes its layers of what
the other drafted. SGLang's own EAGLE loses seeds there, and sees no custom logit processor.
Run alone: pytest -m slow tests/served/test_pipeline.py (starts two servers of two stages, and one).
"""

import pytest
from client import acceptance_length, assert_equal, generate, generate_kinds
from features import GRAMMARS
from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

pytestmark = pytest.mark.slow

KINDS = ("qwen3-stages", "qwen3-stages-tree")
FIELDS = (
    {},
    {"frequency_penalty": 0.7, "presence_penalty": 0.3},
    {"temperature": 1.0, "sampling_seed": 11},
    {"repetition_penalty": 1.3},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 50, "sampling_seed": 12},
    {"logit_bias": {"77": 3.0}, "min_new_tokens": 9},
    GRAMMARS[0],
    {"stop": ["an", " s", "er"], "temperature": 0.8, "sampling_seed": 13},
)


@pytest.mark.parametrize("kind", KINDS)
def test_equal(servers, kind):
    base = generate_kinds(servers("qwen3"), FIELDS, 40, 8)
    for concurrency in (1, 8):
        fast = generate_kinds(servers(kind), FIELDS, 40, concurrency)
        assert_equal(fast, base)
        assert acceptance_length(fast) > 2


def test_a_logit_processor_is_obeyed(servers):
    """What it forbids is what the target would say next."""
    prompt, processor = [5, 6, 7, 8], DisallowedTokensLogitsProcessor.to_str()
    url = servers("qwen3-stages")
    plain = generate(servers("qwen3"), prompt, max_new_tokens=16, ignore_eos=True)
    forbidden = list(plain.ids[3:6])
    answer = generate(
        url,
        prompt,
        max_new_tokens=16,
        ignore_eos=True,
        processor=processor,
        custom_params={"token_ids": forbidden},
    )
    assert answer.ids[:3] == plain.ids[:3]
    assert not set(forbidden) & set(answer.ids)
