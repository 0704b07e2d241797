"""`fastmtp data`: what is refused before anything is read or written, and what is reported.

Alone: pytest tests/cli/test_data.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pydantic
import pytest
import rich
from cleaning import sentence
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.distill.prompts import open_prompts
from fastmtp_sglang.distill.tasks import material
from fastmtp_sglang.distill.tasks.kinds import KINDS
from fastmtp_sglang.errors import FastMTPError

# --- clean ---


@pytest.mark.heavy
@pytest.mark.parametrize("flag", ["--output", "the report"])
def test_an_evaluation_is_never_overwritten(clean, make, tmp_path, flag):
    name = "o.jsonl" if flag == "--output" else "o.report.json"
    evaluation = tmp_path / name
    row = {"turns": ["Name a fruit."]}
    evaluation.write_text(json.dumps([row] if name.endswith(".json") else row))
    before = evaluation.read_bytes()
    clean([make(0, sentence(0))], "--model", "smollm2")  # writes in.jsonl
    evaluation.write_bytes(before)
    arguments = ["data", "clean", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o.jsonl")]
    with pytest.raises(FastMTPError, match=rf"^{flag} .*{name}: is also the input"):
        app([*arguments, "--exclude", str(evaluation)], standalone_mode=False)
    assert evaluation.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--weight", "x=1"], "--weight x=1: no record of that source is left; there are a, b"),
        (["--weight", "a=1"], "the source b has none; give b=0"),
        (["--weight", "a=0", "--weight", "b=0"], "all are 0"),
        (["--weight", "a"], "--weight a: must have the form"),
        (["--weight", "a=nan"], "must have the form"),
        (["--weight", "a=1", "--weight", "a=2"], "a is given twice"),
        (["--max-tokens", "3"], "--max-tokens 3: is below --min-tokens 8"),
        (["--max-repetition", "2"], "must be from 0 to 1"),
        (["--threshold", "0"], "above 0"),
        (["--model", "/no/such"], "no such directory"),
        (["--exclude", "/no/such.jsonl"], "--exclude /no/such.jsonl: no such file"),
    ],
)
def test_refusals(clean, make, flags, reason):
    records = [make(0, sentence(0), source="a"), make(0, sentence(1), source="b")]
    with pytest.raises(FastMTPError, match=reason):
        clean(records, *flags)


def test_inputs_and_outputs_that_cannot_be(clean, make, tmp_path):
    good = make(0, sentence(0))
    with pytest.raises(FastMTPError, match=r"in\.jsonl, line 1: answer_ids: field required"):
        clean([{name: good[name] for name in good if name != "answer_ids"}])
    out = str(tmp_path / "o.jsonl")
    cases = [
        ([str(tmp_path / "none"), "--output", out], "none does not exist"),
        ([str(tmp_path), "--output", str(tmp_path / "in.jsonl")], r"is also the input .*in\.jsonl"),
        ([str(tmp_path), "--output", str(tmp_path / "folder")], r"must be a file .* \.jsonl"),
        ([str(tmp_path), "--output", str(tmp_path / "no" / "o.jsonl")], "folder .* does not exist"),
    ]
    for arguments, reason in cases:
        with pytest.raises(FastMTPError, match=reason):
            app(["data", "clean", *arguments], standalone_mode=False)


def test_options_and_inputs_are_in_the_report(clean, make, tmp_path):
    """What a later reader needs to make the same file again."""
    flags = ("--seed", "3", "--no-dedup", "--weight", "p=2", "--total-tokens", "600")
    _, report, output = clean([make(i, sentence(i)) for i in range(3)], *flags)
    assert report["inputs"] == [str(tmp_path / "in.jsonl")]
    options = report["options"]
    assert (options["seed"], options["threshold"], options["weights"]) == (3, None, {"p": 2.0})
    assert options["total_tokens"] == 600
    assert "wrote " in output


def test_target_that_is_not_here(clean, make):
    records = [make(0, sentence(0), model="org/elsewhere")]
    kept, report, output = clean(records)
    assert len(kept) == 1
    assert "languages" not in report
    assert "org/elsewhere is not on this machine" in " ".join(output.split())


# --- prompts ---


def test_prompts_of_the_installed_packages(tmp_path, monkeypatch):
    # All of them take ten seconds to list.
    few = {
        name: str(Path(module.__file__).parent)
        for name, module in (("stdlib", rich), ("purelib", pydantic))
    }
    monkeypatch.setattr(material, "sysconfig", SimpleNamespace(get_paths=lambda: few))
    folder = tmp_path / "prompts"
    kinds = [f"--kind={kind}=0" for kind in KINDS if kind not in {"numbers", "follow_up"}]
    command = ["data", "prompts", "--output", str(folder), "--number", "40", *kinds]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "report.json").read_text())
    assert sum(kind["rows"] for kind in report["kinds"].values()) == 40

    sources = open_prompts([str(folder)])
    assert [source.name for source in sources] == ["follow_up", "numbers"]
    conversations = [list(source.conversations()) for source in sources]
    assert [len(rows) for rows in conversations] == [
        report["kinds"][source.name]["rows"] for source in sources
    ]
    assert all(len(opening.turns) > 1 for opening in conversations[0])

    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, FastMTPError)
    assert "holds files already" in str(result.exception)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--number", "3", "--kind", "sums=1"], "--kind sums=1"),
        (["--number", "3", "--exclude", "/no/such.jsonl"], "--exclude /no/such.jsonl: no such"),
        (["--number", "3", "--texts", "/no/such.jsonl"], r"such\.jsonl does not exist"),
    ],
)
def test_refused_prompts_leave_nothing(tmp_path, flags, reason):
    folder = tmp_path / "prompts"
    with pytest.raises(FastMTPError, match=reason):
        app(["data", "prompts", "--output", str(folder), *flags], standalone_mode=False)
    assert not folder.exists()


def test_a_row_of_an_evaluation_that_cannot_be_read_is_named(tmp_path):
    """It would be missing from what is excluded; a bad first row ends `open_prompts` already."""
    path = tmp_path / "evaluation.jsonl"
    path.write_text('{"prompt": "a"}\n{"x": 1}\n')
    command = ["data", "prompts", "--output", str(tmp_path / "out"), "--number", "3"]
    with pytest.raises(FastMTPError, match=rf"^--exclude .*{path.name}: row 1 has the fields x"):
        app([*command, "--exclude", str(path)], standalone_mode=False)
