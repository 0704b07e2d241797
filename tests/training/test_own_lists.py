"""Each token is trained over the list that serving drafts it from; compared with labels one by one.

Alone: pytest tests/training/test_own_lists.py
"""

import pairs
import pytest
import torch

from fastmtp_sglang.training.loss import LossWeights
from fastmtp_sglang.training.own_lists import OwnLists
from fastmtp_sglang.training.packing import Document, pack
from fastmtp_sglang.training.trainer import Documents
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.scripts import Script

pytestmark = pytest.mark.heavy

STEPS = 3
HALF = pairs.VOCABULARY // 2
# Below HALF all tokens are Latin, from there on Cyrillic.
EN, RU = torch.arange(0, HALF, 40), torch.arange(HALF, pairs.VOCABULARY, 60)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> pairs.Pair:
    return pairs.make_pair(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def lists(pair) -> OwnLists:
    scripts = torch.full((pairs.VOCABULARY,), int(Script.LATIN), dtype=torch.int8)
    scripts[HALF:] = int(Script.CYRILLIC)
    vocabulary = DraftVocabulary(
        vocab_size=pairs.VOCABULARY,
        tokenizer_fingerprint="0" * 64,
        ids={"en": EN, "ru": RU},
        token_scripts=scripts,
        routes=default_routes(("en", "ru")),
    )
    return OwnLists.of(pair.frozen().output_weight, vocabulary)


def text(seed: int, *runs: tuple[torch.Tensor, int]) -> Document:
    """Tokens of lists, so many of each; every third one is any token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat(
        [listed[torch.randint(len(listed), (n,), generator=generator)] for listed, n in runs]
    )
    ids[::3] = ids[::3] // HALF * HALF + torch.randint(HALF, ids[::3].shape, generator=generator)
    return Document(ids, torch.arange(len(ids)) >= 4)


@pytest.fixture(scope="module")
def documents(lists) -> list[Document]:
    plain = [text(1, (EN, 40)), text(2, (RU, 150), (EN, 150)), text(3, (RU, 9))]
    return [lists.to_train(document) for document in plain]


def test_the_list_is_the_routers(lists, documents):
    english, switching, russian = documents
    assert english.lists.unique().tolist() == [0]
    assert russian.lists.unique().tolist() == [1]
    switch = switching.lists.tolist().index(0)
    assert 150 < switch < 224
    assert switching.lists[:switch].unique().tolist() == [1]
    for document in documents:
        scored = torch.where(
            document.lists == 0,
            torch.isin(document.input_ids, EN),
            torch.isin(document.input_ids, RU),
        )
        assert torch.equal(document.counted, scored & (torch.arange(len(scored)) >= 4))


@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(0.3, 0.7)], ids=["ce", "mixed"])
def test_the_loss_is_that_of_each_label_over_its_list(pair, lists, documents, weights):
    target = pair.frozen()
    head = pair.chain_head(weights=weights, output=lists, target=target)
    batch = pack(documents, STEPS)
    found = head(**batch)
    hidden = target.packed_hidden_states(batch["input_ids"], batch["lengths"].tolist())
    ids, rows, at_anchors = batch["input_ids"], batch["rows"], batch["rows"][batch["anchors"]]

    def forced(step, states):
        start = rows if step == 1 else at_anchors
        return ids[(start + step).clamp(max=len(ids) - 1)]

    chain = list(head.chain_states(hidden[rows], batch, target.embed, forced, STEPS))
    expected = torch.zeros(STEPS, dtype=torch.float64)
    every_list = torch.cat([document.lists for document in documents])
    for label, anchors in zip(
        batch["labels"].tolist(), batch["label_rows"].T.tolist(), strict=True
    ):
        listed = (EN, RU)[every_list[label]]
        matrix, correct = target.output_weight[listed], listed.tolist().index(int(ids[label]))
        wanted = (hidden[label - 1] @ matrix.T).log_softmax(-1)
        for step, anchor in enumerate(anchors):
            if anchor >= 0:
                scores = (chain[step][anchor] @ matrix.T).log_softmax(-1)
                divergence = (wanted.exp() * (wanted - scores)).sum()
                expected[step] += weights.kl * divergence
                expected[step] -= weights.cross_entropy * scores[correct]
    torch.testing.assert_close(found["sums"], expected, rtol=1e-9, atol=1e-9)


def test_a_chain_drafts_from_its_list(pair, lists, documents):
    head = pair.chain_head(output=lists)
    batch = pack([lists.with_lists(document) for document in documents], STEPS)
    drafts = head(draft_with=lists, **batch)["drafts"]
    english = batch["anchor_lists"] == 0
    assert 0 < english.sum() < len(english)
    assert torch.isin(drafts[:, english], EN).all()
    assert torch.isin(drafts[:, ~english], RU).all()


def test_text_that_no_list_is_for_is_scored_over_all(lists):
    """Five tokens of each script: neither has a majority."""
    mixed = lists.to_train(Document(torch.cat((EN[:4], RU[:2])), torch.ones(6, dtype=torch.bool)))
    assert mixed.lists.unique().tolist() == [2]
    assert mixed.counted.all()


def test_idle_documents(pair, lists, documents):
    """A batch of them alone teaches nothing, and gives every parameter its gradient."""
    data = Documents(documents, multiple=4)
    head = pair.chain_head(output=lists)
    found = head(**pack([data[3]], STEPS))
    assert found["sums"].tolist() == [0.0] * STEPS
    found["sums"].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    both, alone = (
        head(**pack(group, STEPS))["sums"] for group in ([documents[0], data[3]], [documents[0]])
    )
    torch.testing.assert_close(both, alone)
