"""Disaggregation between nodes without a GPU: SGLang's transfers, without memory pinned for one."""

from __future__ import annotations

from typing import Any

from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_disagg


def choose_defaults(server_args: Any) -> None:
    """Let a node that decodes keep what it retracts where no GPU is needed for it."""
    if (
        server_args.disaggregation_mode == "decode"
        and server_args.disaggregation_decode_retraction_backup is None
    ):
        server_args.disaggregation_decode_retraction_backup = "cpu_tensor"


def install() -> None:
    """Let a node that prefills send without events of a GPU.

    Prefixes are sent with the rest instead of before it; Mooncake's sender takes indices as numpy
    arrays instead of pinned tensors.
    """
    disagg = get_disagg()
    if disagg.disaggregation_mode != "prefill":
        return
    envs.SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX.set(False)
    if disagg.disaggregation_transfer_backend == "mooncake":
        from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

        MooncakeKVSender.supports_host_tensor_indices = False
