"""The SGLang names that we override, call or read, one `Hook` each.

`compat` compares the table with the installed SGLang, and its test with what our code really uses.
"""

from dataclasses import dataclass


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


_SPEC = "sglang.srt.speculative"
_OPS = "sglang.kernels.ops.speculative"
_OPENAI = "sglang.srt.entrypoints.openai"
_POOL = "sglang.srt.mem_cache.memory_pool"
_SIZING = "sglang.srt.mem_cache.allocation_sizing"
_PLATFORM = "sglang.srt.platforms.interface:SRTPlatform"
_DEVICE = "sglang.srt.platforms.device_mixin:DeviceMixin"
_ATTENTION = "sglang.srt.layers.attention"
_MANAGER = "sglang.srt.managers.tokenizer_manager:TokenizerManager"
_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_SCHEDULER_PARTS = "sglang.srt.managers.scheduler_components"
_IO = "sglang.srt.managers.io_struct"
_LOADER = "sglang.srt.model_loader.loader"
_WORKER = f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2"
_STATE_ARGS = "speculative_num_steps speculative_num_draft_tokens cuda_graph_bs"
_ORGANIZE_ARGS = "score_list token_list parents_list num_draft_token"
_WORKER_ARGS = "server_args gpu_id nccl_port target_worker"
_SAMPLER_ARGS = (
    "predicts accept_index accept_token_num candidates retrive_index retrive_next_token "
    "retrive_next_sibling uniform_samples uniform_samples_for_final_sampling target_probs "
    "draft_probs threshold_single threshold_acc deterministic"
)

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
    Hook("override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker.draft_forward", "forward_batch"),
    Hook(
        "override", f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_prefill", "batch"
    ),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_v2:EagleDraftWorker._draft_extend_for_decode",
        "batch batch_result",
    ),
    Hook("override", f"{_WORKER}._forward_prefill_batch", "batch"),
    Hook("override", f"{_WORKER}.on_verify_complete_cpu", "num_correct_drafts_per_req batch_size"),
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
    # Requests.
    Hook("override", f"{_MANAGER}._validate_one_request", "obj input_ids"),
    Hook("override", f"{_MANAGER}._calculate_spec_decoding_metrics", "meta_info recv_obj i"),
    Hook("override", f"{_MANAGER}._create_tokenized_object", "obj input_text input_ids"),
    Hook(
        "override",
        "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin._execute_profile",
        "req",
    ),
    Hook("override", "sglang.srt.managers.communicator:FanOutCommunicator.__call__", "obj"),
    Hook("override", f"{_SCHEDULER}.init_request_dispatcher", ""),
    Hook("override", f"{_SCHEDULER}.handle_generate_request", "recv_req"),
    Hook("call", f"{_SCHEDULER}.send_abort_output", "abort_req req"),
    Hook("call", f"{_IO}:msgpack_encode", "obj"),
    Hook("call", f"{_IO}:msgpack_decode", "data"),
    Hook("call", f"{_IO}:AbortReq"),
    Hook(
        "override",
        "sglang.srt.session.session_controller:Session.create_req",
        "req tokenizer vocab_size",
    ),
    Hook("call", "sglang.srt.session.session_controller:SessionReqNode.clear", "req_dict"),
    # Profiles, memory and weights of a running server.
    *(
        Hook(
            "override",
            f"{_SCHEDULER_PARTS}.profiler_manager:SchedulerProfilerManager.{name}",
            parameter,
        )
        for name, parameter in {
            "_profile": "recv_req",
            "_profile_batch_predicate": "batch",
        }.items()
    ),
    *(
        Hook(
            "override",
            f"{_SCHEDULER_PARTS}.weight_updater:SchedulerWeightUpdaterManager.{name}",
            "recv_req",
        )
        for name in (
            "update_weights_from_tensor",
            "release_memory_occupation",
            "resume_memory_occupation",
        )
    ),
    Hook(
        "override",
        "sglang.srt.model_executor.model_runner_components.weight_updater:"
        "WeightUpdater.update_weights_from_disk",
        "model_path load_format",
    ),
    Hook("call", f"{_LOADER}:get_model_loader", "load_config model_config"),
    Hook(
        "call",
        f"{_LOADER}:DefaultModelLoader._prepare_weights",
        "model_name_or_path revision fall_back_to_pt",
    ),
    Hook(
        "override",
        "sglang.srt.managers.schedule_batch:Req.update_spec_correct_drafts_histogram",
        "num_correct_drafts",
    ),
    Hook(
        "override",
        "sglang.srt.managers.scheduler_components.metrics_reporter:"
        "SchedulerMetricsReporter.report_decode_stats",
        "can_run_cuda_graph running_batch num_generated_tokens",
    ),
    # Streamed answers.
    Hook(
        "override",
        f"{_OPENAI}.serving_chat:OpenAIServingChat._generate_stream_content",
        "content index request created stream_offsets reasoning_parser_dict parser_dict "
        "has_tool_calls choice_logprobs finish_reason_type",
    ),
    Hook(
        "override",
        f"{_OPENAI}.serving_responses:OpenAIServingResponses"
        ".responses_stream_generator_non_harmony",
        "request sampling_params result_generator",
    ),
    Hook("call", f"{_OPENAI}.serving_chat:OpenAIServingChat._tool_call_parsing_active", "request"),
    Hook("call", f"{_OPENAI}.serving_chat:OpenAIServingChat._encoding_output", ""),
    Hook("call", "sglang.srt.runtime_context:get_serving", ""),
    Hook("call", "sglang.utils:find_printable_text", "text"),
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
    Hook("call", "sglang.srt.plugins.hook_registry:HookRegistry.register", "target hook hook_type"),
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
    Hook(
        "override",
        f"{_SPEC}.spec_utils:renorm_draft_probs",
        "next_token_logits sampling_info use_rejection_sampling",
    ),
    Hook("override", f"{_SIZING}:get_req_to_token_extra_context_len", ""),
    Hook("call", f"{_SIZING}:get_alloc_reserve_per_decode", ""),
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
    Hook("override", f"{_PLATFORM}.get_default_speculative_draft_attention_backend", "algorithm"),
    Hook("override", f"{_PLATFORM}.get_speculative_worker_cls", "algorithm"),
    Hook("override", f"{_PLATFORM}.get_kv_pool_cls", "kind"),
    Hook("override", f"{_PLATFORM}.get_speculative_cache_locs_fn", ""),
    Hook("override", f"{_PLATFORM}.init_backend", ""),
    Hook("override", f"{_DEVICE}.get_torch_profiler_activity_str", ""),
    Hook("override", f"{_DEVICE}.get_torch_profiler_activity", ""),
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
        "sglang.srt.layers.quantization.unquant:UnquantizedEmbeddingMethod.embedding",
        "layer input_",
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
    Hook("override", f"{_OPS}.reject_sampling:chain_speculative_sampling_triton", _SAMPLER_ARGS),
    Hook("override", f"{_OPS}.sampling:tree_speculative_sampling_target_only", _SAMPLER_ARGS),
    Hook(
        "override",
        f"{_OPS}.cache_locs:fill_front_out_cache_loc_func",
        "num_front out_cache_loc front_out_cache_loc",
    ),
    Hook(
        "override",
        f"{_OPS}.eagle:fill_accept_out_cache_loc_func",
        "accept_index out_cache_loc accept_out_cache_loc size",
    ),
    Hook(
        "override",
        f"{_SPEC}.eagle_worker_common:duplicate_prefix_tail_to_draft_branches",
        "token_to_kv_pool rows prefix_base last_page num_new_pages topk page_size",
    ),
    Hook("override", f"{_ATTENTION}.base_attn_backend:AttentionBackend.verify_mask"),
    Hook("call", f"{_ATTENTION}.verify_mask:VerifyMask"),
    Hook("read", f"{_OPS}.spec_tree:TreeMaskMode.QLEN_ONLY"),
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
