"""The SGLang names that we override, call or read, and the check that they are still what we know.

The check reads SGLang's sources (no import: every process runs it at start-up) and compares each
hook's parameters with the table. An SGLang release that renames one is then refused with one clear
message at registration, instead of failing in the middle of serving.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SUPPORTED = ">=0.5.23,<0.6"
# A release in that range whose hooks differ is mended by going back to this one.
TESTED = "0.5.23"


@dataclass(frozen=True)
class Hook:
    """One name of SGLang that we depend on.

    Attributes:
        kind: "override" (we replace or extend it), "call" or "read".
        path: dotted module, a colon, and the function, class, attribute or Class.method in it.
        parameters: for functions and methods, the parameters that we pass or receive, in order,
            separated by blanks and without self; the installed function must start with them.
            None for other names.
    """

    kind: str
    path: str
    parameters: str | None = None


@dataclass(frozen=True)
class Mismatch:
    """A hook that the installed SGLang lacks or has in another form."""

    hook: Hook
    found: str

    def __str__(self) -> str:
        parameters = self.hook.parameters
        expected = "" if parameters is None else f"({', '.join(parameters.split())})"
        return f"{self.hook.path}{expected} [{self.hook.kind}]: {self.found}"


_SPEC = "sglang.srt.speculative"
_OPS = "sglang.kernels.ops.speculative"
_POOL = "sglang.srt.mem_cache.memory_pool"
_PLATFORM = "sglang.srt.platforms.interface:SRTPlatform"
_ATTENTION = "sglang.srt.layers.attention"
_WORKER_ARGS = "server_args gpu_id nccl_port target_worker"

HOOKS: tuple[Hook, ...] = (
    # The algorithm.
    Hook("override", f"{_SPEC}.spec_registry:CustomSpecAlgo.is_eagle", ""),
    Hook("override", f"{_SPEC}.spec_registry:CustomSpecAlgo.supports_mixed_chunk", ""),
    Hook("override", f"{_SPEC}.spec_registry:CustomSpecAlgo.supports_grammar_overlap", ""),
    Hook("override", f"{_SPEC}.spec_registry:CustomSpecAlgo.handle_server_args", "server_args"),
    Hook(
        "override",
        f"{_SPEC}.spec_registry:CustomSpecAlgo.build_disagg_draft_input",
        "batch last_tokens_tensor future_map",
    ),
    Hook("call", f"{_SPEC}.spec_registry:get_spec", "name"),
    Hook("override", f"{_SPEC}.spec_info:SpeculativeAlgorithm.need_topk", ""),
    Hook("override", f"{_SPEC}.spec_info:SpeculativeAlgorithm.carries_draft_hidden_states", ""),
    Hook(
        "override",
        f"{_SPEC}.spec_info:SpeculativeAlgorithm.create_future_map",
        "device req_to_token_pool needs_cpu_seq_lens needs_confidence_relay",
    ),
    Hook(
        "call",
        f"{_SPEC}.spec_info:SpeculativeAlgorithm.register",
        "name supports_overlap validate_server_args spec_class",
    ),
    Hook(
        "call",
        f"{_SPEC}.eagle_disaggregation:build_eagle_disagg_draft_input",
        "batch last_tokens_tensor future_map",
    ),
    Hook("call", "sglang.srt.managers.overlap_utils:FutureMap"),
    Hook("call", "sglang.srt.arg_groups.model_override_base:model_config_of", "server_args"),
    # The worker.
    Hook("override", f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2.__init__", _WORKER_ARGS),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.__init__", _WORKER_ARGS),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.init_token_map", ""),
    Hook("call", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.init_lm_head", ""),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.alloc_memory_pool"),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.draft_forward", "forward_batch"),
    Hook(
        "override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_prefill", "batch"
    ),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_decode",
        "batch batch_result",
    ),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2._forward_prefill_batch", "batch"),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2.on_verify_complete_cpu",
        "num_correct_drafts_per_req batch_size",
    ),
    Hook("override", "sglang.srt.managers.tp_worker:TpModelWorker.weight_update_runners", ""),
    # The keys of steps without drafts.
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.draft", "batch"),
    Hook("call", f"{_SPEC}.eagle_info:EagleDraftExtendInput"),
    Hook("call", "sglang.srt.model_executor.forward_batch_info:ForwardBatch"),
    Hook("call", "sglang.srt.model_executor.forward_context:ForwardContext"),
    Hook("call", "sglang.srt.model_executor.forward_context:forward_context", "ctx"),
    Hook("call", f"{_POOL}:KVWriteLoc"),
    Hook("call", f"{_POOL}:MHATokenToKVPool.set_kv_buffer", "layer loc_info cache_k cache_v"),
    Hook("call", "sglang.srt.layers.layer_boundary.residual.batch:clear", "forward_batch"),
    # The choice of K.
    Hook("call", f"{_SPEC}.adaptive_runtime_state:AdaptiveController.__init__", "worker policy"),
    Hook("call", f"{_SPEC}.adaptive_runtime_state:AdaptiveController.activate_step_by_batch"),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._capture_cuda_graphs", ""),
    *(
        Hook("override", f"{_SPEC}.adaptive_spec_params:AdaptiveSpeculativeParams.{name}", names)
        for name, names in {
            "set_cuda_graph_bs": "cuda_graph_bs",
            "cuda_graph_bs_for_step": "step",
            "get_steps_for_batch": "batch_size",
            "on_verify_complete": "num_correct_drafts_per_req batch_size",
        }.items()
    ),
    # Requests.
    Hook(
        "override",
        "sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_one_request",
        "obj input_ids",
    ),
    Hook(
        "override",
        "sglang.srt.managers.tokenizer_manager:TokenizerManager._calculate_spec_decoding_metrics",
        "meta_info recv_obj i",
    ),
    # Verification.
    Hook(
        "override",
        f"{_SPEC}.eagle_utils:eagle_sample",
        "verify_input batch logits_output grammar_mask",
    ),
    Hook(
        "override",
        "sglang.srt.sampling.penaltylib.orchestrator:BatchedPenalizerOrchestrator.__init__",
        "vocab_size batch penalizers",
    ),
    Hook(
        "override",
        "sglang.srt.sampling.penaltylib.orchestrator:BatchedPenalizerOrchestrator.apply",
        "logits",
    ),
    Hook(
        "read",
        "sglang.srt.sampling.penaltylib.min_new_tokens:BatchedMinNewTokensPenalizer._prepare",
        "",
    ),
    Hook(
        "call",
        "sglang.srt.sampling.penaltylib.repetition_penalty:apply_scaling_penalties",
        "logits scaling_penalties",
    ),
    # Requests.
    Hook("override", "sglang.srt.sampling.sampling_params:SamplingParams.verify", "vocab_size"),
    Hook(
        "call",
        "sglang.srt.plugins.hook_registry:HookRegistry.register",
        "target hook hook_type",
    ),
    Hook("call", "sglang.srt.runtime_context:get_context", ""),
    Hook(
        "override",
        "sglang.srt.managers.schedule_batch:Req.update_finish_state",
        "new_accepted_len",
    ),
    # The draft head.
    Hook(
        "override",
        "sglang.srt.layers.logits_processor:LogitsProcessor.forward",
        "input_ids hidden_states lm_head logits_metadata",
    ),
    Hook(
        "override",
        "sglang.srt.layers.logits_processor:LogitsProcessor._get_logits",
        "hidden_states lm_head logits_metadata",
    ),
    Hook("call", "sglang.srt.distributed.parallel_state:get_tp_group", ""),
    Hook("call", "sglang.srt.runtime_context:get_spec", ""),
    Hook("call", "sglang.srt.runtime_context:get_observability", ""),
    Hook("call", "sglang.srt.runtime_context:get_parallel", ""),
    Hook("read", "sglang.srt.models.registry:ModelRegistry"),
    Hook("override", "sglang.srt.models.mimo_mtp:MiMoMTP.load_weights", "weights"),
    # The CPU platform.
    Hook("override", "sglang.srt.platforms.cpu:CpuDeviceMixin._enum"),
    Hook("override", "sglang.srt.platforms.cpu:CpuDeviceMixin.get_device", "device_id"),
    Hook("override", f"{_PLATFORM}.capabilities"),
    Hook("override", f"{_PLATFORM}.apply_server_args_defaults", "server_args"),
    Hook("override", f"{_PLATFORM}.get_default_attention_backend", ""),
    Hook("override", f"{_PLATFORM}.supports_speculative_algorithm", "algorithm"),
    Hook(
        "override",
        f"{_PLATFORM}.supports_speculative_draft_attention_backend",
        "algorithm backend",
    ),
    Hook(
        "override",
        f"{_PLATFORM}.get_default_speculative_draft_attention_backend",
        "algorithm",
    ),
    Hook("override", f"{_PLATFORM}.get_speculative_worker_cls", "algorithm"),
    Hook("override", f"{_PLATFORM}.get_kv_pool_cls", "kind"),
    Hook("override", f"{_PLATFORM}.get_speculative_cache_locs_fn", ""),
    Hook("override", f"{_PLATFORM}.init_backend", ""),
    Hook("override", f"{_PLATFORM}.post_load_model", "model"),
    Hook("override", f"{_POOL}:MHATokenToKVPool._init_kv_copy_and_warmup", ""),
    Hook(
        "override",
        f"{_ATTENTION}.base_attn_backend:AttentionBackend.init_forward_metadata",
        "forward_batch",
    ),
    Hook(
        "override",
        f"{_ATTENTION}.base_attn_backend:AttentionBackend.forward_extend",
        "q k v layer forward_batch save_kv_cache",
    ),
    Hook(
        "override",
        f"{_ATTENTION}.base_attn_backend:AttentionBackend.forward_decode",
        "q k v layer forward_batch save_kv_cache",
    ),
    Hook("override", f"{_ATTENTION}.base_attn_backend:AttentionBackend.support_triton", ""),
    Hook("call", f"{_ATTENTION}.attention_registry:register_attention_backend", "name"),
    Hook(
        "override",
        "sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod.apply",
        "layer x bias",
    ),
    Hook(
        "override",
        "sglang.srt.layers.quantization.unquant:UnquantizedEmbeddingMethod.apply",
        "layer x bias",
    ),
    Hook(
        "override",
        "sglang.srt.mem_cache.allocation:assign_req_to_token_pool_func",
        "req_pool_indices req_to_token start_offset end_offset out_cache_loc batch_size",
    ),
    Hook("override", f"{_OPS}.gather_spec_extras:gather_spec_extras"),
    Hook(
        "override",
        f"{_OPS}.cache_locs:assign_draft_cache_locs_contiguous_func",
        "req_pool_indices req_to_token seq_lens out_cache_loc topk num_cols positions mrope",
    ),
    Hook(
        "override",
        f"{_OPS}.eagle:fill_bonus_tokens_func",
        "accept_tokens accept_lens bonus_tokens accept_stride batch_size",
    ),
    Hook(
        "override",
        f"{_OPS}.spec_tree:build_tree_kernel_efficient_func",
        "parent_list top_scores_index seq_lens tree_mask positions retrieve_index "
        "retrieve_next_token retrieve_next_sibling topk spec_steps num_verify_tokens "
        "tree_mask_mode",
    ),
    Hook(
        "override",
        f"{_OPS}.spec_tree:verify_tree_greedy_func",
        "predicts accept_index accept_token_num candidates retrieve_index retrieve_next_token "
        "retrieve_next_sibling target_predict topk",
    ),
    Hook(
        "override",
        f"{_OPS}.reject_sampling:chain_speculative_sampling_triton",
        "predicts accept_index accept_token_num candidates retrive_index retrive_next_token "
        "retrive_next_sibling uniform_samples uniform_samples_for_final_sampling target_probs "
        "draft_probs threshold_single threshold_acc deterministic",
    ),
    Hook("override", f"{_OPS}.row_argmax:row_argmax", "x"),
    Hook("override", f"{_SPEC}.draft_utils:DraftBackendFactory.create_decode_backend", ""),
    Hook("override", f"{_SPEC}.draft_utils:DraftBackendFactory.create_draft_extend_backend", ""),
    Hook("override", f"{_SPEC}.spec_utils:_select_top_k_tokens_later"),
    Hook("call", "sglang.kernels.fused_op:BaseFusedOp.register_oot_forward", "op_cls fn"),
    Hook(
        "override",
        "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding.forward_native",
        "positions query key offsets fused_set_kv_buffer_arg",
    ),
)


def check() -> list[Mismatch]:
    """Compare the installed SGLang with the table; an empty list means that all hooks match."""
    return [Mismatch(hook, found) for hook in HOOKS if (found := _difference(hook)) is not None]


def report(mismatches: list[Mismatch]) -> str:
    """One message with SGLang's version, each mismatch and the way out."""
    version = importlib.metadata.version("sglang")
    lines = "\n".join(f"  {mismatch}" for mismatch in mismatches)
    return (
        f"fastmtp-sglang does not know SGLang {version}; --speculative-algorithm fastmtp is not "
        f"registered and SGLang runs without it. What differs:\n{lines}\n"
        f"Install the SGLang that it was tested with (pip install 'sglang=={TESTED}') or a newer "
        "fastmtp-sglang (pip install -U fastmtp-sglang)."
    )


