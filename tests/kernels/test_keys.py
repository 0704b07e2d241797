import pytest
import torch

from fastmtp_kernels.keys import EMPTY_KEY, decode_keys, encode_keys

TINY = torch.finfo(torch.float32).smallest_normal
SCORES = [-3e38, -2.5, -1.0, -TINY, -TINY / 4, 0.0, TINY / 4, TINY, 1.0, 1.0000001, 3e38, torch.inf]
GREATEST_ID = 2**31 - 1


def test_keys_order_like_scores_and_then_like_falling_ids():
    ids = [GREATEST_ID, 7, 6, 0]
    scores = torch.tensor(SCORES).repeat_interleave(len(ids))
    keys = encode_keys(scores, torch.tensor(ids * len(SCORES)))
    assert (keys.diff() > 0).all()


def test_keys_decode_to_what_they_encode():
    scores, ids = torch.tensor(SCORES), torch.arange(len(SCORES)) * 1000
    decoded_ids, decoded_scores = decode_keys(encode_keys(scores, ids), fallback_id=5)
    assert torch.equal(decoded_ids, ids)
    assert torch.equal(decoded_scores, scores)


def test_negative_zero_is_zero():
    keys = encode_keys(torch.tensor([-0.0, 0.0]), torch.tensor([3, 3]))
    assert keys[0] == keys[1]


@pytest.mark.parametrize("score", [torch.nan, -torch.nan, -torch.inf])
def test_no_candidate_loses_against_every_candidate(score: float):
    keys = encode_keys(torch.tensor([score, -3e38]), torch.tensor([0, GREATEST_ID]))
    assert keys[0] == EMPTY_KEY < keys[1]
    ids, scores = decode_keys(keys[:1], fallback_id=42)
    assert (ids.item(), scores.item()) == (42, -torch.inf)
