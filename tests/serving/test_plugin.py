"""The algorithm as SGLang sees it after `plugin.register`.

Alone: pytest tests/serving/test_plugin.py
"""

import ast
import inspect
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import sglang
import torch
from sglang.srt.speculative import spec_registry
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from fastmtp_sglang.contract import identity
from fastmtp_sglang.serving import algorithm as algorithm_module
from fastmtp_sglang.serving import plugin

SGLANG = Path(sglang.__file__).parent


@pytest.fixture
def registry(monkeypatch) -> dict:
    """SGLang's registry of algorithms, empty; the old one returns after the test."""
    monkeypatch.setattr(spec_registry, "_REGISTRY", {})
    return spec_registry._REGISTRY


@pytest.fixture
def algorithm(registry):
    plugin.register()
    return SpeculativeAlgorithm.from_string("fastmtp")


def test_registration(registry, caplog, monkeypatch):
    monkeypatch.setattr(identity, "_announced", False)
    with caplog.at_level(logging.INFO, logger="fastmtp_sglang"):
        plugin.register()
    assert list(registry) == ["FASTMTP"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "registered --speculative-algorithm fastmtp" in line


def test_the_line_waits_for_a_log_that_shows_it(algorithm, caplog, monkeypatch):
    """SGLang loads plugins before it configures logging."""
    monkeypatch.setattr(identity, "_announced", False)
    with caplog.at_level(logging.WARNING, logger="fastmtp_sglang"):
        identity.announce()
    assert caplog.records == []
    with caplog.at_level(logging.INFO, logger="fastmtp_sglang"):
        identity.announce()
        identity.announce()
    assert len(caplog.records) == 1


def test_registering_again_changes_and_says_nothing(algorithm, registry, caplog):
    with caplog.at_level(logging.INFO, logger="fastmtp_sglang"):
        plugin.register()
    assert registry == {"FASTMTP": algorithm}
    assert caplog.records == []


def test_the_config_is_known_to_transformers(algorithm):
    from transformers import AutoConfig

    config = AutoConfig.for_model("fastmtp")
    assert type(config).__name__ == "FastMTPConfig"


@pytest.mark.parametrize("name", ["fastmtp", "FASTMTP", "FastMTP"])
def test_any_spelling_of_the_name(algorithm, name):
    assert SpeculativeAlgorithm.from_string(name) is algorithm


def test_a_member_of_the_eagle_family():
    """Each predicate of SGLang's enum: as EAGLE answers, since it is served the same way."""
    ours = algorithm_module.FastMTPAlgorithm("FASTMTP", lambda server_args: None)
    predicates = [
        name
        for name, value in vars(SpeculativeAlgorithm).items()
        if inspect.isfunction(value)
        and name.startswith(("is_", "supports_", "has_", "need_", "carries_"))
    ]
    assert len(predicates) >= 18
    answers = {name: getattr(ours, name)() for name in predicates}
    assert answers == {name: getattr(SpeculativeAlgorithm.EAGLE, name)() for name in predicates}


# --- every method that SGLang calls is there ---


def test_nothing_of_the_builtin_algorithms_is_missing():
    """`CustomSpecAlgo` itself lacks four of these methods in 0.5.23."""
    members = {name for name, value in vars(SpeculativeAlgorithm).items() if callable(value)}
    methods = {name for name in members if not name.startswith("_")} - {"from_string", "register"}
    assert {"create_future_map", "need_topk", "is_eagle"} <= methods
    assert not methods - set(dir(algorithm_module.FastMTPAlgorithm))
    assert methods - set(dir(CustomSpecAlgo)), "the base class has become complete"


# What holds an algorithm in SGLang's code.
_HOLDERS = {"spec_algorithm", "spec_algo", "speculative_algorithm"}


def called_on_an_algorithm() -> set[str]:
    """Names of the methods that SGLang calls on `x.spec_algorithm` and the like."""
    names = set()
    for path in (SGLANG / "srt").rglob("*.py"):
        source = path.read_text()
        if not any(holder in source for holder in _HOLDERS):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = getattr(owner, "attr", None) or getattr(owner, "id", None)
                if name in _HOLDERS:
                    names.add(node.func.attr)
    # `server_args.speculative_algorithm` is a string.
    return names - set(dir(str))


def test_whatever_sglang_calls_on_an_algorithm_exists():
    called = called_on_an_algorithm()
    assert {"is_eagle", "create_worker", "create_future_map", "need_topk"} <= called
    assert not called - set(dir(algorithm_module.FastMTPAlgorithm))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(algorithm_module.FastMTPAlgorithm).items()
        if inspect.isfunction(value) and name in vars(SpeculativeAlgorithm)
    ],
)
def test_methods_take_what_the_builtin_ones_take(name):
    ours = inspect.signature(getattr(algorithm_module.FastMTPAlgorithm, name)).parameters
    theirs = inspect.signature(getattr(SpeculativeAlgorithm, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_the_future_map_relays_draft_state():
    from sglang.srt.managers.overlap_utils import FutureMap

    ours = algorithm_module.FastMTPAlgorithm("FASTMTP", lambda server_args: None)
    pool = SimpleNamespace(size=4, req_to_token=torch.zeros(5, 8, dtype=torch.int32))
    relay = ours.create_future_map("cpu", pool, needs_cpu_seq_lens=False)
    assert type(relay) is FutureMap
    assert relay.spec_algo is ours


# --- the worker factory ---


def test_the_factory_registers_models_and_gives_our_worker(monkeypatch):
    from sglang.srt.models.registry import ModelRegistry

    from fastmtp_sglang.serving.cpu import ops
    from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
    from fastmtp_sglang.serving.drafting.native_head import MiMoMTP
    from fastmtp_sglang.serving.worker import FastMTPDraftWorker, FastMTPWorker

    installed = []
    monkeypatch.setattr(ops, "install", lambda: installed.append(True))
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    assert algorithm_module.worker_class(None) is FastMTPWorker
    assert ModelRegistry.models["FastMTPHead"] is FastMTPHead
    assert ModelRegistry.models["MiMoMTP"] is MiMoMTP
    assert installed == ([] if torch.accelerator.is_available() else [True])

    # The base class takes its draft worker from a global: ours, and SGLang's again afterwards.
    from sglang.srt.speculative import eagle_worker_v2

    stock = eagle_worker_v2.EagleDraftWorker
    seen = []

    def construct(self, **kwargs):
        seen.append((eagle_worker_v2.EagleDraftWorker, kwargs))
        raise OSError("no weights here")

    monkeypatch.setattr(eagle_worker_v2.EAGLEWorkerV2, "__init__", construct)
    with pytest.raises(OSError, match="no weights"):
        FastMTPWorker(gpu_id=0)
    assert seen == [(FastMTPDraftWorker, {"gpu_id": 0})]
    assert eagle_worker_v2.EagleDraftWorker is stock


# --- SGLang's whitelist ---


def test_a_whitelist_without_us_registers_nothing():
    """SGLANG_PLUGINS restricts general plugins and platforms alike; SGLang loads in full."""
    script = """
        import json
        from sglang.srt.plugins import load_plugins
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        load_plugins()
        try:
            answer = repr(SpeculativeAlgorithm.from_string("fastmtp"))
        except ValueError as error:
            answer = str(error)
        print(json.dumps(answer))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "SGLANG_PLUGINS": "another_plugin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer == "Unknown speculative algorithm name: fastmtp"


@pytest.mark.parametrize(
    ("whitelist", "loaded"),
    [("another_plugin", False), ("fastmtp", True), ("another_plugin, fastmtp", True), ("", True)],
)
def test_the_whitelist_names_us_by_our_entry_point(monkeypatch, whitelist, loaded):
    from sglang.srt.plugins import GENERAL_PLUGINS_GROUP, load_plugins_by_group

    monkeypatch.setenv("SGLANG_PLUGINS", whitelist)
    found = load_plugins_by_group(GENERAL_PLUGINS_GROUP)
    if loaded:
        function, distribution = found["fastmtp"]
        assert function is plugin.register
        assert distribution == "fastmtp-sglang"
    else:
        assert "fastmtp" not in found
