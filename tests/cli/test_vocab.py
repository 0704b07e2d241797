# ruff: noqa: RUF001 - a Chinese comma is meant
"""`fastmtp vocab` as a user runs it.

Run alone: pytest tests/cli/test_vocab.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastmtp_sglang.cli.vocab import app
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.required import required_ids
from fastmtp_sglang.vocabulary.target import Target

HEAVY = ("torch", "transformers", "numpy", "datasets", "safetensors", "matplotlib", "sglang")


def run(*arguments: object) -> str:
    """Run the command; a FastMTPError goes through, as `fastmtp.main` expects it."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def answers(tmp_path: Path, tiny: Target, texts: dict[str, str]) -> Path:
    path = tmp_path / "answers.jsonl"
    lines = [
        json.dumps({"prompt_ids": [], "answer_ids": tiny.encode(f"{texts[language]} {number}")})
        for language in ("en", "zh")
        for number in range(40)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_help_imports_nothing_heavy():
    program = (
        "import sys, fastmtp_sglang.cli.vocab\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_build_show_and_serve(tmp_path: Path, tiny_folder: Path, tiny: Target, answers: Path):
    output = tmp_path / "v.safetensors"
    printed = run(
        "build", answers, "--model", tiny_folder, "--output", output, "--sizes", "500,600,64k",
        "--size", "en=600,zh=500",
    )  # fmt: skip
    assert "note: size 65536: not measured" in printed
    assert f"serve it with --speculative-token-map {output}" in printed
    assert printed.count("recommended") == 2
    vocabulary = DraftVocabulary.load(
        output, vocab_size=tiny.vocab_size, tokenizer_fingerprint=tiny.fingerprint
    )
    assert {name: len(ids) for name, ids in vocabulary.ids.items()} == {"en": 600, "zh": 500}
    report = json.loads((tmp_path / "v.report.json").read_text())
    assert report["languages"]["zh"]["written"] == 500
    assert (tmp_path / "v.report.png").read_bytes().startswith(b"\x89PNG")

    shown = run("show", output, "--tokens", 300)
    assert "for 760 rows of head" in shown
    assert tiny.fingerprint in shown
    assert "100.00 %" in shown
    assert "shared ids" in shown
    together = {index for ids in vocabulary.ids.values() for index in ids.tolist()}
    assert f"all lists together: {len(together)} ids" in shown
    assert "en, 300 tokens:" in shown
    assert '"\\n"' in shown
    assert '"，' in shown


def test_own_tokens_are_turned_on_and_off(tmp_path: Path, tiny_folder: Path, answers: Path):
    built, changed = tmp_path / "v.safetensors", tmp_path / "w.safetensors"
    printed = run(
        "build", answers, "--model", tiny_folder, "--output", built, "--size", "500",
        "--own-tokens", "64", "--no-plot",
    )  # fmt: skip
    assert "own tokens of a request: up to 64" in printed
    shown = run("set", built, "--own-tokens", "0", "--output", changed)
    assert "own tokens of a request: not drafted from" in shown
    before, after = (
        DraftVocabulary.load(path, vocab_size=None, tokenizer_fingerprint=None)
        for path in (built, changed)
    )
    assert (before.own_tokens, after.own_tokens) == (64, 0)
    assert before.own_coverage == after.own_coverage
    assert before.own_coverage.keys() == before.coverage.keys()
    for name, ids in before.ids.items():
        assert torch.equal(after.ids[name], ids)
    with pytest.raises(FastMTPError, match=r"--own-tokens 65: must be one of 0, 64, 128, 256"):
        run("set", built, "--own-tokens", "65", "--output", changed)


def test_build_without_a_plot_or_with_other_reports(tmp_path, tiny_folder, answers: Path):
    run(
        "build", answers, "--model", tiny_folder, "--output", tmp_path / "v.safetensors",
        "--size", "500", "--no-plot", "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert (tmp_path / "r.json").is_file()
    assert not list(tmp_path.glob("*.png"))


def test_restart_counts_again(tmp_path: Path, tiny_folder: Path, answers: Path):
    arguments = ["build", answers, "--model", tiny_folder, "--output", tmp_path / "v.safetensors"]
    arguments += ["--size", "500", "--no-plot"]
    run(*arguments)
    with pytest.raises(FastMTPError, match="--restart"):
        run(*arguments, "--heldout", "0.2")
    run(*arguments, "--heldout", "0.2", "--restart")


def test_import(tmp_path: Path, tiny_folder: Path, tiny: Target):
    torch.save([5, 300, 17], tmp_path / "en.pt")
    torch.save(torch.tensor([5, 17, 400]), tmp_path / "zh.pt")
    output = tmp_path / "v.safetensors"
    lists = [f"en={tmp_path}/en.pt", f"zh={tmp_path}/zh.pt"]
    printed = run("import", *lists, "--model", tiny_folder, "--output", output)
    vocabulary = DraftVocabulary.load(
        output, vocab_size=tiny.vocab_size, tokenizer_fingerprint=tiny.fingerprint
    )
    assert vocabulary.ids["en"].tolist() == [5, 17, 300]
    assert vocabulary.ids["zh"].tolist() == [5, 17, 400]
    assert vocabulary.source["en"] == "imported from en.pt"
    assert vocabulary.routes == {"en": "en", "zh": "zh", "code": "en"}
    assert not vocabulary.coverage
    assert "2 stop tokens among them; --complete adds them" in printed
    assert "not measured" in run("show", output)

    run("import", *lists, "--model", tiny_folder, "--output", output, "--complete")
    completed = DraftVocabulary.load(
        output, vocab_size=tiny.vocab_size, tokenizer_fingerprint=tiny.fingerprint
    )
    required = set().union(*required_ids(tiny).values())
    assert set(completed.ids["en"].tolist()) == required | {5, 17, 300}
    assert completed.source["en"] == "imported from en.pt, completed"


@pytest.mark.heavy
def test_import_for_the_embedded_model(tmp_path: Path, smollm2_target: Target):
    torch.save(list(range(4096)), tmp_path / "en.pt")
    output = tmp_path / "v.safetensors"
    run("import", f"en={tmp_path}/en.pt", "--model", "smollm2", "--output", output)
    read = DraftVocabulary.load(
        output, vocab_size=49152, tokenizer_fingerprint=smollm2_target.fingerprint
    )
    assert len(read.ids["en"]) == 4096


def test_import_refuses_ids_of_a_larger_model(tmp_path: Path, tiny_folder: Path):
    torch.save([5, 760], tmp_path / "en.pt")
    with pytest.raises(FastMTPError, match="holds id 760, but the target has 760 rows"):
        run(
            "import", f"en={tmp_path}/en.pt", "--model", tiny_folder, "--output", tmp_path / "v",
        )  # fmt: skip
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "en.pt", "--model", "M", "--output", "v"], "LANG=FILE en.pt: must have"),
        (["import", "en=a", "en=b", "--model", "M", "--output", "v"], "'en' is given twice"),
        (["import", "en=a", "--model", "M", "--output", "v"], "--model M: no such directory"),
        (["import", "en=a", "--model", "M", "--output", "no/v"], "the folder no does not exist"),
        (["show", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["build", "a", "--model", "M", "--output", "no/v"], "the folder no does not exist"),
        (["build", "a", "--model", "M", "--output", "v", "--sizes", "8q"], "--sizes 8q: must be"),
        (["build", "a", "--model", "M", "--output", "v", "--size", "0"], "--size 0: must be"),
        (["build", "a", "--model", "M", "--output", "v", "--size", "en=,zh=1"], "--size en=: must"),
        (["build", "a", "--model", "M", "--output", "v", "--heldout", "1"], "--heldout 1.0: must"),
        (["build", "a", "--model", "M", "--output", "v", "--route", "en"], "--route en: must have"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FastMTPError, match=message):
        run(*arguments)
