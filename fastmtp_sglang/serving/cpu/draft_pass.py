"""The head's own passes without SGLang's model runner.

Around a forward pass the runner keeps buffers for graphs, counts experts and plans attention, in
Python that takes longer than the layers of a head. A draft step and the extension after a
verification, whose attention is planned by SGLang's worker, need none of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sglang.srt.model_executor.forward_context import (
    ForwardContext,
    forward_context,
    has_forward_context,
)
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from sglang.srt.runtime_context import get_parallel

from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


def install(runner: ModelRunner) -> None:
    """Let a draft worker's runner go straight to its model where that is a head of ours."""
    if isinstance(runner.model, FastMTPHead) and get_parallel().tp_size == 1:
        runner.forward = functools.partial(_forward, runner, runner.forward)


def _forward(
    runner: ModelRunner, stock: Any, forward_batch: ForwardBatch, **kwargs: Any
) -> ModelRunnerOutput:
    mode = forward_batch.forward_mode
    known = mode.is_decode() or mode.is_draft_extend_v2()
    if not known or kwargs or forward_batch.needs_forward_metadata_init():
        return stock(forward_batch, **kwargs)
    # The slots of a draft step are every K-th of those that were set apart for all steps.
    forward_batch.out_cache_loc = forward_batch.out_cache_loc.contiguous()
    if has_forward_context():
        return _model_output(runner, forward_batch)
    with forward_context(ForwardContext(attn_backend=runner.attn_backend)):
        return _model_output(runner, forward_batch)


def _model_output(runner: ModelRunner, forward_batch: ForwardBatch) -> ModelRunnerOutput:
    output = runner.model.forward(forward_batch.input_ids, forward_batch.positions, forward_batch)
    return ModelRunnerOutput(logits_output=output, can_run_graph=False)