def _difference(hook: Hook) -> str | None:
    module, name = hook.path.split(":")
    names = _definitions(module, name.partition(".")[0])
    if names is None:
        return "the module is missing"
    if name not in names:
        return "missing"
    if hook.parameters is None:
        return None
    expected, actual = tuple(hook.parameters.split()), names[name]
    if actual is None:
        return "no longer a function"
    if actual[: len(expected)] != expected:
        return f"now takes ({', '.join(actual)})"
    return None


@cache
def _definitions(module: str, top: str | None = None) -> dict[str, tuple[str, ...] | None] | None:
    """Parameters of each function and method of a module by qualified name, None for the rest.

    With `top`, at least of that class or function and what is in it.
    """
    path = _source(module)
    if path is None:
        return None
    found: dict[str, tuple[str, ...] | None] = {}
    for node in _parse(path.read_text(), top):
        _collect(node, "", found)
    return found


def _parse(source: str, top: str | None) -> list[ast.stmt]:
    """The statements of a source, or only those that define `top` at its first level.

    Whole files take twice as long, in every process: one of them has 260 kB.
    """
    if top is not None:
        # Each from its first line up to the next line that begins in the first column.
        blocks = re.findall(
            rf"^(?:class|def|async def) {top}\b.*?(?=^[^\s)#]|\Z)", source, re.MULTILINE | re.DOTALL
        )
        # A string that reaches into the first column ends a block too early.
        with suppress(SyntaxError):
            if blocks:
                return ast.parse("".join(blocks)).body
    return ast.parse(source).body


def _collect(node: ast.stmt, prefix: str, found: dict[str, tuple[str, ...] | None]) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        found[prefix + node.name] = tuple(n for n in names if n not in ("self", "cls"))
    elif isinstance(node, ast.ClassDef):
        found[prefix + node.name] = None
        for child in node.body:
            _collect(child, f"{prefix}{node.name}.", found)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                found[prefix + target.id] = None
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        found[prefix + node.target.id] = None
    elif isinstance(node, ast.If | ast.Try):
        for branch in ast.iter_child_nodes(node):
            if isinstance(branch, ast.stmt):
                _collect(branch, prefix, found)


def _source(module: str) -> Path | None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None
