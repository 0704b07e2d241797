"""What the CPU platform refuses at start-up.

Alone: pytest tests/serving/cpu/test_platform.py
"""

import pytest
import tiny_models as models
import torch
from sglang.srt.server_args import ServerArgs

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import plugin

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="not our platform")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return models.target(tmp_path_factory.mktemp("platform") / "target")


@pytest.mark.parametrize("algorithm", [None, "fastmtp", "NEXTN"])
@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        (
            {"enable_deterministic_inference": True},
            "--enable-deterministic-inference True samples from each request's sampling_seed",
        ),
        (
            {"rl_on_policy_target": "fsdp"},
            "--rl-on-policy-target fsdp samples from each request's sampling_seed",
        ),
        (
            {"enable_hierarchical_cache": True},
            "--enable-hierarchical-cache True copies the KV cache between GPU and host memory",
        ),
        (
            {"enable_dp_attention": True, "tp_size": 2, "dp_size": 2},
            "--attn-dp-size 2 pads batches",
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


def test_nothing_else_is(target):
    ServerArgs(model_path=str(target), random_seed=7).resolve_once()
