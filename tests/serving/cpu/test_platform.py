"""What the CPU platform refuses at start-up, and that SGLang's whole platform interface is there.

Alone: pytest tests/serving/cpu/test_platform.py
"""

import inspect
from collections.abc import Iterator

import pytest
import tiny_models as models
import torch
from sglang.srt.arg_groups.overrides import resolution_result
from sglang.srt.platforms.device_mixin import DeviceMixin
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.server_args import ServerArgs

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import plugin
from fastmtp_sglang.serving.cpu.platform import FastMTPCpuPlatform

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="not our platform")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return models.target(tmp_path_factory.mktemp("platform") / "target")


@pytest.mark.parametrize("algorithm", [None, "fastmtp", "NEXTN"])
@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        (
            {"rl_on_policy_target": "fsdp"},
            "--rl-on-policy-target fsdp reproduces the bits of a trainer's GPU kernels",
        ),
        ({"lora_backend": "triton"}, "--lora-backend triton has kernels of a GPU only"),
        (
            {"enable_lora": True, "enable_lora_overlap_loading": True},
            "--enable-lora-overlap-loading True copies adapters in a stream of a GPU",
        ),
        (
            {"enable_hierarchical_cache": True},
            "--enable-hierarchical-cache True copies the KV cache between GPU and host memory",
        ),
    ],
)
def test_what_has_no_operator_here_is_refused(target, algorithm, arguments, begin):
    """By SGLang's own resolution of its arguments, before any weight is read."""
    plugin.register()
    args = ServerArgs(model_path=str(target), speculative_algorithm=algorithm, **arguments)
    with pytest.raises(FastMTPError) as caught:
        args.resolve_once()
    message = str(caught.value)
    assert message.startswith(begin)
    assert "Remove it" in message


@pytest.mark.parametrize("algorithm", [None, "NEXTN"])
def test_deterministic_inference_runs_on_our_attention(target, algorithm):
    """With the prefix cache: what it holds has the bits that are computed anew."""
    plugin.register()
    args = ServerArgs(
        model_path=str(target),
        speculative_algorithm=algorithm,
        enable_deterministic_inference=True,
    )
    args.resolve_once()
    assert resolution_result(args, "attention_backend") == "torch_native"
    assert resolution_result(args, "sampling_backend") == "pytorch"
    assert not resolution_result(args, "disable_radix_cache")


def test_nothing_else_is(target):
    ServerArgs(model_path=str(target), random_seed=7).resolve_once()


# --- the interface ---

ARGUMENTS = {"algorithm": "FASTMTP", "device": torch.device("cpu"), "backend": "torch_native"}


def without_default() -> Iterator[str]:
    """The methods of SGLang's interface that raise unless a platform has its own."""
    for interface in (DeviceMixin, SRTPlatform):
        for name, function in vars(interface).items():
            if "NotImplementedError" in getattr(
                getattr(function, "__code__", None), "co_names", ()
            ):
                yield name


def test_such_methods_are_found():
    found = set(without_default())
    assert {"get_torch_profiler_activity", "get_default_attention_backend"} <= found
    assert len(found) > 10


@pytest.mark.parametrize("name", without_default())
def test_every_method_without_a_default_answers(name):
    method = getattr(FastMTPCpuPlatform(), name)
    needed = [
        parameter.name
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty
    ]
    answer = method(**{parameter: ARGUMENTS[parameter] for parameter in needed})
    # Neither says anything: set_device does, and a CPU has no compute capability.
    assert (answer is None) == (name in ("set_device", "get_device_capability"))


def test_what_may_be_absent_is_not_promised():
    """SGLang refuses a platform without these classes where its capabilities say they are there."""
    platform = FastMTPCpuPlatform()
    assert (platform.get_graph_runner_cls() is not None) >= platform.capabilities.graph_capture
    piecewise = platform.get_piecewise_backend_cls()
    assert (piecewise is not None) >= platform.capabilities.piecewise_graph


def test_a_profile_is_of_the_cpu():
    platform = FastMTPCpuPlatform()
    activity = platform.get_torch_profiler_activity()
    assert getattr(torch.profiler.ProfilerActivity, platform.get_torch_profiler_activity_str()) is (
        activity
    )
    with torch.profiler.profile(activities=[activity]) as profile:
        torch.ones(2).add(1)
    assert any(event.key == "aten::add" for event in profile.key_averages())


def test_torch_means_the_cpu_where_no_device_is_named(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", torch.get_device_module)
    FastMTPCpuPlatform().init_backend()
    assert torch.get_device_module() is torch.cpu
    assert torch.get_device_module("cuda") is torch.cuda
