"""Decisions from counts: scripts, mixtures, switches, and agreement of text and router.

Run alone: pytest tests/vocabulary/test_languages.py
"""

import pytest
import torch

from fastmtp_sglang.vocabulary.languages import (
    HALF_LIFE,
    LANGUAGES,
    NUM_SCRIPTS,
    UNDECIDED,
    advance_state,
    count_scripts,
    decide_language,
    languages_of_text,
    state_of_prompt,
)
from fastmtp_sglang.vocabulary.scripts import Script

# A vocabulary of one token a script: the id is the script.
TABLE = torch.arange(NUM_SCRIPTS, dtype=torch.int8)


def decide(**counts: float) -> str:
    state = torch.zeros(NUM_SCRIPTS)
    for name, count in counts.items():
        state[Script[name.upper()]] = count
    index = int(decide_language(state))
    return "undecided" if index == UNDECIDED else LANGUAGES[index]


@pytest.mark.parametrize(
    ("counts", "language"),
    [
        ({"latin": 40}, "en"),
        ({"latin": 40, "neutral": 500}, "en"),
        ({"latin": 40, "code": 5}, "en"),
        ({"latin": 40, "code": 20}, "code"),
        ({"han": 40}, "zh"),
        ({"han": 40, "kana": 2}, "zh"),
        ({"han": 20, "kana": 20}, "ja"),
        ({"han": 40, "kana": 8}, "ja"),
        ({"kana": 40}, "ja"),
        ({"hangul": 40, "han": 5}, "ko"),
        ({"cyrillic": 40}, "ru"),
        ({"arabic": 40}, "ar"),
        ({"devanagari": 40}, "hi"),
        ({"greek": 40}, "el"),
        ({"hebrew": 40}, "he"),
        ({"thai": 40}, "th"),
        ({"bengali": 40}, "bn"),
        ({"tamil": 40}, "ta"),
        ({"telugu": 40}, "te"),
        # Latin words, formulas and code in a text of another script do not take it over ...
        ({"han": 20, "latin": 30}, "zh"),
        ({"han": 20, "latin": 30, "code": 30}, "zh"),
        # ... and a quotation does not take over English.
        ({"latin": 40, "han": 10}, "en"),
        ({"latin": 40, "han": 10, "code": 30}, "code"),
        ({}, "undecided"),
        ({"neutral": 1000}, "undecided"),
        ({"code": 1000}, "undecided"),
        ({"latin": 3}, "undecided"),
        ({"other": 40}, "undecided"),
        ({"other": 40, "latin": 30}, "undecided"),
        ({"han": 20, "hangul": 20}, "undecided"),
        ({"han": 20, "latin": 40}, "undecided"),
    ],
)
def test_decisions(counts: dict[str, float], language: str):
    assert decide(**counts) == language


def test_a_batch_is_decided_row_by_row_in_any_shape_and_number_type():
    states = torch.zeros(2, 3, NUM_SCRIPTS, dtype=torch.int32)
    states[0, 1, Script.LATIN] = 9
    states[1, 2, Script.HAN] = 9
    expected = [[-1, LANGUAGES.index("en"), -1], [-1, -1, LANGUAGES.index("zh")]]
    assert decide_language(states).tolist() == expected
    assert decide_language(states.float()).tolist() == expected


def test_rows_short_of_evidence_keep_what_they_had_and_others_do_not():
    states = torch.zeros(3, NUM_SCRIPTS)
    states[0, Script.NEUTRAL] = 90
    states[1, Script.HAN] = 90
    states[2, Script.OTHER] = 90
    current = torch.full((3,), LANGUAGES.index("ru"))
    assert decide_language(states, current).tolist() == [
        LANGUAGES.index("ru"),
        LANGUAGES.index("zh"),
        UNDECIDED,
    ]


def test_counts_ignore_masked_tokens_and_ids_outside_the_vocabulary():
    ids = torch.tensor([[Script.LATIN, Script.HAN, 10**9], [Script.LATIN, -1, Script.LATIN]])
    valid = torch.tensor([[True, False, True], [True, True, True]])
    counts = count_scripts(TABLE, ids, valid)
    assert counts.shape == (2, NUM_SCRIPTS)
    assert counts[:, Script.LATIN].tolist() == [1, 2]
    assert counts[:, Script.HAN].tolist() == [0, 0]
    assert counts[:, Script.NEUTRAL].tolist() == [1, 1]


