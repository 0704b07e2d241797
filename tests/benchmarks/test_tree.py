"""The prediction of acceptance lengths against the head's own drafting, one place after the other.

Alone: pytest tests/benchmarks/test_tree.py
"""

import pytest
import tiny_models as models
import torch
from transformers import AutoModelForCausalLM

from fastmtp_benchmarks.tree import Answer, draft_trees, verifications

PROMPT = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A head that often agrees with its target, the target, and 100 tokens that it says."""
    folder = tmp_path_factory.mktemp("pair")
    path = models.add_loops(models.target(folder / "target", output_scale=0.01))
    head = models.agreeing_head(path, folder / "head", noise=0.3).eval()
    target = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        prompt = torch.arange(40, 40 + PROMPT).unsqueeze(0)
        ids = target.generate(prompt, do_sample=False, max_new_tokens=100, eos_token_id=-1)
        hidden = target(ids, output_hidden_states=True).hidden_states[-1]
    return head, target, Answer(ids[0], hidden[0], PROMPT)


def drafts_of(pair, num_steps: int, top_k: int, list_ids=None, own_tokens: int = 0):
    head, target, answer = pair
    with torch.inference_mode():
        return draft_trees(
            head, answer, target.get_input_embeddings(), target.lm_head.weight, list_ids,
            num_steps, top_k, own_tokens,
        )  # fmt: skip


@pytest.mark.heavy
def test_a_chain_accepts_what_the_head_drafts_itself(pair):
    head, target, answer = pair
    accepted = drafts_of(pair, 3, 1).accepted(4).tolist()
    assert len(accepted) == len(answer.ids) - 1 - PROMPT
    expected = []
    for place in range(PROMPT - 1, len(answer.ids) - 2):
        drafts, _ = head.draft(
            answer.hidden_states[None, : place + 1],
            answer.ids[None, 1 : place + 2],
            target.get_input_embeddings(),
            target.lm_head,
            3,
        )
        right = answer.ids[place + 2 : place + 5]
        agreed = (drafts[: len(right)] == right).long().cumprod(0).sum()
        expected.append(int(agreed))
    assert accepted == expected
    assert {0, 3} <= set(accepted)


def test_one_step_accepts_a_token_among_the_best_of_its_list(pair):
    head, target, answer = pair
    listed = answer.ids[PROMPT:].unique()[::2]  # half of what is said
    accepted = drafts_of(pair, 1, 4, listed).accepted(4)  # three of the four are verified
    positions = torch.arange(len(answer.ids) - 1).unsqueeze(0)
    with torch.inference_mode():
        states = head(
            answer.hidden_states[None, :-1],
            target.get_input_embeddings()(answer.ids[None, 1:]),
            positions,
        )
        best = listed[
            (states[0, PROMPT - 1 : -1] @ target.lm_head.weight[listed].T).topk(3).indices
        ]
    hit = (best == answer.ids[PROMPT + 1 :].unsqueeze(1)).any(1)
    assert torch.equal(accepted, hit.long())
    assert 0 < hit.float().mean() < 1


@pytest.mark.parametrize(("num_steps", "top_k"), [(1, 1), (3, 2)])
def test_own_tokens_stand_beside_the_list(pair, num_steps: int, top_k: int):
    """With all that was said before, a list drafts what it would draft if it held that."""
    _, _, answer = pair
    listed = torch.arange(0, 49152, 3)
    alone = drafts_of(pair, num_steps, top_k, listed)
    both = drafts_of(pair, num_steps, top_k, listed, own_tokens=64)
    assert (both.accepted(top_k + 1) >= alone.accepted(top_k + 1)).all()
    assert both.right.sum() > alone.right.sum()
    place = len(both.right) - 1
    said = answer.ids[: PROMPT + place + 1]
    together = torch.cat((listed, said)).unique()
    expected = drafts_of(pair, num_steps, top_k, together)
    assert torch.equal(both.right[place], expected.right[place])
    assert torch.allclose(both.scores[place], expected.scores[place])


@pytest.mark.heavy
def test_more_rows_and_more_branches_accept_more(pair):
    narrow, wide = drafts_of(pair, 3, 2), drafts_of(pair, 3, 4)
    places = len(pair[2].ids) - 1 - PROMPT
    assert (narrow.accepted(4) <= narrow.accepted(9)).all()
    assert wide.accepted(12).sum() > drafts_of(pair, 3, 1).accepted(4).sum()
    assert wide.scores.shape == wide.right.shape == (places, 4 + 16 + 16)


def test_walk():
    assert verifications([0, 0, 0]) == (3, 0)
    assert verifications([2, 9, 9, 1, 9]) == (2, 3)
    assert verifications([]) == (0, 0)
