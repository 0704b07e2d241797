"""With --speculative-adaptive the answers stay equal while K changes under them.

A batch size that is new to the server begins without drafts and looks at others at once, so that K
changes in the first few dozen steps, whatever this machine's times are.
Run alone: pytest tests/served/test_adaptive.py (starts four tiny servers).
"""

from concurrent.futures import ThreadPoolExecutor

import chains
from client import assert_equal, generate, generate_all
from prompts import requests


def _histogram(answers) -> list[int]:
    """How many verifications accepted 0, 1, 2, 3 drafts."""
    counts = [0, 0, 0, 0]
    for answer in answers:
        for accepted, count in enumerate(answer.meta.get("spec_correct_drafts_histogram", [])):
            counts[accepted] += count
    return counts


def test_answers_while_k_changes(servers):
    """Each of 16 concurrent requests has another length, so that the batch shrinks as well."""
    cases = requests()
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    fast = generate_all(servers("mimo-adaptive"), cases, concurrency=16, ignore_eos=True)
    assert_equal(fast, base)


def test_penalties_while_k_changes(servers):
    """They count what was produced at any K, 0 included."""
    cases = requests()[:12]
    options = {"ignore_eos": True, "frequency_penalty": 0.7, "repetition_penalty": 1.2}
    base = generate_all(servers("mimo-synchronous"), cases, concurrency=4, **options)
    fast = generate_all(servers("mimo-adaptive"), cases, concurrency=4, **options)
    assert_equal(fast, base)


def test_drafts_are_right_again_after_steps_without_any(servers):
    """Every draft of this head is right, except the first after K = 0, which begins with nothing.

    That it sees the keys of such steps is shown in test_hidden_states.py; this head reads none.
    """
    cases = [chains.prompt(name, 20 + i) for i, name in enumerate(("zh", "en", "code", "ru"))]
    url = servers("chains-adaptive")
    one = generate(url, cases[0], ignore_eos=True, max_new_tokens=96)
    assert list(one.ids) == [cases[0][-1] + 1 + i for i in range(96)]
    answers = [one]
    # Step times decide which K is worth a look, and when.
    for _ in range(4):
        with ThreadPoolExecutor(4) as pool:
            together = list(
                pool.map(lambda p: generate(url, p, ignore_eos=True, max_new_tokens=96), cases)
            )
        for prompt, answer in zip(cases, together, strict=True):
            assert list(answer.ids) == [prompt[-1] + 1 + i for i in range(96)]
        answers += together
        none, *some = _histogram(answers)
        if none and any(some):
            break
    # A server begins without drafts. At which K it looks then is decided by this machine's times:
    # the policy's tests have a clock of their own, and test_hidden_states.py a schedule.
    assert none > 0, "K = 0 was not tried"
    assert any(some), "no other K was tried"
    # After K = 0 drafting goes on at another K for hundreds of steps, with all drafts accepted.
    again = generate(url, cases[1], ignore_eos=True, max_new_tokens=96)
    assert list(again.ids) == [cases[1][-1] + 1 + i for i in range(96)]