@pytest.mark.parametrize(("before", "after", "most"), [("LATIN", "HAN", 24), ("HAN", "LATIN", 60)])
def test_a_switch_is_followed_within_a_few_dozen_tokens(before: str, after: str, most: int):
    state = state_of_prompt(TABLE, torch.full((4000,), int(Script[before])))
    target = LANGUAGES.index("zh" if after == "HAN" else "en")
    new = count_scripts(TABLE, torch.tensor([int(Script[after])]))
    tokens = 0
    while int(decide_language(state)) != target:
        state = advance_state(state, new, 1)
        tokens += 1
    assert 5 < tokens <= most


def test_a_prompt_is_the_same_as_its_tokens_one_by_one():
    ids = torch.randint(0, NUM_SCRIPTS, (150,), generator=torch.Generator().manual_seed(0))
    state = torch.zeros(NUM_SCRIPTS)
    for token in ids:
        state = advance_state(state, count_scripts(TABLE, token[None]), 1)
    torch.testing.assert_close(state_of_prompt(TABLE, ids), state)


def test_rows_may_advance_by_different_numbers_of_tokens():
    state = torch.ones(2, NUM_SCRIPTS)
    moved = advance_state(state, torch.zeros(2, NUM_SCRIPTS), torch.tensor([0, HALF_LIFE]))
    torch.testing.assert_close(moved[:, 0], torch.tensor([1.0, 0.5]))


def as_ids(*runs: tuple[str, int]) -> torch.Tensor:
    return torch.cat([torch.full((length,), int(Script[name])) for name, length in runs])


def test_a_text_is_split_where_its_language_changes():
    ids = as_ids(("LATIN", 320), ("HAN", 320), ("NEUTRAL", 640), ("HANGUL", 320))
    languages = languages_of_text(TABLE, ids)
    assert languages.shape == ids.shape
    names = [LANGUAGES[index] for index in languages.tolist()]
    assert names[:320] == ["en"] * 320
    # Numbers and punctuation belong to the language around them.
    assert names[384:1280] == ["zh"] * (1280 - 384)
    assert names[1312:] == ["ko"] * (len(ids) - 1312)


def test_a_text_is_decided_as_by_advancing_the_state_step_by_step():
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(0, NUM_SCRIPTS, (60,), generator=generator).repeat_interleave(40)
    noise = torch.randint(0, NUM_SCRIPTS, kinds.shape, generator=generator)
    ids = torch.where(torch.rand(kinds.shape, generator=generator) < 0.3, noise, kinds)
    prompt = as_ids(("HANGUL", 90), ("LATIN", 20))
    state = state_of_prompt(TABLE, prompt)
    current = torch.tensor(UNDECIDED)
    expected = []
    for step in ids.split(HALF_LIFE):
        state = advance_state(state, count_scripts(TABLE, step), HALF_LIFE)
        current = decide_language(state, current)
        expected += [int(current)] * len(step)
    assert len(set(expected)) >= 7
    assert languages_of_text(TABLE, ids, prompt).tolist() == expected


def test_the_start_of_a_text_takes_the_first_language_decided():
    languages = languages_of_text(TABLE, as_ids(("NEUTRAL", 100), ("CYRILLIC", 50)))
    assert set(languages.tolist()) == {LANGUAGES.index("ru")}


def test_an_answer_continues_the_language_of_its_prompt():
    prompt = as_ids(("ARABIC", 100))
    languages = languages_of_text(TABLE, as_ids(("NEUTRAL", 20)), prompt)
    assert set(languages.tolist()) == {LANGUAGES.index("ar")}


def test_texts_without_letters_and_empty_texts():
    assert set(languages_of_text(TABLE, as_ids(("NEUTRAL", 70))).tolist()) == {UNDECIDED}
    assert languages_of_text(TABLE, torch.empty(0, dtype=torch.int64)).shape == (0,)
