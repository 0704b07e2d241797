"""What the handling of requests, and of a running server, uses of SGLang."""

from fastmtp_sglang.contract.hooks.hook import Hook

_OPENAI = "sglang.srt.entrypoints.openai"
_MANAGER = "sglang.srt.managers.tokenizer_manager:TokenizerManager"
_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_SCHEDULER_PARTS = "sglang.srt.managers.scheduler_components"
_IO = "sglang.srt.managers.io_struct"
_LOADER = "sglang.srt.model_loader.loader"

HOOKS: tuple[Hook, ...] = (
    # Requests.
    Hook(
        "override",
        f"{_MANAGER}._validate_one_request",
        "obj input_ids",
    ),
    Hook(
        "override",
        f"{_MANAGER}._calculate_spec_decoding_metrics",
        "meta_info recv_obj i",
    ),
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
    Hook(
        "call",
        f"{_OPENAI}.serving_chat:OpenAIServingChat._tool_call_parsing_active",
        "request",
    ),
    Hook("call", f"{_OPENAI}.serving_chat:OpenAIServingChat._encoding_output", ""),
    Hook("call", "sglang.srt.runtime_context:get_serving", ""),
    Hook("call", "sglang.utils:find_printable_text", "text"),
    # Adapters.
    Hook(
        "override",
        "sglang.srt.arg_groups.lora_hook:check_lora_speculative_compatibility",
        "server_args",
    ),
    Hook("override", "sglang.srt.arg_groups.model_override_base:resolving_view", "server_args"),
    # Tokenizer workers.
    Hook("override", "sglang.srt.entrypoints.http_server:init_multi_tokenizer", ""),
    Hook("read", "sglang.srt.entrypoints.http_server:app"),
    Hook("call", "sglang.srt.plugins:load_plugins", ""),
    Hook("read", "sglang.srt.environ:Envs.SGLANG_HTTP_SERVER_APP_PATH"),
    Hook(
        "call",
        "sglang.srt.sampling.custom_logit_processor:CustomLogitProcessor.from_str",
        "json_str",
    ),
)
