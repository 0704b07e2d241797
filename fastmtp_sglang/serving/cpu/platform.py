"""The out-of-tree CPU platform: which classes SGLang's unmodified wheel uses on a plain CPU.

SGLang's own CPU engine needs a build of `sgl_kernel` that the CUDA wheel does not hold; this
platform needs torch alone. It serves without speculation, with FASTMTP and with stock NEXTN.
"""

import ctypes
import functools
from typing import Any

import torch
from sglang.srt.arg_groups import choices
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import KVPoolKind, PlatformCapabilities, SRTPlatform

from fastmtp_sglang.contract import limits
from fastmtp_sglang.serving.requests import guards, http_app

# SGLang picks this name itself wherever a CPU has no Intel AMX, and switches CUDA graphs off for
# it. On our platform the name stands for our class.
ATTENTION_BACKEND = "torch_native"
_get_device_module = torch.get_device_module
# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class FastMTPCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """A CPU as SGLang's platform layer sees it: no graphs, no Triton, gloo, torch operators."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        """The device as SGLang's arguments name it."""
        return self.device_type

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Refuse what cannot work here, with or without speculation.

        For deterministic inference SGLang asks for an attention backend whose bits depend on each
        request alone, as ours do. Meanwhile the native operators are compiled, if that was never
        done, and this process, which takes requests, learns to refuse those that no server
        survives.

        Raises:
            FastMTPError: naming the flag, the reason and the way out.
        """
        limits.refuse_on_a_cpu(server_args)
        if ATTENTION_BACKEND not in choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES:
            choices.add_deterministic_attention_backend_choices([ATTENTION_BACKEND])
            choices.add_radix_supported_deterministic_attention_backend_choices([ATTENTION_BACKEND])
        # SGLang takes AMX for granted, and looks for it later than at what deterministic inference
        # needs.
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = ATTENTION_BACKEND
        from fastmtp_sglang.serving.cpu.transfer import choose_defaults

        choose_defaults(server_args)
        if server_args.lora_backend == limits.GPU_LORA_BACKEND:
            server_args.lora_backend = limits.CPU_LORA_BACKEND
        http_app.prepare(server_args.tokenizer_worker_num)
        guards.install_in_tokenizer_manager()

    def get_default_attention_backend(self) -> str:
        """The name that `init_backend` gives to `cpu.attention.CpuAttnBackend`."""
        return ATTENTION_BACKEND

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """FASTMTP, and EAGLE because stock NEXTN resolves to it."""
        return algorithm in ("FASTMTP", "EAGLE")

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        """The draft runs on the attention of the target."""
        return backend == ATTENTION_BACKEND

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        """The draft runs on the attention of the target."""
        return ATTENTION_BACKEND

    def get_speculative_worker_cls(self, algorithm: str) -> type | None:
        """The built-in worker for NEXTN, once SGLang's device operators have torch versions."""
        from fastmtp_sglang.serving.cpu import ops

        ops.install()
        return None

    def get_kv_pool_cls(self, *, kind: KVPoolKind) -> type | None:
        """A pool whose slot moves need no Triton kernel."""
        if kind != "mha":
            return None
        from fastmtp_sglang.serving.cpu.kv_pool import CpuMHATokenToKVPool

        return CpuMHATokenToKVPool

    def get_speculative_cache_locs_fn(self):
        """Torch version of the gather of a request's next cache slots."""
        from fastmtp_sglang.serving.cpu.ops import assign_extend_cache_locs

        return assign_extend_cache_locs

    def get_torch_profiler_activity_str(self) -> str:
        """What `/start_profile` calls the activity of this device."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """And what torch calls it."""
        return torch.profiler.ProfilerActivity.CPU

    def init_backend(self) -> None:
        """Put our attention into SGLang's registry; called once in each worker process.

        Where SGLang asks torch for the module of its device without naming one, a torch built for
        CUDA answers with that.
        """
        if torch.get_device_module is _get_device_module:
            torch.get_device_module = _cpu_by_default
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        @register_attention_backend(ATTENTION_BACKEND)
        def create(runner):
            from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend

            return CpuAttnBackend(runner)

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Pack the weights for the native operators and let SGLang find these.

        Its sampler learns to obey seeds, its scheduler to survive odd calls. Not sooner, since
        neither its layers nor these can be imported while its model runner is.
        """
        from sglang.srt.runtime_context import get_exec, get_lora

        from fastmtp_sglang.serving.cpu import (
            attention_ranks,
            fused,
            gemma,
            replay,
            seeded,
            transfer,
        )
        from fastmtp_sglang.serving.cpu.packed_linear import pack_model
        from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
        from fastmtp_sglang.serving.verification import seeds

        fused.register(self.get_dispatch_key_name())
        guards.install_in_scheduler(on_a_cpu=True)
        seeded.install(deterministic=get_exec().deterministic.enable_deterministic_inference)
        seeds.install()
        pack_model(model)
        gemma.install(model)
        if get_lora().enable_lora and not isinstance(model, FastMTPHead):
            from fastmtp_sglang.serving.cpu import lora

            lora.install()
        else:
            # A tape has its layers' weights in it, and what adapters add differs from row to row.
            replay.install(model)
        transfer.install()
        attention_ranks.install()
        _keep_freed_blocks()

    def shorten_draft(self, runner: Any) -> None:
        """Spare a draft worker's runner what a head's pass does not need."""
        from fastmtp_sglang.serving.cpu import draft_pass

        draft_pass.install(runner)

    def lean_step(self, target: Any, draft: Any, draft_head: Any) -> Any:
        """A `LeanStep` of two model runners and the draft's last layer, None if there can be none.

        Args:
            target: the target's runner.
            draft: the draft's.
            draft_head: over lists; None or another one drafts from all tokens.
        """
        from fastmtp_sglang.serving.cpu.lean_step import LeanStep

        possible = LeanStep.possible(target, draft, draft_head)
        return LeanStep(target, draft, draft_head) if possible else None


def _keep_freed_blocks() -> None:
    """Let glibc give blocks of up to 1 GiB out again, rather than back to the kernel.

    It maps a block above 32 MiB afresh each time: the logits of 98 rows of a vocabulary of 262,144
    are 100 MB and more, several times a step, each page of them zeroed by the kernel (a fifth of
    Gemma 3 270M's decoding). Called once the weights are in, whose temporary copies go back.
    """
    libc = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        if libc.mallopt(option, 1 << 30) != 1:
            raise OSError(f"mallopt({option}) failed")


# torch's compiler looks the function below the cache up by this attribute.
@functools.wraps(_get_device_module)
def _cpu_by_default(device: torch.device | str | None = None) -> Any:
    return _get_device_module("cpu" if device is None else device)
