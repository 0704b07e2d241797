"""The router's state machine, token by token, without a server."""

from array import array
from types import SimpleNamespace

import pytest
import torch

from fastmtp_sglang.serving.cpu import own_tokens as on_a_cpu
from fastmtp_sglang.serving.cpu.ops import advance_routes
from fastmtp_sglang.serving.routing.own_tokens import remember_in_torch
from fastmtp_sglang.serving.routing.router import Count, Router, advance_in_torch
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.languages import HALF_LIFE
from fastmtp_sglang.vocabulary.scripts import Script

# Token ids 0..99 are neutral, then a hundred of each script; lists hold the first half of theirs.
LATIN, HAN, CYRILLIC = (range(start, start + 100) for start in (100, 200, 300))
LISTED = 50
K = 3


def vocabulary(own_tokens: int = 0) -> DraftVocabulary:
    scripts = torch.zeros(400, dtype=torch.int8)
    for tokens, script in ((LATIN, Script.LATIN), (HAN, Script.HAN), (CYRILLIC, Script.CYRILLIC)):
        scripts[list(tokens)] = int(script)
    ids = {
        "en": torch.tensor(LATIN[:LISTED]),
        "zh": torch.tensor(HAN[:LISTED]),
    }
    return DraftVocabulary(
        vocab_size=400,
        tokenizer_fingerprint="sha256:none",
        ids=ids,
        token_scripts=scripts,
        routes=default_routes(tuple(ids)),
        own_tokens=own_tokens,
    )


class Request:
    def __init__(self, prompt, output=(), lang=None):
        self.origin_input_ids = array("q", prompt)
        self.output_ids = array("q", output)
        custom = None if lang is None else {"lang": lang}
        self.sampling_params = SimpleNamespace(custom_params=custom)


@pytest.fixture(params=[advance_in_torch, advance_routes])
def router(request, monkeypatch) -> Router:
    monkeypatch.setattr(Router, "advance_on_host", staticmethod(request.param))
    return Router(vocabulary(), num_slots=6, device="cpu")


@pytest.fixture(params=["torch", "native"])
def drafting_own(request, monkeypatch) -> Router:
    """A router whose requests draft from up to 64 tokens of their own."""
    native = request.param == "native"
    move = advance_routes if native else advance_in_torch
    note = on_a_cpu.remember if native else remember_in_torch
    monkeypatch.setattr(Router, "advance_on_host", staticmethod(move))
    monkeypatch.setattr(Router, "remember_on_host", staticmethod(note))
    return Router(vocabulary(own_tokens=64), num_slots=6, device="cpu")


def own(router: Router, slot: int, listed: str) -> set[int]:
    entries = router.own_tokens[slot, router.names.index(listed)]
    return set(entries[entries >= 0].tolist())


def name(router: Router, slot: int) -> str:
    return router.names[int(router.lists[slot])]


def advance(router: Router, slot: int, tokens, accepted: int | None = None) -> None:
    tokens = torch.tensor([list(tokens)])
    accepted = tokens.shape[1] if accepted is None else accepted
    router.advance(torch.tensor([slot]), tokens, torch.tensor([accepted]))


def feed(router: Router, slot: int, tokens) -> list[str]:
    """Advance by runs of K + 1 tokens; returns the list after each run."""
    seen = []
    for start in range(0, len(tokens), K + 1):
        advance(router, slot, tokens[start : start + K + 1])
        seen.append(name(router, slot))
    return seen


def test_slots_start_from_the_prompt(router):
    prompts = [list(LATIN[:20]), list(HAN[:20]), list(CYRILLIC[:20]), [5, 6, 7]]
    requests = [Request(prompt) for prompt in prompts]
    router.start([1, 2, 3, 4], requests)
    assert [name(router, slot) for slot in (1, 2, 3, 4)] == ["en", "zh", "full", "full"]
    # A slot that no request has used costs the kernel nothing.
    assert router.lists[[0, 5]].tolist() == [-1, -1]


def test_the_end_of_a_long_prompt_decides(router):
    router.start([1], [Request([*LATIN, *HAN[:80]])])
    assert name(router, 1) == "zh"


def test_output_before_a_retraction_counts(router):
    router.start([1], [Request(LATIN[:20], output=HAN[:80])])
    assert name(router, 1) == "zh"


def test_later_chunks_of_a_prompt_change_nothing_and_a_new_owner_everything(router):
    request = Request(LATIN[:20])
    router.start([1], [request])
    assert feed(router, 1, HAN[:40])[-1] == "zh"
    router.start([1], [request])  # the request is still there, and so is what it has said
    assert name(router, 1) == "zh"
    router.start([1], [Request(LATIN[:20])])
    assert name(router, 1) == "en"


