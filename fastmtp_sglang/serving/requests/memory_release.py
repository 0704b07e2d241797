"""Memory is released and resumed in an order that SGLang survives; any other is refused.

Without --enable-memory-saver, and so on every CPU, SGLang empties its caches and frees nothing:
a server that is asked to make room goes on as before once it is asked to come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )

_TAGS = ("kv_cache", "weights", "cuda_graph")


def refuse_release(tags: list[str] | None, released: set[str], *, idle: bool) -> None:
    """Check a release of memory.

    Args:
        tags: what is to be released; None or empty for all.
        released: what is released already.
        idle: whether no request is running.

    Raises:
        FastMTPError: with the reason.
    """
    if twice := sorted(_known(tags) & released):
        raise FastMTPError(f"tags {twice} are released already.")
    if not idle:
        raise FastMTPError("Memory can be released only while no request is running.")


def refuse_resume(tags: list[str] | None, released: set[str]) -> None:
    """Check that what is to be resumed, `tags` as above, has been released.

    Raises:
        FastMTPError: with the reason.
    """
    if never := sorted(_known(tags) - released):
        raise FastMTPError(f"tags {never} have not been released.")


def install() -> None:
    """Let SGLang's scheduler check both, in this process; idempotent."""
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager as Manager,
    )

    release, resume = Manager.release_memory_occupation, Manager.resume_memory_occupation
    if release.__module__ == __name__:
        return

    def release_memory_occupation(manager: SchedulerWeightUpdaterManager, recv_req: Any) -> Any:
        paused = manager.scheduler is not None and manager.scheduler._engine_paused
        idle = manager.is_fully_idle(ignore_waiting=paused)
        refuse_release(recv_req.tags, manager.offload_tags, idle=idle)
        return release(manager, recv_req)

    def resume_memory_occupation(manager: SchedulerWeightUpdaterManager, recv_req: Any) -> Any:
        refuse_resume(recv_req.tags, manager.offload_tags)
        # SGLang takes the tags off one by one, so that one given twice is missing at the second.
        recv_req.tags = sorted(_known(recv_req.tags))
        return resume(manager, recv_req)

    Manager.release_memory_occupation = release_memory_occupation
    Manager.resume_memory_occupation = resume_memory_occupation


def _known(tags: list[str] | None) -> set[str]:
    if unknown := sorted(set(tags or ()) - set(_TAGS)):
        raise FastMTPError(f"tags {unknown} are none of {', '.join(_TAGS)}.")
    return set(tags or _TAGS)
