"""The definition that every implementation is compared with, against values worked out by hand.

Alone: pytest tests/kernels/test_reference.py
"""

import math

import pytest
import torch

from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.reference import reference_scores, reference_tokens

NAN, INF = math.nan, math.inf
# Head rows of one element: with the hidden state 1 a score is the row itself.
HEAD = torch.tensor([[3.0], [5.0], [5.0], [NAN], [-INF], [-0.0], [0.0]])


def tokens(listed: list[int], language: int = 0, **options):
    made = DraftOptions(fallback_id=9, **options)
    lists = [torch.tensor(listed, dtype=torch.int64)]
    ids, scores, log_sum_exp = reference_tokens(torch.ones(1, 1), [language], HEAD, lists, made)
    return ids[0].tolist(), scores[0].tolist(), log_sum_exp.item()


def test_the_best_come_first_and_of_equals_the_lowest_id():
    assert tokens([0, 1, 2], top_k=3)[:2] == ([1, 2, 0], [5.0, 5.0, 3.0])
    assert tokens([0, 2], top_k=1)[:2] == ([2], [5.0])
    assert tokens([5, 6], top_k=2)[0] == [5, 6]  # -0 equals +0


def test_nan_and_minus_infinity_are_no_candidates():
    ids, scores, log_sum_exp = tokens([0, 3, 4], top_k=2)
    assert (ids, scores) == ([0, 9], [3.0, -INF])
    assert log_sum_exp == pytest.approx(3.0)


@pytest.mark.parametrize(("listed", "language"), [([], 0), ([3, 4], 0), ([0], -1), ([0], 1)])
def test_rows_without_a_candidate(listed, language):
    assert tokens(listed, language, top_k=2) == ([9, 9], [-INF, -INF], -INF)


def test_the_log_sum_exp_is_over_the_list_and_not_the_best_few():
    assert tokens([0, 1, 2], top_k=1)[2] == pytest.approx(5 + math.log(2 + math.exp(-2)))


def test_the_softcap_comes_after_the_scale():
    options = DraftOptions(scale=0.5, softcap=4.0)
    (score,) = reference_scores(torch.ones(1), HEAD, torch.tensor([0]), options)
    assert score == pytest.approx(4 * math.tanh(1.5 / 4))


def test_the_hidden_state_is_rounded_to_the_heads_dtype_and_nothing_else():
    head = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    hidden = torch.tensor([1.0 + 2**-9, 2.0**-20])  # bfloat16 keeps eight bits
    (score,) = reference_scores(hidden, head, torch.tensor([0]), DraftOptions())
    assert (score.dtype, score.item()) == (torch.float64, 1 + 2**-20)
