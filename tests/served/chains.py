"""Texts that are known in advance, in scripts that we define, and draft vocabularies for them.

`models.chain_target(SUCCESSOR)` walks round a cycle of token ids. The tokens of each cycle belong
to one script, so a request's language follows from where it starts; one chain leads from English
into Chinese.
"""

from pathlib import Path

import torch

from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.scripts import Script

VOCAB_SIZE = 49152
CYCLES = {
    "en": range(1000, 1400),
    "zh": range(30000, 30400),
    "code": range(4000, 4400),
    "ru": range(8000, 8400),  # no list
    "ko": range(12000, 12400),  # a list that lacks all of it
}
# English for a while, then on into the Chinese cycle.
SWITCHING = range(20000, 20060)

SUCCESSOR = torch.full((VOCAB_SIZE,), -1)
for _cycle in CYCLES.values():
    SUCCESSOR[list(_cycle)] = torch.tensor([*_cycle[1:], _cycle[0]])
SUCCESSOR[list(SWITCHING)] = torch.tensor([*SWITCHING[1:], CYCLES["zh"][0]])
# The same cycles, the other way round.
PREDECESSOR = torch.full((VOCAB_SIZE,), -1)
for _cycle in CYCLES.values():
    PREDECESSOR[[*_cycle[1:], _cycle[0]]] = torch.tensor(list(_cycle))


def prompt(language: str, length: int = 24) -> list[int]:
    """The first tokens of a language's cycle."""
    return list(CYCLES[language][:length])


def continued(prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that the target says after `prompt`."""
    ids = [int(SUCCESSOR[prompt[-1]])]
    while len(ids) < count:
        ids.append(int(SUCCESSOR[ids[-1]]))
    return ids


def _scripts() -> torch.Tensor:
    scripts = torch.zeros(VOCAB_SIZE, dtype=torch.int8)
    for tokens, script in (
        (CYCLES["en"], Script.LATIN),
        (SWITCHING, Script.LATIN),
        (CYCLES["zh"], Script.HAN),
        (CYCLES["code"][::2], Script.LATIN),
        (CYCLES["code"][1::2], Script.CODE),
        (CYCLES["ru"], Script.CYRILLIC),
        (CYCLES["ko"], Script.HANGUL),
    ):
        scripts[list(tokens)] = int(script)
    return scripts


def _vocabulary(
    target: Path, lists: dict[str, list[int]], routes: dict[str, str], own_tokens: int = 0
) -> DraftVocabulary:
    from transformers import AutoTokenizer

    return DraftVocabulary(
        vocab_size=VOCAB_SIZE,
        tokenizer_fingerprint=tokenizer_fingerprint(AutoTokenizer.from_pretrained(target)),
        ids={name: torch.tensor(sorted(ids)) for name, ids in lists.items()},
        token_scripts=_scripts(),
        routes=routes,
        own_tokens=own_tokens,
    )


def routed(target: Path, own_tokens: int = 0) -> DraftVocabulary:
    """A list a language, each holding its own cycle; none for Russian, a wrong one for Korean."""
    lists = {
        "en": [*CYCLES["en"], *SWITCHING],
        "zh": list(CYCLES["zh"]),
        "code": list(CYCLES["code"]),
        "ko": list(range(12500, 12900)),
    }
    return _vocabulary(target, lists, default_routes(tuple(lists)), own_tokens)


def english_only(target: Path) -> DraftVocabulary:
    """The English list for Chinese too, as a single list without routing would have it."""
    return _vocabulary(
        target, {"en": [*CYCLES["en"], *SWITCHING]}, {"en": "en", "zh": "en", "code": "en"}
    )


def nearly_all(target: Path) -> DraftVocabulary:
    """One list for all languages, without every eighth token, for targets that walk no cycle."""
    ids = [index for index in range(VOCAB_SIZE) if index % 8]
    return _vocabulary(target, {"en": ids}, default_routes(("en",)))
