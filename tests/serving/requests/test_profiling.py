"""A profile that could not be taken or written is refused before it starts.

Alone: pytest tests/serving/requests/test_profiling.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.io_struct import ProfileReq
from sglang.srt.managers.scheduler_components.profiler_manager import SchedulerProfilerManager

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.requests import profiling


@pytest.mark.parametrize("activities", [None, ["CPU"], ["GPU", "CPU"]])
def test_what_a_cpu_records(activities, tmp_path):
    folder = tmp_path / "new" / "traces"
    profiling.refuse(ProfileReq(activities=activities, output_dir=str(folder)), on_a_cpu=True)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        *(
            ({"activities": ["CPU", name]}, f"'{name}' cannot be recorded on a CPU")
            for name in ("MEM", "RPD", "CUDA_PROFILER", "nonsense")
        ),
        ({"activities": ["GPU"]}, "records nothing on a CPU"),
        ({"activities": []}, "records nothing on a CPU"),
        ({"profile_by_stage": True}, "needs num_steps"),
        ({"profile_by_stage": True, "num_steps": -1}, "needs num_steps"),
        ({"profile_prefix": "a/b"}, "profile_prefix 'a/b' cannot be part"),
        ({"profile_id": "\0"}, "profile_id"),
        ({"profile_id": "x" * 300}, "profile_id"),
        ({"output_dir": "/proc/x/y"}, "output_dir '/proc/x/y' cannot be made"),
        ({"output_dir": "a\0b"}, "cannot be made"),
    ],
)
def test_what_is_refused(fields, reason, tmp_path):
    call = ProfileReq(**{"output_dir": str(tmp_path), **fields})
    with pytest.raises(FastMTPError) as refused:
        profiling.refuse(call, on_a_cpu=True)
    assert reason in str(refused.value)


def test_a_gpu_has_other_activities(tmp_path):
    profiling.refuse(ProfileReq(activities=["MEM"], output_dir=str(tmp_path)), on_a_cpu=False)


def test_a_profile_that_fails_is_given_up(monkeypatch, tmp_path):
    stopped = []

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(SchedulerProfilerManager, "_profile", fail)
    monkeypatch.setattr(SchedulerProfilerManager, "_profile_batch_predicate", fail)
    profiling.install(on_a_cpu=True)
    profiling.install(on_a_cpu=True)
    manager = SimpleNamespace()
    for step in (
        SchedulerProfilerManager._profile,
        SchedulerProfilerManager._profile_batch_predicate,
    ):
        manager.torch_profiler = SimpleNamespace(stop=lambda: stopped.append(True))
        manager.profile_in_progress = True
        call = ProfileReq(output_dir=str(tmp_path))
        if step.__name__ == "profile":
            with pytest.raises(OSError, match="disk full"):
                step(manager, call)
        else:
            step(manager, None)
        assert (manager.torch_profiler, manager.profile_in_progress) == (None, False)
    assert stopped == [True, True]
