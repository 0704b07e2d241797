"""DP attention on a CPU: SGLang's own copies between ranks, for a CPU that it does not know as one.

SGLang asks an environment variable, and not its platform, whether it runs on a CPU.
"""

from sglang.srt.distributed.parallel_state import GroupCoordinator
from sglang.srt.layers import dp_attention
from sglang.srt.model_executor import forward_batch_info


def install() -> None:
    """Move rows between ranks by torch, and pin no memory; idempotent."""
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    forward_batch_info._is_cpu = True
    GroupCoordinator.all_gather_into_tensor = GroupCoordinator._all_gather_into_tensor
    GroupCoordinator.reduce_scatter_tensor = GroupCoordinator._reduce_scatter_tensor
