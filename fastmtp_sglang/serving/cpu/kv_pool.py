"""The KV pool on a CPU: SGLang's own, without the Triton kernel that moves slots."""

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class CpuMHATokenToKVPool(MHATokenToKVPool):
    """`MHATokenToKVPool` whose slot moves go through torch indexing.

    Speculative pools compile and warm a Triton copy kernel at start-up. Chain drafting never moves
    slots (an accepted chain already lies in order), so the torch path is enough.
    """

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True
