"""The whole build: exact and reproducible lists, coverage, report, and agreement with routing.

Run alone: pytest tests/vocabulary/test_builder.py
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.builder import BuildOptions, BuildResult, build
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.languages import (
    LANGUAGES,
    UNDECIDED,
    advance_state,
    count_scripts,
    decide_language,
    state_of_prompt,
)
from fastmtp_sglang.vocabulary.required import required_ids
from fastmtp_sglang.vocabulary.sources import open_source
from fastmtp_sglang.vocabulary.target import Target

pytestmark = pytest.mark.heavy


def write_answers(path: Path, target: Target, texts: dict[str, str], repeat: int = 14) -> Path:
    """Distillation data: every text, as an answer to its own first words.

    Numbered, since equal documents are held out together.
    """
    lines = []
    for text in texts.values():
        ids = target.encode(text)
        for number in range(repeat):
            answer = [*ids, *target.encode(f" {number:02}"), target.vocab_size - 70]
            lines.append(json.dumps({"prompt_ids": ids[:20], "answer_ids": answer}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(tmp_path: Path, tiny: Target, texts: dict[str, str]) -> Callable[..., BuildResult]:
    write_answers(tmp_path / "answers.jsonl", tiny, texts)

    def build_with(
        *specs: str, target: Target = tiny, name: str = "counts", **options
    ) -> BuildResult:
        sources = [
            open_source(spec, target.encode) for spec in specs or [str(tmp_path / "answers.jsonl")]
        ]
        chosen = BuildOptions(**({"candidates": [500, 600], "heldout_share": 0.3} | options))
        return build(
            target, sources, chosen, checkpoint=tmp_path / name, on_progress=lambda counts: None
        )

    return build_with


def test_sizes_are_exact_and_ids_are_below_the_model(run, tiny: Target):
    result = run(sizes={"zh": 520}, size_of_others=510)
    assert {name: len(ids) for name, ids in result.vocabulary.ids.items()} == {
        name: 520 if name == "zh" else 510 for name in result.vocabulary.languages
    }
    assert set(result.vocabulary.languages) == set(LANGUAGES)
    for ids in result.vocabulary.ids.values():
        assert int(ids[-1]) < len(tiny.token_bytes) <= tiny.vocab_size
        assert torch.equal(ids, ids.unique())


def test_everything_that_is_always_included_is_in_every_list(run, tiny: Target):
    classes = required_ids(tiny)
    assert all(classes.values())
    vocabulary = run(size_of_others=len(set().union(*classes.values()))).vocabulary
    for name, required in classes.items():
        for language, ids in vocabulary.ids.items():
            assert required <= set(ids.tolist()), (name, language)


def test_the_frequent_tokens_of_a_language_are_in_its_list(run, tiny: Target, texts):
    vocabulary = run(size_of_others=550).vocabulary
    for language in ("zh", "ru", "code"):
        listed = set(vocabulary.ids[language].tolist())
        assert set(tiny.encode(texts[language])) <= listed, language
        assert vocabulary.coverage[language] == 1.0


def test_the_same_inputs_give_the_same_file(run, tmp_path: Path):
    for name in ("first", "second"):
        run(size_of_others=510, name=name).vocabulary.save(tmp_path / f"{name}.safetensors")
    first, second = (
        (tmp_path / f"{name}.safetensors").read_bytes() for name in ("first", "second")
    )
    assert first == second


def test_the_order_of_documents_and_files_does_not_matter(run, tmp_path: Path):
    """Even where the list is cut between tokens that were counted a few times only."""
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    random.Random(7).shuffle(lines)
    for name, part in (("a", lines[:80]), ("b", lines[80:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    whole, one, other = run(), run(a, b, name="one"), run(b, a, name="other")
    for result in (one, other):
        assert result.report["languages"] == whole.report["languages"]
        for language, ids in whole.vocabulary.ids.items():
            assert torch.equal(result.vocabulary.ids[language], ids)


def test_other_sizes_need_no_counting(run, monkeypatch: pytest.MonkeyPatch):
    run(size_of_others=510)

    def no_reading(*arguments):
        raise AssertionError("the source was read again")

    monkeypatch.setattr(
        "fastmtp_sglang.vocabulary.sources.DistillationSource.documents", no_reading
    )
    assert len(run(size_of_others=600).vocabulary.ids["en"]) == 600


def test_the_file_is_served_with_the_same_model_only(run, tmp_path: Path, tiny: Target, tekken):
    path = tmp_path / "v.safetensors"
    run(size_of_others=510).vocabulary.save(path)
    read = DraftVocabulary.load(
        path, vocab_size=tiny.vocab_size, tokenizer_fingerprint=tiny.fingerprint
    )
    assert read.coverage.keys() == read.ids.keys()
    assert "counted in" in read.source["en"]
    with pytest.raises(FastMTPError, match="for another tokenizer"):
        DraftVocabulary.load(
            path, vocab_size=tiny.vocab_size, tokenizer_fingerprint=tekken.fingerprint
        )


def test_the_report_says_what_was_measured(run):
    report = run(sizes={"en": 600}).report
    json.dumps(report)
    english = report["languages"]["en"]
    assert [row["size"] for row in english["sizes"]] == [500, 600]
    assert english["written"] == 600
    small, large = (row["coverage"] for row in english["sizes"])
    assert 0.5 < small <= large <= 1.0
    assert english["sizes"][0]["head_bytes"] == 500 * 64 * 2
    assert english["curve"][-1] == [697, 1.0]
    assert report["always_included"]["bytes"] == 256
    assert report["tokens"]["counted"]["zh"] > 0
    assert report["tokens"]["held_out"]["zh"] > 0


def test_without_a_size_the_recommended_one_is_written(run):
    result = run(candidates=[500, 690])
    for name, measured in result.report["languages"].items():
        speeds = {row["size"]: row["predicted_speedup"] for row in measured["sizes"]}
        best = max(speeds, key=speeds.get)
        assert measured["recommended"] == (best if speeds[best] > 1 else None)
        assert measured["written"] == measured["recommended"]
        if measured["recommended"] is None:
            assert name not in result.vocabulary.ids
            assert f"{name}: no size is predicted to beat the full vocabulary" in result.notes


def test_languages_can_be_chosen_and_the_rest_is_said(run):
    result = run(languages=["zh", "en"], size_of_others=510)
    assert result.vocabulary.languages == ("en", "zh")
    assert result.vocabulary.routes == {"en": "en", "zh": "zh", "code": "en"}
    notes = "\n".join(result.notes)
    assert "code: " in notes
    assert "no list; drafts from the list of 'en'" in notes
    assert "ru: " in notes
    assert "no list; drafts from the full vocabulary" in notes


def test_code_without_a_list_is_counted_for_english(run, tiny: Target, texts):
    code = set(tiny.encode(texts["code"]))
    merged = run(languages=["en"], size_of_others=650).vocabulary
    assert code <= set(merged.ids["en"].tolist())
    assert int(merged.counts["en"].sum()) > int(
        run(languages=["en", "code"], size_of_others=650).vocabulary.counts["en"].sum()
    )


def test_labels_that_are_never_detected(run, tmp_path: Path, texts):
    (tmp_path / "fr.txt").write_text("Bonjour tout le monde. " * 3000)
    spec = f"fr={tmp_path}/fr.txt"
    alone = run(spec, size_of_others=510)
    assert alone.vocabulary.languages == ("fr",)
    assert alone.vocabulary.routes == {}
    assert any(note.startswith("fr: never detected by script") for note in alone.notes)
    routed = run(spec, size_of_others=510, routes={"en": "fr"})
    assert routed.vocabulary.routes == {"en": "fr", "code": "fr"}
    assert not any("never detected" in note for note in routed.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_of_others": 10}, r"size 10 of 'en': .* alone are \d+ ids"),
        ({"size_of_others": 698}, "size 698 of 'en': the tokenizer has 697 tokens below"),
        ({"sizes": {"fr": 500}}, r"--size fr=\.\.\.: no list of that language is made; there are"),
        ({"languages": ["fr"]}, "--languages fr: no tokens of it were counted"),
        ({"routes": {"fr": "en"}, "size_of_others": 510}, "route from 'fr', which is never"),
        ({"heldout_share": 0.0}, "'en': none of its 14 documents was held out"),
    ],
)
def test_refusals(run, options: dict, message: str):
    with pytest.raises(FastMTPError, match=message):
        run(**options)


def test_a_bare_tokenizer_gets_no_recommendation(run, tiny: Target):
    from dataclasses import replace

    bare = replace(tiny, config={})
    with pytest.raises(FastMTPError, match=r"no size can be recommended\. Choose one with --size"):
        run(target=bare)
    report = run(target=bare, size_of_others=510).report
    assert report["bytes"] is None
    assert report["languages"]["en"]["sizes"][0]["predicted_speedup"] is None
    assert report["languages"]["en"]["written"] == 510


def served_language(vocabulary: DraftVocabulary, prompt: list[int], answer: list[int]) -> list[int]:
    """List index of every answer token as the router has it: 1 to 4 accepted tokens a step."""
    table = vocabulary.token_scripts
    routes = vocabulary.routing_table()
    state = state_of_prompt(table, torch.tensor(prompt))
    current = decide_language(state)
    lists: list[int] = []
    while len(lists) < len(answer):
        accepted = answer[len(lists) : len(lists) + 1 + len(lists) % 4]
        lists += [int(routes[current])] * len(accepted)
        state = advance_state(
            state, count_scripts(table, torch.tensor(accepted)), torch.tensor(len(accepted))
        )
        current = decide_language(state, current)
    return lists


@pytest.mark.parametrize("name", ["tekken", "smollm2_target"])
def test_builder_and_router_agree_on_a_real_tokenizer(
    name: str, tmp_path: Path, texts, request: pytest.FixtureRequest
):
    """Every text is counted for the language whose list its request would draft from."""
    target = request.getfixturevalue(name)
    # SmolLM2 spells several scripts in single bytes, which carry no language.
    covered = ("en", "zh", "ja", "ko", "ru", "ar", "hi", "code")
    chosen = {language: texts[language] for language in covered}
    path = write_answers(tmp_path / "answers.jsonl", target, chosen)
    result = build(
        target,
        [open_source(str(path), target.encode)],
        BuildOptions(candidates=[], size_of_others=4096, heldout_share=0.3),
        checkpoint=tmp_path / "counts",
        on_progress=lambda counts: None,
    )
    vocabulary = result.vocabulary
    assert set(vocabulary.languages) == set(covered)
    for language, text in chosen.items():
        ids = target.encode(text)
        served = served_language(vocabulary, ids, ids)
        own = vocabulary.languages.index(language)
        assert served.count(own) >= 0.9 * len(served), (language, served)
        assert set(ids) <= set(vocabulary.ids[language].tolist()), language
        assert vocabulary.coverage[language] == 1.0


def test_a_request_that_switches_language_is_rerouted(tmp_path: Path, texts, tekken: Target):
    table_source = write_answers(tmp_path / "a.jsonl", tekken, texts)
    vocabulary = build(
        tekken,
        [open_source(str(table_source), tekken.encode)],
        BuildOptions(candidates=[], size_of_others=4096, languages=["en", "zh"]),
        checkpoint=tmp_path / "counts",
        on_progress=lambda counts: None,
    ).vocabulary
    english, chinese = tekken.encode(texts["en"] * 3), tekken.encode(texts["zh"] * 2)
    served = served_language(vocabulary, english, english + chinese + english)
    en, zh = vocabulary.languages.index("en"), vocabulary.languages.index("zh")
    switch, back = len(english), len(english) + len(chinese)
    assert set(served[:switch]) == {en}
    assert served[switch:].index(zh) <= 36
    assert set(served[switch + 36 : back]) == {zh}
    assert served[back:].index(en) <= 72
    assert UNDECIDED not in served[:switch]
    # Korean has no list here: the full vocabulary.
    korean = tekken.encode(texts["ko"])
    assert set(served_language(vocabulary, korean, korean)) == {-1}
