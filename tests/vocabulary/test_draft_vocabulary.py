"""The vocabulary file: what it keeps, and everything that it refuses.

Run alone: pytest tests/vocabulary/test_draft_vocabulary.py
"""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.languages import LANGUAGES, UNDECIDED, decide_language
from fastmtp_sglang.vocabulary.scripts import Script

VOCAB_SIZE = 100
FINGERPRINT = "sha256:" + "a" * 64


def make(**changes) -> DraftVocabulary:
    fields = {
        "vocab_size": VOCAB_SIZE,
        "tokenizer_fingerprint": FINGERPRINT,
        "ids": {"en": torch.arange(0, 50, 2), "zh": torch.tensor([0, 1, 99])},
        "token_scripts": torch.zeros(VOCAB_SIZE, dtype=torch.int8),
        "routes": {"en": "en", "zh": "zh", "code": "en"},
        "source": {"en": "counted", "zh": "imported from zh.pt"},
        "counts": {"en": torch.arange(25)},
        "coverage": {"en": 0.975},
        "samples": {"en": [" the", "\n", "é"]},
        "own_tokens": 128,
        "own_coverage": {"en": 0.99},
    }
    return DraftVocabulary(**(fields | changes))


def load(path: Path, vocab_size: int | None = VOCAB_SIZE, fingerprint: str | None = FINGERPRINT):
    return DraftVocabulary.load(path, vocab_size=vocab_size, tokenizer_fingerprint=fingerprint)


def write_raw(path: Path, ids: torch.Tensor, drop: str = "", **metadata: str) -> Path:
    """Write a file as a careless tool would: right header, any ids."""
    header = {
        "format": "fastmtp-draft-vocabulary",
        "format_version": "1",
        "vocab_size": str(VOCAB_SIZE),
        "tokenizer_fingerprint": FINGERPRINT,
        "languages": '["en"]',
        "scripts": '["NEUTRAL"]',
        "routes": '{"en": "en"}',
        "source": "{}",
        "coverage": "{}",
        "samples": "{}",
    } | metadata
    header.pop(drop, None)
    table = torch.zeros(VOCAB_SIZE, dtype=torch.int8)
    save_file({"ids.en": ids, "token_scripts": table}, path, metadata=header)
    return path


def test_everything_survives_the_file(tmp_path: Path):
    written = make()
    written.save(tmp_path / "v.safetensors")
    read = load(tmp_path / "v.safetensors")
    assert read.languages == ("en", "zh")
    for language in ("en", "zh"):
        assert torch.equal(read.ids[language], written.ids[language])
        assert read.ids[language].dtype == torch.int64
    assert torch.equal(read.counts["en"], torch.arange(25))
    assert "zh" not in read.counts
    for name in (
        *("vocab_size", "tokenizer_fingerprint", "routes", "source", "coverage", "samples"),
        *("own_tokens", "own_coverage"),
    ):
        assert getattr(read, name) == getattr(written, name)
    assert torch.equal(read.token_scripts, written.token_scripts)
    assert read.origin == str(tmp_path / "v.safetensors")
    assert os.listdir(tmp_path) == ["v.safetensors"]


def test_the_raw_writer_of_these_tests_writes_a_readable_file(tmp_path: Path):
    """Otherwise every refusal below could be for another reason than its own."""
    assert load(write_raw(tmp_path / "v.safetensors", torch.tensor([3, 5]))).languages == ("en",)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([3, 100]), r"'en': holds id 100, but the target has 100 rows"),
        (torch.tensor([3, 10**9]), r"'en': holds id 1000000000"),
        (torch.tensor([3, 3, 7]), r"'en': holds 1 ids more than once, the first of them 3"),
        (torch.tensor([-1, 3]), r"'en': holds the negative id -1"),
        (torch.tensor([3.0, 4.0]), r"'en': holds torch.float32 values"),
        (torch.tensor([3.5], dtype=torch.bfloat16), r"'en': holds torch.bfloat16 values"),
        (torch.tensor([True, False]), r"'en': holds booleans, which look like a mask"),
        (torch.tensor([[3], [4]]), r"'en': has shape \[2, 1\]"),
        (torch.tensor(3), r"'en': has shape \[\]"),
        (torch.tensor([], dtype=torch.int64), r"'en': holds no ids"),
        (torch.tensor([5, 3]), r"'en': ids must be int64 in ascending order"),
    ],
)
def test_bad_ids_are_refused(tmp_path: Path, ids: torch.Tensor, message: str):
    path = write_raw(tmp_path / "v.safetensors", ids)
    with pytest.raises(FastMTPError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    with pytest.raises(FastMTPError, match=message):
        make(ids={"en": ids}, routes={}, counts={}, coverage={})


def test_another_tokenizer_is_refused(tmp_path: Path):
    make().save(tmp_path / "v.safetensors")
    with pytest.raises(FastMTPError, match="made for another tokenizer") as error:
        load(tmp_path / "v.safetensors", fingerprint="sha256:" + "b" * 64)
    assert "--model" in str(error.value)


def test_another_vocabulary_size_is_refused(tmp_path: Path):
    make().save(tmp_path / "v.safetensors")
    with pytest.raises(
        FastMTPError, match="target with 100 rows in its head, but this one has 128"
    ):
        load(tmp_path / "v.safetensors", vocab_size=128)


def test_a_file_can_be_looked_at_without_a_target(tmp_path: Path):
    make().save(tmp_path / "v.safetensors")
    assert load(tmp_path / "v.safetensors", None, None).vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("version", ["0", "2", "1.0", "x"])
def test_unknown_versions_are_refused(tmp_path: Path, version: str):
    path = write_raw(tmp_path / "v.safetensors", torch.tensor([3]), format_version=version)
    with pytest.raises(FastMTPError, match=f"format version {version}; this release reads 1"):
        load(path)


def test_a_missing_file_is_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*arguments, **options):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    for path in ("thunlp/fr-spec/freq_32768.pt", str(tmp_path / "missing.safetensors")):
        with pytest.raises(FastMTPError, match=r"no such file.*never downloaded"):
            load(path)