def test_a_switch_of_language_is_followed_within_a_few_dozen_tokens(router):
    router.start([1], [Request([*LATIN] * 3)])
    to_chinese = feed(router, 1, [*HAN[:LISTED]] * 2)
    assert to_chinese[0] == "en"
    assert (K + 1) * to_chinese.index("zh") < HALF_LIFE
    to_english = feed(router, 1, [*LATIN[:LISTED]] * 4)
    assert (K + 1) * to_english.index("en") < 2 * HALF_LIFE + K + 1
    assert router.counts()[Count.REROUTED].tolist() == [1, 1, 0]


def test_only_accepted_tokens_count(router):
    router.start([1], [Request(LATIN[:20])])
    for _ in range(20):  # rejected drafts lie behind the accepted token
        advance(router, 1, [LATIN[0], *HAN[:K]], accepted=1)
    assert name(router, 1) == "en"


def test_neutral_tokens_keep_the_language(router):
    router.start([1], [Request(HAN[:20])])
    assert set(feed(router, 1, list(range(100)) * 4)) == {"zh", "full"}  # the list lacks numbers
    assert router.names[int(router.state.wanted[1])] == "zh"


def test_a_named_language_wins(router):
    router.start([1, 2], [Request(LATIN[:20], lang="zh"), Request(LATIN[:20], lang="full")])
    assert (name(router, 1), name(router, 2)) == ("zh", "full")
    advance(router, 1, HAN[:1])
    advance(router, 2, LATIN[:4])
    assert (name(router, 1), name(router, 2)) == ("zh", "full")


def test_an_unknown_name_is_reported_once_and_routed_by_text(router, caplog):
    router.start([1, 2], [Request(LATIN[:20], lang="tlh"), Request(HAN[:20], lang="tlh")])
    assert (name(router, 1), name(router, 2)) == ("en", "zh")
    assert caplog.text.count("'tlh'} names no draft list (there are en, zh, full)") == 1


def test_unknown_names_are_neither_kept_nor_logged_without_end(router, caplog):
    for number in range(300):
        router.start([1], [Request(LATIN[:20], lang=f"{number}" + "x" * 5000)])
        assert name(router, 1) == "en"
    assert len(caplog.records) == 1
    assert len(caplog.text) < 300
    assert not any(isinstance(kept, set | dict) for kept in vars(router).values())


def test_a_failing_list_is_left_and_taken_again(router):
    router.start([1], [Request(LATIN[:20])])
    unlisted = LATIN[LISTED:]
    while_failing = feed(router, 1, unlisted[:40])
    assert while_failing[0] == "en"  # too few tokens to judge
    assert while_failing[2:] == ["full"] * 8
    assert router.counts()[Count.FALLBACKS].tolist() == [1, 0, 0]
    recovered = feed(router, 1, [*LATIN[:LISTED]] * 3)
    assert recovered[0] == "full"
    assert recovered[-1] == "en"


def test_a_list_with_few_misses_is_kept(router):
    router.start([1], [Request(LATIN[:20])])
    text = [LATIN[i % LISTED] if i % 8 else LATIN[LISTED + i % LISTED] for i in range(200)]
    assert set(feed(router, 1, text)) == {"en"}


def test_counts(router):
    router.start([1, 2], [Request(LATIN[:20]), Request(CYRILLIC[:20])])
    inside, outside = LATIN[0], LATIN[LISTED]
    advance(router, 1, [inside, inside, outside, 0], accepted=3)  # rejected, right one not listed
    advance(router, 1, [inside, inside, inside, 0], accepted=3)  # rejected, could have been right
    advance(router, 1, [inside, inside, inside, outside])  # all accepted: the bonus is no draft
    advance(router, 2, [*CYRILLIC[:2], 0, 0], accepted=2)
    assert router.counts()[Count.DRAFTED].tolist() == [9, 0, 3]
    assert router.counts()[Count.ACCEPTED].tolist() == [7, 0, 1]
    assert router.counts()[Count.MISSES].tolist() == [1, 0, 0]


def test_rows_of_a_batch_move_alone(router):
    requests = [Request(LATIN[:20]), Request(HAN[:20])]
    router.start([4, 2], requests)
    tokens = torch.tensor([LATIN[:4], HAN[4:8]])
    router.advance(torch.tensor([4, 2]), tokens, torch.tensor([4, 1]))
    assert (name(router, 4), name(router, 2)) == ("en", "zh")
    assert router.state.seen[[4, 2]].tolist() == [4, 1]


