"""The FASTMTP worker: SGLang's V2 worker with one shared head, drafted recursively.

Overlap and synchronous scheduling, CUDA graphs, verification and the draft's KV cache are
SGLang's. What differs is the memory: the head's embedding and lm_head are the target's tensors from
the moment the head is loaded, before the KV pool is sized.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.platforms import current_platform
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative import eagle_worker_v2
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

logger = logging.getLogger(__name__)


class FastMTPDraftWorker(EagleDraftWorker):
    """Drafts K tokens by applying one MTP head K times."""

    def __init__(
        self,
        server_args: ServerArgs,
        gpu_id: int,
        nccl_port: int,
        target_worker: TpModelWorker,
    ) -> None:
        super().__init__(server_args, gpu_id, nccl_port, target_worker)
        # Stock SGLang shares them after it has sized the KV pool, while the head still holds copies
        # (sglang#36452: 2.5 GB that a MiMo-7B server loses for good).
        before = _parameter_bytes(self.draft_runner.model)
        self.init_token_map()
        self.init_lm_head()
        freed = before - _parameter_bytes(self.draft_runner.model)
        current_platform.empty_cache()
        logger.info(
            "The head shares the target's embedding and lm_head (%.1f MiB of copies freed before "
            "the KV pool is sized); it drafts K=%d tokens over the full vocabulary.",
            max(freed, 0) / 2**20,
            self.speculative_num_steps,
        )

    def init_token_map(self) -> None:
        """No hot-token copy of the lm_head: drafting reads the shared one."""
        self.hot_token_id = None


class FastMTPWorker(EAGLEWorkerV2):
    """The worker that SGLang's scheduler drives."""

    def __init__(self, **kwargs: Any) -> None:
        # The base class names its draft worker in a module global and has no factory for it.
        stock = eagle_worker_v2.EagleDraftWorker
        eagle_worker_v2.EagleDraftWorker = FastMTPDraftWorker
        try:
            super().__init__(**kwargs)
        finally:
            eagle_worker_v2.EagleDraftWorker = stock


def _parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes that a model's parameters occupy, counting shared storage once."""
    storages = (p.untyped_storage() for p in model.parameters() if not p.is_meta)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
