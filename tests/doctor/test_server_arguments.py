"""`fastmtp doctor -- FLAGS`: what a server would refuse, all at once, before one starts.

Alone: pytest tests/doctor/test_server_arguments.py
"""

import json
import subprocess
from types import SimpleNamespace

import pytest
import tiny_models as models

from fastmtp_sglang.doctor import diagnosis, server_arguments


def test_all_that_is_refused(monkeypatch):
    messages = ["--x 1 is not. Remove it.", "no reason"]
    printed = f"INFO loading\n{server_arguments._MARK}{json.dumps(messages)}\n"
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout=printed, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    findings = list(diagnosis.server_arguments(["--x", "1"]))
    assert [(f.found, f.fix) for f in findings] == [
        ("--x 1 is not", "Remove it."),
        ("refused", "no reason"),
    ]
    assert asked[0][-2:] == ["--x", "1"]


def test_flags_that_nobody_knows(monkeypatch):
    said = SimpleNamespace(stdout="", stderr="usage: ...\nerror: unrecognized arguments: --x\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    (finding,) = diagnosis.server_arguments(["--x"])
    assert finding.found == "error: unrecognized arguments: --x"
    assert finding.fix == "`sglang serve --help` lists the flags."


@pytest.mark.heavy
def test_a_server_for_real(tmp_path):
    model = ["--model-path", str(models.target(tmp_path / "model"))]
    fast = [*model, "--speculative-algorithm", "fastmtp"]
    assert server_arguments.check(model) == []
    flags = ["--enable-multi-layer-eagle", "--is-embedding"]
    refused = server_arguments.check([*fast, *reversed(flags)])
    # In the order of the table.
    assert [message.split()[0] for message in refused] == flags
