"""SGLang's checks by name know FASTMTP, and nothing else by our doing.

Alone: pytest tests/serving/test_eagle_checks.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups import lora_hook, validation_hook

from fastmtp_sglang.serving import eagle_checks


@pytest.fixture
def check(monkeypatch):
    """The check, of arguments that are resolved already; undone after the test."""
    stock = lora_hook.check_lora_speculative_compatibility
    stock = getattr(stock, "__wrapped__", stock)
    monkeypatch.setattr(lora_hook, "check_lora_speculative_compatibility", stock)
    monkeypatch.setattr(lora_hook, "resolving_view", lambda server_args: server_args)
    eagle_checks.install_for_adapters()
    installed = lora_hook.check_lora_speculative_compatibility
    eagle_checks.install_for_adapters()
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


def test_pipelines_go_with_the_family():
    """The check is SGLang's, which pytest's process has patched or not."""
    check = validation_hook.check_pipeline_parallel_compat
    check = getattr(check, "__wrapped__", check)
    fields = {"disable_overlap_schedule": True, "enable_multi_layer_eagle": False}
    (given,), named = eagle_checks.before_check(arguments("fastmtp", **fields))
    assert (given.speculative_algorithm, named) == ("EAGLE", {})
    assert given.disable_overlap_schedule
    for name in ("NGRAM", "FASTMTP"):
        with pytest.raises(AssertionError, match="only supports EAGLE"):
            check(arguments(name, **fields))
    for name in ("NGRAM", "EAGLE", None):
        others = arguments(name, **fields)
        assert eagle_checks.before_check(others) == ((others,), {})
