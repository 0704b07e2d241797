"""What the CPU platform uses of SGLang."""

from fastmtp_sglang.contract.hooks.hook import Hook

_SPEC = "sglang.srt.speculative"
_OPS = "sglang.kernels.ops.speculative"
_POOL = "sglang.srt.mem_cache.memory_pool"
_PLATFORM = "sglang.srt.platforms.interface:SRTPlatform"
_DEVICE = "sglang.srt.platforms.device_mixin:DeviceMixin"
_ATTENTION = "sglang.srt.layers.attention"
_LORA = "sglang.srt.lora"
_GEMMA = "sglang.srt.models.gemma3_causal"
_SAMPLER_ARGS = (
    "predicts accept_index accept_token_num candidates retrive_index retrive_next_token "
    "retrive_next_sibling uniform_samples uniform_samples_for_final_sampling target_probs "
    "draft_probs threshold_single threshold_acc deterministic"
)

HOOKS: tuple[Hook, ...] = (
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
    Hook("override", f"{_DEVICE}.get_torch_profiler_activity_str", ""),
    Hook("override", f"{_DEVICE}.get_torch_profiler_activity", ""),
    Hook("override", f"{_PLATFORM}.post_load_model", "model"),
    Hook("override", f"{_POOL}:MHATokenToKVPool._init_kv_copy_and_warmup", ""),
    Hook("override", f"{_POOL}:MHATokenToKVPool._move_kv_cache_impl", "tgt_loc src_loc"),
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
    Hook("override", "sglang.srt.models.utils:_reshape_for_qk_norm", "x head_dim"),
    # Gemma 3's layers by native operators.
    *(
        Hook(
            kind,
            f"{_GEMMA}:Gemma3Attention.{name}",
            "positions hidden_states position_embeddings forward_batch",
        )
        for kind, name in (("override", "forward"), ("call", "forward_cpu"))
    ),
    Hook("override", f"{_GEMMA}:Gemma3TextScaledWordEmbedding.forward", "input_ids"),
    Hook("read", f"{_GEMMA}:Gemma3TextModel"),
    Hook(
        "call",
        "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding._compute_inv_freq",
        "base",
    ),
    # Steps of ordinary batches.
    Hook("override", f"{_POOL}:MHATokenToKVPool._create_buffers", ""),
    Hook("override", f"{_SPEC}.eagle_worker_v2:EAGLEWorkerV2.init_cuda_graphs", ""),
    Hook(
        "call",
        f"{_SPEC}.spec_utils:select_top_k_tokens",
        "i topk_p topk_index hidden_states scores topk",
    ),
    *(
        Hook("read", f"sglang.srt.models.{model}.forward", "input_ids positions forward_batch")
        for model in (
            *("llama:LlamaForCausalLM", "qwen2:Qwen2ForCausalLM", "qwen3:Qwen3ForCausalLM"),
            "gemma3_causal:Gemma3ForCausalLM",
        )
    ),
    *(
        Hook("call", f"sglang.srt.{name}")
        for name in (
            *("managers.utils:GenerationBatchResult", "speculative.eagle_info:EagleVerifyInput"),
            "layers.logits_processor:LogitsProcessorOutput",
            "utils.async_probe:maybe_detect_inf",
            "utils.async_probe:maybe_detect_nan",
            "layers.dp_attention:is_dp_attention_enabled",
        )
    ),
    Hook("call", "sglang.srt.utils.common:fast_topk", "values topk dim"),
    Hook(
        "call",
        f"{_SPEC}.eagle_worker_common:_finalize_accept_tree_path",
        "batch accept_index accept_lens predict logits_output bs token_to_kv_pool_allocator "
        "num_draft_tokens",
    ),
    # The head's passes.
    Hook(
        "override",
        "sglang.srt.model_executor.model_runner:ModelRunner.forward",
        "forward_batch",
    ),
    Hook("call", "sglang.srt.model_executor.model_runner:ModelRunnerOutput"),
    Hook("call", "sglang.srt.model_executor.forward_context:has_forward_context", ""),
    # DP attention on it.
    Hook(
        "override",
        "sglang.srt.layers.dp_attention:memcpy_func",
    ),
    Hook(
        "call",
        "sglang.srt.layers.dp_attention:memcpy_cpu",
        "dst src dim offset sz offset_src",
    ),
    Hook("override", "sglang.srt.model_executor.forward_batch_info:_is_cpu"),
    *(
        Hook(
            kind,
            f"sglang.srt.distributed.parallel_state:GroupCoordinator.{begin}{name}",
            "output input",
        )
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor")
        for kind, begin in (("override", ""), ("call", "_"))
    ),
    # Adapters on it.
    Hook("call", f"{_LORA}.backend.lora_registry:register_lora_backend", "name"),
    Hook(
        "override",
        f"{_LORA}.backend.base_backend:BaseLoRABackend.validate_lora_targets",
        "base_model target_modules",
    ),
    Hook(
        "override",
        f"{_LORA}.backend.base_backend:BaseLoRABackend.forward_with_base",
        "layer x base_fn lora_a lora_b output_offset offsets all_reduce kind pruned_batch_info",
    ),
    Hook(
        "override",
        f"{_LORA}.backend.base_backend:BaseLoRABackend.prepare_lora_batch",
        "forward_batch weight_indices lora_ranks scalings use_decode_cuda_graph "
        "use_prefill_cuda_graph",
    ),
    Hook(
        "call",
        f"{_LORA}.backend.lmhead_mixing:LoRABackendLmHeadMixing._get_lm_head_pass_segments",
        "weight_indices pruned_lens",
    ),
    Hook("override", f"{_LORA}.lora_manager:LoRAManager.init_state"),
    Hook("override", f"{_LORA}.lora_manager:LoRAManager._notify_lora_slots_updated", "slot_ids"),
    Hook("call", f"{_LORA}.utils:generate_sequence_lengths", "forward_batch device"),
    Hook("call", f"{_LORA}.utils:get_lm_head_pruned_lens", "forward_batch"),
    Hook("read", f"{_LORA}.layers:ParallelLMHeadWithLoRA"),
    Hook("read", f"{_LORA}.layers:VocabParallelEmbeddingWithLoRA"),
    Hook("read", "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE"),
    # Sampling, seeds and deterministic inference on it.
    Hook(
        "override",
        "sglang.srt.layers.sampler:top_k_top_p_min_p_sampling_from_probs_torch",
        "probs top_ks top_ps min_ps need_min_p_sampling sampling_seed positions",
    ),
    Hook("override", "sglang.srt.layers.sampler:multinomial_with_seed", "logprobs seed positions"),
    Hook(
        "override",
        "sglang.kernels.ops.sampling.murmur_hash:murmur_hash32",
        "seed positions col_indices",
    ),
    Hook("read", "sglang.srt.arg_groups.choices:DETERMINISTIC_ATTENTION_BACKEND_CHOICES"),
    *(
        Hook("call", f"sglang.srt.arg_groups.choices:add_{kind}attention_backend_choices")
        for kind in ("deterministic_", "radix_supported_deterministic_")
    ),
    Hook(
        "override",
        "sglang.srt.batch_invariant_ops.batch_invariant_ops:enable_batch_invariant_mode",
        "enable_bmm",
    ),
)
