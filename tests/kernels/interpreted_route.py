"""The routing kernel against its definition in torch, interpreted (see interpreted.py)."""

import pytest
import torch
import triton

from fastmtp_kernels.route import advance_routes
from fastmtp_sglang.serving.routing.router import _RULES, Count, Router
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.scripts import Script

SEED = 20250918
PER_SCRIPT, SLOTS = 40, 6
VOCAB = PER_SCRIPT * len(Script)
# What a phase of the text is written in, by language, and the share of it that the list holds.
PHASES = {
    "en": ((Script.LATIN,), 1.0),
    "code": ((Script.LATIN, Script.CODE), 0.9),
    "zh": ((Script.HAN,), 0.5),
    "ja": ((Script.HAN, Script.KANA), 0.95),
    "ru": ((Script.CYRILLIC,), 0.9),
    None: ((Script.OTHER, Script.THAI, Script.NEUTRAL), 0.0),
}


def tokens_of(scripts: tuple[Script, ...]) -> torch.Tensor:
    return torch.cat([torch.arange(PER_SCRIPT) + PER_SCRIPT * script for script in scripts])


def vocabulary() -> DraftVocabulary:
    ids = {}
    for name, (scripts, share) in PHASES.items():
        if name:
            tokens = tokens_of(scripts)
            ids[name] = (
                tokens[torch.randperm(len(tokens))[: int(share * len(tokens))]].sort().values
            )
    return DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids=ids,
        token_scripts=torch.arange(len(Script)).repeat_interleave(PER_SCRIPT).to(torch.int8),
        routes=default_routes(tuple(ids)),
    )


def test_the_interpreter_is_on():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize(("width", "runs"), [(4, 10), (7, 2)])
def test_equals_torch_while_texts_change_their_language(width: int, runs: int):
    torch.manual_seed(SEED)
    made = vocabulary()
    expected, found = Router(made, SLOTS, "cpu"), Router(made, SLOTS, "cpu")
    for router in (expected, found):
        router.state.named[3] = made.languages.index("zh")
    for phase, (scripts, _) in enumerate(PHASES.values()):
        text = tokens_of(scripts)
        for _ in range(runs):
            slots = torch.randperm(SLOTS - 1)[:3] + 1
            tokens = text[torch.randint(len(text), (3, width))]
            tokens[0, 0] = (-3, VOCAB, 10**10, 5)[phase % 4]
            accepted = torch.randint(1, width + 1, (3,))
            expected.advance(slots, tokens, accepted)
            advance_routes(
                found._tables, found.state, _RULES, slots, tokens, accepted.to(torch.int32)
            )
            for name, one, other in zip(
                expected.state._fields, expected.state, found.state, strict=True
            ):
                assert torch.allclose(one.float(), other.float(), rtol=1e-5), (name, phase)
    if runs == 10:  # long enough for everything to have happened
        assert (found.counts()[Count.DRAFTED] > 0).all()
        assert (found.counts().sum(dim=1) > 0).all()


def test_padding_rows_leave_their_slot_alone():
    router = Router(vocabulary(), SLOTS, "cpu")
    before = [tensor.clone() for tensor in router.state]
    advance_routes(
        router._tables,
        router.state,
        _RULES,
        torch.tensor([0, 0]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32),
    )
    assert all(torch.equal(one, other) for one, other in zip(before, router.state, strict=True))
