"""Texts that change their language, for what moves the router's slots on beside torch."""

from collections.abc import Callable

import torch

from fastmtp_sglang.serving.routing.router import _RULES, Count, Router, advance_in_torch
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


def vocabulary(own_tokens: int = 64) -> DraftVocabulary:
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
        own_tokens=own_tokens,
    )


def compare_with_torch(
    move: Callable[..., None], width: int, runs: int, own_tokens: int = 64
) -> None:
    """Let `move` and torch follow the same texts, `runs` verifications a language."""
    torch.manual_seed(SEED)
    made = vocabulary(own_tokens)
    expected, found = Router(made, SLOTS, "cpu"), Router(made, SLOTS, "cpu")
    for router in (expected, found):
        router.state.named[3] = made.languages.index("zh")
    for phase, (scripts, _) in enumerate(PHASES.values()):
        text = tokens_of(scripts)
        for _ in range(runs):
            slots = torch.randperm(SLOTS - 1)[:3] + 1
            tokens = text[torch.randint(len(text), (3, width))]
            tokens[0, 0] = (-3, VOCAB, 10**10, 5)[phase % 4]
            accepted = torch.randint(1, width + 1, (3,)).to(torch.int32)
            advance_in_torch(expected._tables, expected.state, _RULES, slots, tokens, accepted)
            move(found._tables, found.state, _RULES, slots, tokens, accepted)
            for name, one, other in zip(
                expected.state._fields, expected.state, found.state, strict=True
            ):
                assert torch.allclose(one.float(), other.float(), rtol=1e-5), (name, phase)
    if runs == 10:  # long enough for everything to have happened
        assert (found.counts()[Count.DRAFTED] > 0).all()
        assert (found.counts().sum(dim=1) > 0).all()
