"""Greedy continuations are made once, and behind the last batch of a run that was killed.

Alone: pytest tests/training/test_greedy.py
"""

import json

import torch

from fastmtp_sglang.training import greedy
from fastmtp_sglang.training.greedy import greedy_continuations

PROMPTS = [[10 + i, 20 + i, 30 + i] for i in range(5)]


def test_a_killed_run_goes_on_behind_the_last_batch(pair, tmp_path, monkeypatch):
    target = pair.frozen(torch.float32)
    monkeypatch.setattr(greedy, "_PROMPTS_PER_BATCH", 2)
    expected = greedy_continuations(target, PROMPTS, [2], 4, tmp_path / "whole.json")

    made = greedy._generate
    asked = []

    def killed_at_the_third(target, prompts, *rest):
        asked.append(prompts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return made(target, prompts, *rest)

    monkeypatch.setattr(greedy, "_generate", killed_at_the_third)
    cache = tmp_path / "cut.json"
    try:
        greedy_continuations(target, PROMPTS, [2], 4, cache)
    except KeyboardInterrupt:
        assert len(json.loads(cache.read_text())["answers"]) == 4
    found = greedy_continuations(target, PROMPTS, [2], 4, cache)
    assert asked[2:] == [PROMPTS[4:], PROMPTS[4:]]
    assert [d.input_ids.tolist() for d in found] == [d.input_ids.tolist() for d in expected]
    greedy_continuations(target, PROMPTS, [2], 4, cache)
    assert len(asked) == 4
    # Other prompts are another question.
    greedy_continuations(target, PROMPTS[:1], [2], 4, cache)
    assert len(asked) == 5
