"""The KV pool on a CPU: SGLang's own, with slots that one native call moves in all layers."""

import numpy as np
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from torch import Tensor

from fastmtp_sglang.serving.cpu.native.memory import use_huge_pages
from fastmtp_sglang.serving.cpu.native.moves import move


class CpuMHATokenToKVPool(MHATokenToKVPool):
    """`MHATokenToKVPool` without the Triton kernel that moves slots.

    The accepted path of a tree is moved to where a chain would lie: a few rows of every layer,
    after each verification.
    """

    def _create_buffers(self) -> None:
        super()._create_buffers()
        for buffer in (*self.k_buffer, *self.v_buffer):
            use_huge_pages(buffer)

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True

    def _move_kv_cache_impl(self, tgt_loc: Tensor, src_loc: Tensor) -> None:
        buffers = [*self.k_buffer, *self.v_buffer]
        plain = getattr(self, "k_scale_buffer", None) is None
        if not plain or not all(buffer.is_contiguous() for buffer in buffers):
            super()._move_kv_cache_impl(tgt_loc, src_loc)
            return
        move(
            np.array([buffer.data_ptr() for buffer in buffers]),
            np.array([buffer.stride(0) * buffer.element_size() for buffer in buffers]),
            *(slots.flatten().long().contiguous().numpy() for slots in (tgt_loc, src_loc)),
        )
