"""SGLang's check of what goes with adapters knows FASTMTP, and nothing else by our doing.

Alone: pytest tests/serving/test_lora.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups import lora_hook

from fastmtp_sglang.serving import lora


@pytest.fixture
def check(monkeypatch):
    """The check, of arguments that are resolved already; undone after the test."""
    stock = lora_hook.check_lora_speculative_compatibility
    stock = getattr(stock, "__wrapped__", stock)
    monkeypatch.setattr(lora_hook, "check_lora_speculative_compatibility", stock)
    monkeypatch.setattr(lora_hook, "resolving_view", lambda server_args: server_args)
    lora.install()
    installed = lora_hook.check_lora_speculative_compatibility
    lora.install()
    assert lora_hook.check_lora_speculative_compatibility is installed
    return installed


def arguments(algorithm: str | None, **changes) -> SimpleNamespace:
    values = {
        "speculative_adaptive": False,
        "moe_runner_backend": "auto",
        "speculative_moe_runner_backend": None,
    }
    return SimpleNamespace(speculative_algorithm=algorithm, **values | changes)


@pytest.mark.parametrize("algorithm", ["FASTMTP", "fastmtp", "EAGLE", "NGRAM", None])
def test_what_passes(check, algorithm):
    check(arguments(algorithm))


def test_what_eagle_refuses(check):
    with pytest.raises(ValueError, match="does not support --speculative-adaptive"):
        check(arguments("FASTMTP", speculative_adaptive=True))
    # And the view is SGLang's again.
    check(arguments("FASTMTP"))


def test_other_algorithms_are_sglangs_affair(check):
    with pytest.raises(ValueError, match="not STANDALONE"):
        check(arguments("STANDALONE"))
