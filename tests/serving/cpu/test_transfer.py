"""Nodes without a GPU hand keys and values on.

Alone: pytest tests/serving/cpu/test_transfer.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender
from sglang.srt.environ import envs

from fastmtp_sglang.serving.cpu import transfer


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [("decode", None, "cpu_tensor"), ("decode", "none", "none"), ("prefill", None, None)],
)
def test_what_is_retracted_is_kept_without_a_gpu(mode, given, expected):
    arguments = SimpleNamespace(
        disaggregation_mode=mode, disaggregation_decode_retraction_backup=given
    )
    transfer.choose_defaults(arguments)
    assert arguments.disaggregation_decode_retraction_backup == expected


@pytest.mark.parametrize(
    ("mode", "backend", "pinned", "early"),
    [
        ("prefill", "mooncake", False, False),
        ("prefill", "nixl", True, False),
        ("decode", "mooncake", True, True),
        ("null", "mooncake", True, True),
    ],
)
def test_a_node_that_prefills_sends_without_events(monkeypatch, mode, backend, pinned, early):
    monkeypatch.setattr(MooncakeKVSender, "supports_host_tensor_indices", True)
    variable = envs.SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX
    monkeypatch.setenv(variable.name, "1")
    disagg = SimpleNamespace(disaggregation_mode=mode, disaggregation_transfer_backend=backend)
    monkeypatch.setattr(transfer, "get_disagg", lambda: disagg)
    transfer.install()
    assert MooncakeKVSender.supports_host_tensor_indices == pinned
    assert variable.get() == early
