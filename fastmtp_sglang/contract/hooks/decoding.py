"""What drafting, verification and the choice of a shape use of SGLang."""

from fastmtp_sglang.contract.hooks.hook import Hook

_SPEC = "sglang.srt.speculative"
_POOL = "sglang.srt.mem_cache.memory_pool"
_SIZING = "sglang.srt.mem_cache.allocation_sizing"
_BATCH_INFO = "sglang.srt.sampling.sampling_batch_info"
_SAMPLER = "sglang.srt.layers.sampler"
_WORKER = f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2"
_STATE_ARGS = "speculative_num_steps speculative_num_draft_tokens cuda_graph_bs"
_ORGANIZE_ARGS = "score_list token_list parents_list num_draft_token"
_WORKER_ARGS = "server_args gpu_id nccl_port target_worker"
_GEMMA = "sglang.srt.models.gemma3_causal"
_CHECKS = "sglang.srt.arg_groups.validation_hook"
_ANGLES = "position_embeddings_global position_embeddings_local"

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
    Hook("override", f"{_WORKER}.__init__", _WORKER_ARGS),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.__init__", _WORKER_ARGS),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.init_token_map", ""),
    Hook("call", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.init_lm_head", ""),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.alloc_memory_pool"),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._resolve_shared_embed_and_head",
        "",
    ),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.draft_forward", "forward_batch"),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_prefill",
        "batch target_hidden_states next_token_ids",
    ),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_decode",
        "batch batch_result",
    ),
    Hook("override", f"{_WORKER}._forward_prefill_batch", "batch"),
    Hook(
        "override",
        f"{_WORKER}.on_verify_complete_cpu",
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
    # The choice of a shape.
    *(
        Hook("override", f"{_SPEC}.adaptive_runtime_state:AdaptiveController.{name}", parameters)
        for name, parameters in {
            "register": "state",
            "init_states": "cuda_graph_bs",
            "activate_step_by_batch": "batch_size",
        }.items()
    ),
    Hook("call", f"{_WORKER}.build_adaptive_runtime_state", _STATE_ARGS),
    Hook("call", f"{_WORKER}.apply_runtime_state", "state"),
    Hook("override", f"{_WORKER}.verify", "batch"),
    Hook("call", f"{_SPEC}.base_spec_worker:EagleDraftWorkerBase._rebuild_topk1_chain_buffers", ""),
    Hook("override", f"{_SPEC}.eagle_utils:organize_draft_results", _ORGANIZE_ARGS),
    Hook("override", f"{_SIZING}:get_alloc_len_per_decode", ""),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._capture_cuda_graphs", ""),
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
    Hook(
        "override",
        f"{_SPEC}.spec_utils:renorm_draft_probs",
        "next_token_logits sampling_info use_rejection_sampling",
    ),
    Hook("override", f"{_SIZING}:get_req_to_token_extra_context_len", ""),
    Hook("call", f"{_SIZING}:get_alloc_reserve_per_decode", ""),
    Hook("call", "sglang.srt.distributed.parallel_state:get_tp_group", ""),
    Hook("read", "sglang.srt.layers.utils.common:PPMissingLayer"),
    # What is resolved and checked before a server starts.
    Hook(
        "override",
        "sglang.srt.arg_groups.speculative_hook:handle_speculative_decoding",
        "server_args",
    ),
    Hook("override", f"{_CHECKS}:check_pipeline_parallel_compat", "cfg"),
    Hook("call", "sglang.srt.arg_groups.overrides:declare_resolution", "server_args source"),
    Hook("read", "sglang.srt.environ:Envs.SGLANG_ENABLE_PP_SPEC"),
    # Disaggregation.
    Hook("read", "sglang.srt.environ:Envs.SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX"),
    Hook("call", "sglang.srt.runtime_context:get_spec", ""),
    Hook("call", "sglang.srt.runtime_context:get_observability", ""),
    Hook("call", "sglang.srt.runtime_context:get_parallel", ""),
    Hook("read", "sglang.srt.models.registry:ModelRegistry"),
    Hook("override", "sglang.srt.models.mimo_mtp:MiMoMTP.load_weights", "weights"),
    # The block of a head for Gemma 3.
    Hook(
        "override",
        f"{_GEMMA}:Gemma3DecoderLayer.forward",
        f"positions hidden_states {_ANGLES} forward_batch",
    ),
    Hook("call", f"{_GEMMA}:Gemma3RotaryEmbedding.forward", "x position_ids"),
    Hook("call", f"{_GEMMA}:get_attention_sliding_window_size", "config"),
    Hook(
        "call",
        "sglang.srt.layers.layer_boundary.residual.stream:ResidualStream.from_handoff",
        "hidden residual update",
    ),
    # Seeds and logit processors.
    *(
        Hook("override", f"{_BATCH_INFO}:SamplingBatchInfo.{name}", parameters)
        for name, parameters in {
            "adjusted_from_schedule_batch": "batch vocab_size",
            "adjusted_filter_batch": "keep_indices keep_indices_device",
            "adjusted_merge_batch": "other",
        }.items()
    ),
    Hook("read", f"{_BATCH_INFO}:ProcessorEntry"),
    Hook(
        "override",
        f"{_SAMPLER}:Sampler._sample_from_probs",
        "probs sampling_info positions simple_sampling_case",
    ),
    # Also replaced on a CPU.
    Hook("override", f"{_SAMPLER}:sampling_from_probs_torch", "probs sampling_seed positions"),
    Hook("read", "sglang.srt.sampling.sampling_params:TOP_K_ALL"),
)
