"""Profiles that SGLang's scheduler could not take or write are refused, and end no server.

SGLang writes a trace when the profile is stopped, or steps later by itself; what goes wrong there
is found out before it starts, or given up with a message in the log.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import ProfileReq
    from sglang.srt.managers.scheduler_components.profiler_manager import SchedulerProfilerManager

logger = logging.getLogger(__name__)

# By torch's profiler; the others of SGLang are tools for GPUs. It leaves out what is not there.
_ON_A_CPU = ("CPU", "GPU")


def refuse(call: ProfileReq, *, on_a_cpu: bool) -> None:
    """Check the start of a profile.

    Raises:
        FastMTPError: with the field, its value and the reason.
    """
    activities = call.activities
    if on_a_cpu and activities is not None:
        if unknown := [name for name in activities if name not in _ON_A_CPU]:
            raise FastMTPError(
                f'activities {unknown[0]!r} cannot be recorded on a CPU: give ["CPU"].'
            )
        if "CPU" not in activities:
            raise FastMTPError(f'activities {activities} records nothing on a CPU: give ["CPU"].')
    if call.profile_by_stage and not (call.num_steps and call.num_steps > 0):
        raise FastMTPError("profile_by_stage needs num_steps, the number of steps of each stage.")
    for field in ("profile_id", "profile_prefix"):
        name = getattr(call, field) or ""
        if name != Path(name).name or "\0" in name or len(name.encode()) > 100:
            raise FastMTPError(f"{field} {name[:40]!r} cannot be part of a file's name.")
    folder = call.output_dir or os.getenv("SGLANG_TORCH_PROFILER_DIR", "/tmp")
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
        writable = os.access(Path(folder).expanduser(), os.W_OK)
    except (OSError, ValueError, RuntimeError) as error:
        raise FastMTPError(f"output_dir {folder[:200]!r} cannot be made: {error}") from error
    if not writable:
        raise FastMTPError(f"output_dir {folder[:200]!r} is not writable.")


def abandon(manager: SchedulerProfilerManager) -> None:
    """Forget a profile that failed, so that another one can be started."""
    try:
        if manager.torch_profiler is not None:
            manager.torch_profiler.stop()
    except Exception:
        logger.exception("The profiler could not be stopped.")
    manager.torch_profiler = None
    manager.rpd_profiler = None
    manager.profile_in_progress = False
    manager.profile_by_stage = False
    manager.profiler_start_forward_ct = None
    manager.profiler_target_forward_ct = None


def install(*, on_a_cpu: bool) -> None:
    """Let the scheduler's profiles be checked, in this process; idempotent."""
    from sglang.srt.environ import envs
    from sglang.srt.managers.io_struct import ProfileReqType
    from sglang.srt.managers.scheduler_components.profiler_manager import SchedulerProfilerManager

    stock_call = SchedulerProfilerManager._profile
    stock_step = SchedulerProfilerManager._profile_batch_predicate
    # The other profiler keeps its state elsewhere.
    if stock_call.__module__ == __name__ or envs.SGLANG_PROFILE_V2.get():
        return

    def profile(manager: SchedulerProfilerManager, recv_req: ProfileReq) -> Any:
        if recv_req.req_type == ProfileReqType.START_PROFILE:
            refuse(recv_req, on_a_cpu=on_a_cpu)
        try:
            return stock_call(manager, recv_req)
        except Exception:
            abandon(manager)
            raise

    def profile_batch_predicate(manager: SchedulerProfilerManager, batch: Any) -> None:
        try:
            stock_step(manager, batch)
        except Exception:
            logger.exception("The profile is given up.")
            abandon(manager)

    SchedulerProfilerManager._profile = profile
    SchedulerProfilerManager._profile_batch_predicate = profile_batch_predicate