def test_ids_outside_the_vocabulary_are_neutral(router):
    router.start([1], [Request([*LATIN[:20], 10**12, -1])])
    advance(router, 1, [10**12, -5, LATIN[0], LATIN[1]])
    assert name(router, 1) == "en"


def test_advance_reads_nothing_on_the_host(monkeypatch):
    """Meta tensors have no values: any wait for the device would fail."""
    monkeypatch.setattr(Router, "advance_on_host", staticmethod(advance_in_torch))
    monkeypatch.setattr(Router, "remember_on_host", staticmethod(remember_in_torch))
    router = Router(vocabulary(own_tokens=64), num_slots=6, device="meta")
    slots = torch.zeros(2, dtype=torch.int64, device="meta")
    router.advance(slots, slots.new_zeros(2, 4), slots)
    assert router.lists.shape == (6,)


def test_without_own_tokens_nothing_is_kept(router):
    router.start([1], [Request(LATIN[:20])])
    router.remember([1], torch.tensor([LATIN[90]]), [True])
    assert router.own_tokens is None


def test_own_tokens_follow_prompt_and_answer_for_every_list(drafting_own):
    router = drafting_own
    router.start([1, 2], [Request([*LATIN[40:60], 5], output=[LATIN[70]]), Request(HAN[:20])])
    unlisted = {*LATIN[50:60], 5, LATIN[70]}
    assert own(router, 1, "en") == unlisted
    assert own(router, 1, "zh") == unlisted | {*LATIN[40:50]}
    assert own(router, 1, "full") == set()
    assert own(router, 2, "zh") == set()
    # What the prefill leads to; not what lies behind a chunk of a prompt.
    router.remember([2, 1], torch.tensor([HAN[80], LATIN[80]]), [True, False])
    assert own(router, 2, "zh") == {HAN[80]}
    assert own(router, 1, "en") == unlisted
    # And of a verification what it accepted.
    advance(router, 1, [LATIN[81], LATIN[0], LATIN[82], LATIN[83]], accepted=3)
    assert own(router, 1, "en") == unlisted | {LATIN[81], LATIN[82]}


def test_a_request_that_moves_finds_what_its_new_list_lacks(drafting_own):
    router = drafting_own
    router.start([1], [Request([*LATIN] * 3)])
    feed(router, 1, [*HAN[:LISTED]] * 2)
    assert name(router, 1) == "zh"
    assert own(router, 1, "zh") == set(LATIN[36:])  # the newest 64


def test_a_new_owner_starts_anew_and_an_old_one_keeps_its_own(drafting_own):
    router = drafting_own
    request = Request(LATIN[:20])
    router.start([1], [request])
    advance(router, 1, LATIN[60:64])
    router.start([1], [request])  # the next chunk of its prompt
    assert own(router, 1, "en") == set(LATIN[60:64])
    router.start([1], [Request(LATIN[70:72])])
    assert own(router, 1, "en") == set(LATIN[70:72])


def test_misses_that_own_tokens_avoid(drafting_own):
    router = drafting_own
    router.start([1], [Request([*LATIN[:20], LATIN[LISTED]])])
    inside, outside, new = LATIN[0], LATIN[LISTED], LATIN[LISTED + 1]
    advance(router, 1, [inside, outside, inside, 0], accepted=3)  # drafted though not listed
    advance(router, 1, [inside, outside, 0, 0], accepted=2)  # could have been drafted
    advance(router, 1, [inside, new, 0, 0], accepted=2)  # could not
    advance(router, 1, [inside, new, 0, 0], accepted=2)  # by now it could
    assert router.counts()[Count.AVOIDED].tolist() == [1, 0, 0]
    assert router.counts()[Count.MISSES].tolist() == [1, 0, 0]


def test_own_tokens_keep_a_list_that_lacks_them(drafting_own):
    router = drafting_own
    router.start([1], [Request([*LATIN[:20], *LATIN[LISTED : LISTED + 10]])])
    assert set(feed(router, 1, [*LATIN[LISTED : LISTED + 10]] * 4)) == {"en"}


def test_what_is_allowed_holds_own_tokens(drafting_own):
    router = drafting_own
    router.start([1, 2], [Request([*LATIN[40:60]]), Request([*LATIN[40:60]], lang="full")])
    allowed = router.allowed(torch.tensor([1, 2]))
    assert allowed[0].nonzero().flatten().tolist() == [*LATIN[:60]]
    assert bool(allowed[1].all())
