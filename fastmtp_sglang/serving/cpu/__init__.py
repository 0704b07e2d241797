"""SGLang on a machine without an accelerator: the platform, its attention and its torch ops.

`activate` is our entry point in the group `sglang.srt.platforms`. SGLang calls it in every process
before it chooses a device, so it imports nothing but torch (which SGLang has imported already) and
answers None, "not mine", whenever anybody else could serve the machine.
"""

import logging
import multiprocessing
import os
from importlib.metadata import entry_points
from pathlib import Path

logger = logging.getLogger(__name__)

PLATFORM_NAME = "fastmtp_cpu"
PLATFORM_CLASS = "fastmtp_sglang.serving.cpu.platform.FastMTPCpuPlatform"
SWITCH = "FASTMTP_CPU"


def activate() -> str | None:
    """Return the path of our CPU platform class, or None where the machine is not ours to serve.

    None when `FASTMTP_CPU=0`, when the user chose SGLang's own CPU engine
    (`SGLANG_USE_CPU_ENGINE=1`), when torch sees an accelerator, or when another platform plugin
    claims the machine.
    """
    if os.environ.get(SWITCH, "1") == "0" or os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    import torch

    if torch.accelerator.is_available() or _claimed_by_another_plugin():
        return None
    # OpenMP's threads spin for milliseconds at every barrier unless told otherwise: one other busy
    # process then slows two threads tenfold. Some 0.1 ms cover the gaps between torch's operators.
    # OpenMP reads it when it is loaded, so it reaches SGLang's scheduler, not this process.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if multiprocessing.parent_process() is None:
        _compile_ahead()
    return PLATFORM_CLASS


def _compile_ahead() -> None:
    """Let what is compiled be compiled beside SGLang's imports, which keep one core busy."""
    from fastmtp_sglang.serving.cpu.native.ahead import compile_ahead
    from fastmtp_sglang.serving.cpu.native.compiled import cache_folder

    if (folder := cache_folder()) is not None:
        compile_ahead(Path(folder))


def _claimed_by_another_plugin() -> bool:
    """Whether another installed platform plugin answers for this machine."""
    from sglang.srt.plugins import PLATFORM_PLUGINS_GROUP

    for entry_point in entry_points(group=PLATFORM_PLUGINS_GROUP):
        if entry_point.name == PLATFORM_NAME:
            continue
        try:
            claimed = entry_point.load()()
        except Exception as error:
            # SGLang will call it too and report it; a plugin that cannot start claims nothing.
            logger.debug("platform plugin %s did not answer: %s", entry_point.name, error)
            continue
        if claimed is not None:
            return True
    return False