def test_a_pickle_is_refused_and_told_how_to_import(tmp_path: Path):
    path = tmp_path / "freq.pt"
    torch.save([1, 2, 3], path)
    with pytest.raises(FastMTPError, match=f"fastmtp vocab import en={path}"):
        load(path)


def test_a_pickle_is_not_run(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "freq.pt"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(FastMTPError, match="pickle"):
        load(path)
    assert not (tmp_path / "pwned").exists()


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "v.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(FastMTPError, match="not a safetensors file"):
        load(tmp_path / "v.safetensors")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(FastMTPError, match="not a draft vocabulary"):
        load(tmp_path / "model.safetensors")
    with pytest.raises(FastMTPError, match="no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "missing", ["vocab_size", "tokenizer_fingerprint", "languages", "routes", "coverage"]
)
def test_an_incomplete_header_is_refused(tmp_path: Path, missing: str):
    path = write_raw(tmp_path / "v.safetensors", torch.tensor([3]), drop=missing)
    with pytest.raises(FastMTPError, match=f"damaged, it lacks or garbles '{missing}'"):
        load(path)


@pytest.mark.parametrize("languages", ['["en", "zh"]', '["en", "en"]', "[]", '["zh"]'])
def test_languages_that_do_not_match_the_lists_are_refused(tmp_path: Path, languages: str):
    path = write_raw(tmp_path / "v.safetensors", torch.tensor([3]), languages=languages)
    with pytest.raises(FastMTPError, match="damaged"):
        load(path)


def test_a_file_with_other_script_numbers_is_refused(tmp_path: Path):
    path = write_raw(tmp_path / "v.safetensors", torch.tensor([3]), scripts='["LATIN"]')
    with pytest.raises(FastMTPError, match="numbers the scripts in another way"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": {}}, "lists no language"),
        ({"ids": {"EN": torch.tensor([1])}}, "'EN' is no language name"),
        ({"ids": {f"l{i}": torch.tensor([1]) for i in range(31)}}, "31 languages, at most 30"),
        ({"ids": {"full": torch.tensor([1])}}, "name of the full vocabulary"),
        (
            {"token_scripts": torch.zeros(99, dtype=torch.int8)},
            r"token_scripts is torch.int8 \[99\]",
        ),
        ({"token_scripts": torch.zeros(VOCAB_SIZE)}, r"token_scripts is torch.float32 \[100\]"),
        ({"token_scripts": torch.full((VOCAB_SIZE,), 99, dtype=torch.int8)}, "no script of this"),
        ({"routes": {"fr": "en"}}, "route from 'fr', which is never detected"),
        ({"routes": {"ja": "ja"}}, "route from 'ja' to 'ja', which has no list"),
        ({"counts": {"en": torch.arange(3)}}, "counts of 'en' must be int64 and match"),
        ({"coverage": {"en": 97.5}}, "coverage 97.5 of 'en' is not a share"),
        ({"own_coverage": {"ja": 0.5}}, "coverage 0.5 of 'ja' is not a share"),
        ({"own_tokens": 100}, "own_tokens is 100; it must be one of 0, 64, 128, 256"),
        ({"own_tokens": True}, "own_tokens is True; it must be one of"),
    ],
)
def test_inconsistent_contents_are_refused(changes: dict, message: str):
    with pytest.raises(FastMTPError, match=message):
        make(**changes)


def test_a_file_of_an_older_release_has_no_own_tokens(tmp_path: Path):
    read = load(write_raw(tmp_path / "v.safetensors", torch.arange(5, dtype=torch.int32)))
    assert (read.own_tokens, read.own_coverage) == (0, {})


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "v.safetensors"
    make().save(path)
    before = path.read_bytes()

    def power_cut(descriptor: int):
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        make(coverage={"en": 0.1}).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["v.safetensors"]
    with pytest.raises(FastMTPError, match=r"folder .* does not exist"):
        make().save(tmp_path / "nowhere" / "v.safetensors")


def test_routes_lead_from_a_decision_to_a_list():
    table = make().routing_table()
    states = torch.zeros(4, len(Script))
    states[0, Script.LATIN] = 50
    states[1, Script.HAN] = 50
    states[2, Script.HANGUL] = 50
    decided = decide_language(states)
    assert decided.tolist() == [*(LANGUAGES.index(name) for name in ("en", "zh", "ko")), UNDECIDED]
    assert table[decided].tolist() == [0, 1, -1, -1]


def test_code_shares_the_english_list_unless_it_has_its_own():
    assert default_routes(["en", "zh"]) == {"en": "en", "zh": "zh", "code": "en"}
    assert default_routes(["code", "en"]) == {"en": "en", "code": "code"}
    assert default_routes(["fr"]) == {}
