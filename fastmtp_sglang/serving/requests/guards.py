"""All that keeps one request or call from ending a server, put in place in each process once.

Both FASTMTP, on any device, and the CPU platform, with any algorithm, ask for it.
"""

from fastmtp_sglang.serving.requests import control_calls, request_limits


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
