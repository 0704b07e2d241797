"""Cross-entropy of a chain by Liger's fused linear cross-entropy (arXiv 2410.10989), for GPUs.

Same contract and memory as `loss.chain_loss` without KL: logits exist for a chunk at a time,
softmax and its derivative in one Triton kernel. Chosen once, at the start of a run, which says so.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training.config import LossSection
from fastmtp_sglang.training.loss import ChainLoss, Labels, LossWeights, OutputLayer, chain_loss


def choose_loss(section: LossSection, device: torch.device) -> tuple[ChainLoss, str]:
    """The loss of a run, and in words which one it is.

    Raises:
        FastMTPError: Liger is asked for where it cannot run.
    """
    has_liger = find_spec("liger_kernel") is not None
    if section.kernel == "liger":
        if not has_liger:
            raise FastMTPError(
                "loss.kernel liger: the package is not installed, run `pip install liger-kernel`."
            )
        if device.type != "cuda":
            raise FastMTPError(f"loss.kernel liger runs on GPUs, not on {device}: use chunked.")
    if section.kernel == "liger" or (
        section.kernel == "auto" and has_liger and device.type == "cuda" and not section.kl
    ):
        return liger_chain_loss, "Liger's fused linear cross-entropy"
    return chain_loss, "the chunked loss in torch"


def liger_chain_loss(
    states: torch.Tensor, labels: Labels, output: OutputLayer, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `loss.chain_loss`; `weights.kl` is 0 and `labels.target_states` not read."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss(reduction="sum", return_predicted_tokens=True)
    sums, correct = [], []
    for step_states, rows in zip(states, labels.rows, strict=True):
        chosen = rows >= 0
        ids = labels.ids[chosen]
        if not len(ids):
            sums.append(step_states.sum() * 0)
            correct.append(ids.sum())
            continue
        result = fused(output.weight, step_states[rows[chosen]].to(output.weight.dtype), ids)
        sums.append(weights.cross_entropy * result.loss)
        correct.append((result.predicted_tokens == ids).sum())
    return torch.stack(sums).float(), torch.stack(correct)
