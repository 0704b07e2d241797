"""All that keeps one request or call from ending a server, put in place in each process once.

Both FASTMTP, on any device, and the CPU platform, with any algorithm, ask for it. `GUARDED` is the
list of it for docs/limits.md: what ends SGLang 0.5.23 alone, on any device.
"""

from fastmtp_sglang.serving.requests import control_calls, request_limits

# What is asked for, what the server says here, and where it was reported (none: found by trying).
GUARDED = (
    (
        "a field of another type than SGLang declares, such as `positional_embed_overrides` or "
        "`custom_params`",
        "400, with the name of the field",
        "sglang#4574",
    ),
    ("`top_logprobs` above the size of the vocabulary", "400", ""),
    ("`custom_logit_processor` that is no processor", "400", ""),
    ("`stop_regex` that is no regular expression", "400; SGLang alone: 500", ""),
    ("a session of which `replace` rewrites all", "works", ""),
    (
        "`/update_weights_from_disk` with a folder that does not fit, or cannot be read",
        "400; the model stays as it was",
        "slime#1177",
    ),
    (
        "`/release_memory_occupation` while busy or twice, `/resume_memory_occupation` of what was "
        "not released",
        "400",
        "sglang#24123",
    ),
    ("`/start_expert_distribution_record` without --expert-distribution-recorder-mode", "400", ""),
    (
        "`/start_profile` with activities of another device, a folder that cannot be made, or "
        "`profile_by_stage` without `num_steps`",
        "400",
        "",
    ),
    ("`/slow_down` by more than `time.sleep` takes", "400", ""),
    (
        "any other administrative call that raises in the scheduler",
        "400 on a server of one rank; with several, SGLang ends as it does alone",
        "",
    ),
)


def install_in_tokenizer_manager() -> None:
    """In the process that takes requests; idempotent."""
    request_limits.install()
    control_calls.install_in_tokenizer_manager()


def install_in_scheduler(*, on_a_cpu: bool) -> None:
    """In each of the scheduler's processes, before it is built; idempotent."""
    from fastmtp_sglang.serving import weight_updates
    from fastmtp_sglang.serving.requests import memory_release, profiling, sessions

    control_calls.install_in_scheduler()
    memory_release.install()
    profiling.install(on_a_cpu=on_a_cpu)
    sessions.install()
    weight_updates.install(on_a_cpu=on_a_cpu)
