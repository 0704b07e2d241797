"""SmolLM2-135M-Instruct with the head and the draft vocabulary that ship with the package.

Run alone: pytest tests/served/test_real_model.py (starts two servers, in bfloat16 two more)
"""

import pytest
import torch
from client import Answer, acceptance_length, assert_equal, generate_all
from prompts import requests


@pytest.fixture(scope="module")
def baseline(servers) -> list[Answer]:
    """64 answers of the target alone."""
    return generate_all(servers("smollm2"), requests(), concurrency=16)


def test_batch_16(servers, baseline):
    assert {a.finish_reason["type"] for a in baseline} == {"stop", "length"}
    fast = generate_all(servers("smollm2-fastmtp"), requests(), concurrency=16)
    assert_equal(fast, baseline)
    assert all(a.meta["spec_verify_ct"] > 0 for a in fast if len(a.ids) > 1)
    assert acceptance_length(fast) > 1.2


def test_streaming(servers, baseline):
    chosen = range(0, 64, 2)
    cases = [requests()[i] for i in chosen]
    fast = generate_all(servers("smollm2-fastmtp"), cases, concurrency=8, stream=True)
    assert_equal(fast, [baseline[i] for i in chosen])


def test_batch_1(servers, baseline):
    chosen = range(3, 64, 6)
    cases = [requests()[i] for i in chosen]
    fast = generate_all(servers("smollm2-fastmtp"), cases, concurrency=1)
    assert_equal(fast, [baseline[i] for i in chosen])


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products"
)
def test_bfloat16(servers):
    """Its bits are those of decoding alone too, wherever a prompt is cut and whatever is beside."""
    base = generate_all(servers("smollm2-bfloat16"), requests(), concurrency=16)
    fast = generate_all(servers("smollm2-bfloat16-fastmtp"), requests(), concurrency=16)
    assert_equal(fast, base)
    one = generate_all(servers("smollm2-bfloat16-fastmtp"), requests()[1::9], concurrency=1)
    assert_equal(one, base[1::9])
