"""The entry point in the group `sglang.srt.plugins`: what SGLang learns from us at start-up.

SGLang calls `register` in every process it starts, so it stays cheap: it names the algorithm and
the checkpoint format. What needs SGLang's models or workers waits for `algorithm.worker_class`,
which only the scheduler process calls.
"""

import logging

from fastmtp_sglang.contract import compat
from fastmtp_sglang.contract.identity import ALGORITHM, announce
from fastmtp_sglang.serving import eagle_checks, refusals

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the algorithm FASTMTP and the `fastmtp` checkpoint format; idempotent.

    When the installed SGLang does not have the hooks that we build on, one error says what differs
    and what to do, and nothing is registered: SGLang keeps working without us.
    """
    refusals.install()
    mismatches = compat.check()
    if mismatches:
        logger.error(compat.report(mismatches))
        return

    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import get_spec

    if get_spec(ALGORITHM) is not None:
        return

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from fastmtp_sglang.head.config import FastMTPConfig
    from fastmtp_sglang.serving.algorithm import FastMTPAlgorithm, worker_class
    from fastmtp_sglang.serving.requests import request_limits

    FastMTPConfig.register_for_auto_class_loading()
    SpeculativeAlgorithm.register(
        ALGORITHM,
        supports_overlap=True,
        validate_server_args=FastMTPAlgorithm.refuse_unsupported,
        spec_class=FastMTPAlgorithm,
    )(worker_class)
    HookRegistry.register(
        "sglang.srt.arg_groups.speculative_hook.handle_speculative_decoding",
        FastMTPAlgorithm.hold_back,
        HookType.BEFORE,
    )
    HookRegistry.register(
        "sglang.srt.arg_groups.validation_hook.check_pipeline_parallel_compat",
        eagle_checks.before_check,
        HookType.BEFORE,
    )
    HookRegistry.register(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify",
        request_limits.check,
        HookType.AFTER,
    )
    announce()
