"""--speculative-use-rejection-sampling: drafts drawn from q over each request's list, served.

The distribution of sampled answers is test_sampling's.
Run alone: pytest tests/served/test_rejection.py (starts three tiny servers).
"""

import chains
import pytest
from client import acceptance_length, assert_equal, generate, generate_all
from prompts import requests

pytestmark = pytest.mark.slow


def test_greedy_answers(servers):
    cases = requests()[:40]
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    fast = generate_all(servers("mimo-mixed"), cases, concurrency=16, ignore_eos=True)
    assert_equal(fast, base)
    assert acceptance_length(fast) > 1.5


def test_drafts_are_drawn_from_the_list_of_the_request(servers):
    """Chinese text drafted from its own list is right; from the English list, never."""
    url, prompt = servers("chains-rejection"), chains.prompt("zh")
    asked = {"ignore_eos": True, "temperature": 0.1}
    right = generate(url, prompt, max_new_tokens=24, **asked)
    wrong = generate(url, prompt, max_new_tokens=6, custom_params={"lang": "en"}, **asked)
    assert list(right.ids) == list(chains.CYCLES["zh"][24:48])
    assert list(wrong.ids) == list(right.ids[:6])
    assert acceptance_length([right]) > 3
    assert acceptance_length([wrong]) == 1
