"""What `fastmtp doctor` looks at, in which order, and what it leaves out.

Each check, with what it finds wrong, is simulated in test_diagnosis_checks.py.
Alone: pytest tests/doctor/test_diagnosis.py
"""

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch

from fastmtp_sglang.doctor import diagnosis, server_arguments
from fastmtp_sglang.doctor.diagnosis import Finding
from fastmtp_sglang.models import catalog

CHECKS = ("versions", "hooks", "installation", "whitelist", "platform_choice", "device")


@pytest.fixture
def asked(monkeypatch) -> list:
    """What was looked at, and with which arguments; nothing is wrong."""
    seen: list = []

    def check(name, *arguments):
        seen.append((name, *arguments))
        return Finding(name, "well")

    for name in (*CHECKS, "model_and_head", "server_arguments"):
        monkeypatch.setattr(
            diagnosis, name, lambda *arguments, name=name: iter([check(name, *arguments)])
        )
    monkeypatch.setattr(diagnosis, "registration", lambda: check("registration"))
    monkeypatch.setattr(diagnosis, "built_in_model", lambda model: check(model.name))
    return seen


def test_the_way_of_a_server_start(asked):
    found = list(diagnosis.diagnose())
    names = [*CHECKS, "registration", *catalog.MODELS]
    assert asked == [(name,) for name in names]
    assert [finding.name for finding in found] == names


def test_a_model_and_a_server_are_looked_at_where_they_are_given(asked):
    list(diagnosis.diagnose("m", "d", "v", ["--x"]))
    assert asked[-2:] == [("model_and_head", "m", "d", "v"), ("server_arguments", ["--x"])]


@pytest.mark.parametrize("check", CHECKS)
def test_after_a_problem_no_registration_is_tried(asked, monkeypatch, check):
    """It would only repeat what is known; everything else is still looked at."""
    problem = Finding(check, "bad", fix="mend it")
    monkeypatch.setattr(diagnosis, check, lambda: iter([Finding(check, "fine"), problem]))
    found = list(diagnosis.diagnose("m"))
    assert problem in found
    assert "registration" not in [finding.name for finding in found]
    assert [finding.name for finding in found][-2:] == [
        [*catalog.MODELS][-1],
        "model_and_head",
    ]


def test_arguments_that_a_server_takes(monkeypatch):
    monkeypatch.setattr(server_arguments, "check", lambda arguments: [])
    (finding,) = diagnosis.server_arguments(["--tp", "2"])
    assert finding == Finding("sglang serve", "takes --tp 2")


def test_an_entry_point_of_no_distribution(monkeypatch):
    """As `sys.path` may have one: there is no name to uninstall it by."""
    both = [SimpleNamespace(name="fastmtp", dist=None), SimpleNamespace(name="other", dist=None)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: both)
    plugin, platform = diagnosis.installation()
    assert "has it from ?" in plugin.found
    assert platform.found == "missing in sglang.srt.platforms"


@pytest.mark.parametrize(
    ("kind", "module", "said"),
    [
        ("cuda", SimpleNamespace(get_device_name=lambda: "H200"), "cuda (H200)"),
        ("npu", SimpleNamespace(), "npu"),
        ("xyz", None, "xyz"),
    ],
)
def test_the_name_of_an_accelerator(monkeypatch, kind, module, said):
    """Not every backend of torch tells one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind)
    if module is not None:
        monkeypatch.setattr(torch, kind, module, raising=False)
    assert diagnosis._accelerator() == said
    (finding,) = diagnosis.device()
    assert finding == Finding("device", f"{said}; platform: SGLang's own")
