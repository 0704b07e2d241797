"""The algorithm as SGLang sees it after `plugin.register`.

Alone: pytest tests/serving/test_plugin.py
"""

import logging

import pytest
from sglang.srt.speculative import spec_registry
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from fastmtp_sglang.contract import compat, identity
from fastmtp_sglang.contract.hooks import Hook
from fastmtp_sglang.serving import plugin


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


def test_registering_again_changes_and_says_nothing(algorithm, registry, caplog):
    with caplog.at_level(logging.INFO, logger="fastmtp_sglang"):
        plugin.register()
    assert registry == {"FASTMTP": algorithm}
    assert caplog.records == []


def test_the_config_is_known_to_transformers(algorithm):
    from transformers import AutoConfig

    config = AutoConfig.for_model("fastmtp")
    assert type(config).__name__ == "FastMTPConfig"


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


@pytest.mark.parametrize(
    ("hook", "found"),
    [
        (Hook("call", "sglang.srt.nowhere:f", ""), "the module is missing"),
        (Hook("call", "sglang.srt.speculative.spec_registry:gone", ""), "missing"),
        (Hook("call", "sglang.srt.speculative.spec_registry:get_spec", "nom"), "now takes (name)"),
        (
            Hook("call", "sglang.srt.speculative.spec_registry:CustomSpecAlgo", ""),
            "no longer a function",
        ),
    ],
)
def test_mismatch_is_named_and_nothing_is_registered(monkeypatch, registry, caplog, hook, found):
    monkeypatch.setattr(compat, "HOOKS", (hook,))
    plugin.register()
    assert registry == {}
    with pytest.raises(ValueError, match="Unknown speculative algorithm name: fastmtp"):
        SpeculativeAlgorithm.from_string("fastmtp")
    assert SpeculativeAlgorithm.from_string("EAGLE").is_eagle()
    message = caplog.text
    assert "does not know SGLang 0.5." in message
    assert hook.path in message
    assert found in message
    assert "pip install" in message
