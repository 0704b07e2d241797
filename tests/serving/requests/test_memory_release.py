"""Memory is released once and resumed once.

Alone: pytest tests/serving/requests/test_memory_release.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.requests.memory_release import install, refuse_release, refuse_resume


@pytest.mark.parametrize("tags", [None, [], ["kv_cache"], ["weights", "cuda_graph"]])
def test_what_passes(tags):
    refuse_release(tags, set(), idle=True)
    refuse_resume(tags, {"kv_cache", "weights", "cuda_graph"})


@pytest.mark.parametrize(
    ("tags", "released", "idle", "reason"),
    [
        (["weights", "x"], set(), True, "tags ['x'] are none of kv_cache, weights, cuda_graph"),
        (None, {"weights"}, True, "tags ['weights'] are released already"),
        (["kv_cache"], set(), False, "only while no request is running"),
    ],
)
def test_refused_releases(tags, released, idle, reason):
    with pytest.raises(FastMTPError) as refused:
        refuse_release(tags, released, idle=idle)
    assert reason in str(refused.value)


@pytest.mark.parametrize(("tags", "released"), [(None, set()), (["weights"], {"kv_cache"})])
def test_what_was_never_released(tags, released):
    with pytest.raises(FastMTPError, match="have not been released"):
        refuse_resume(tags, released)
    assert released == released & {"kv_cache"}


def test_sglang_is_asked_only_then(monkeypatch):
    asked = []
    for name in ("release_memory_occupation", "resume_memory_occupation"):
        monkeypatch.setattr(
            SchedulerWeightUpdaterManager, name, lambda manager, call: asked.append(call.tags)
        )
    install()
    install()
    manager = SimpleNamespace(scheduler=None, offload_tags=set(), is_fully_idle=lambda **_: True)
    SchedulerWeightUpdaterManager.release_memory_occupation(manager, SimpleNamespace(tags=None))
    call = SimpleNamespace(tags=["weights", "weights"])
    with pytest.raises(FastMTPError):
        SchedulerWeightUpdaterManager.resume_memory_occupation(manager, call)
    manager.offload_tags = {"weights"}
    SchedulerWeightUpdaterManager.resume_memory_occupation(manager, call)
    assert asked == [None, ["weights"]]
