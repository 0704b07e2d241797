"""What SGLang learns from us, and what we refuse, before any weight is read."""

import pytest
import tiny_models as models
from sglang.srt.server_args import ServerArgs

from fastmtp_sglang.contract import compat, limits
from fastmtp_sglang.contract.hooks import Hook
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.plugin import register


@pytest.fixture(scope="module")
def mimo(tmp_path_factory):
    root = tmp_path_factory.mktemp("startup")
    plain = models.target(root / "plain", "qwen2")
    head = models.random_head(plain, root / "head")
    models.as_mimo(plain, head, root / "mimo")
    return root


def resolve(root, model="mimo", **arguments) -> ServerArgs:
    register()
    args = ServerArgs(
        model_path=str(root / model), speculative_algorithm="fastmtp", dtype="float32", **arguments
    )
    args.resolve_once()
    return args


def resolved(args: ServerArgs, field: str):
    from sglang.srt.arg_groups.overrides import resolution_result

    return resolution_result(args, field)


def test_installed_sglang_has_every_hook():
    assert [str(mismatch) for mismatch in compat.check()] == []


@pytest.mark.parametrize(
    ("hook", "found"),
    [
        (Hook("call", "sglang.srt.nowhere:f", ""), "the module is missing"),
        (Hook("call", "sglang.srt.speculative.spec_registry:gone", ""), "missing"),
        (Hook("call", "sglang.srt.speculative.spec_registry:get_spec", "nom"), "now takes (name)"),
        (
            Hook("call", "sglang.srt.speculative.spec_registry:CustomSpecAlgo", ""),
            "no longer a function",
        ),
    ],
)
def test_mismatch_is_named_and_nothing_is_registered(monkeypatch, caplog, hook, found):
    from sglang.srt.speculative import spec_registry

    monkeypatch.setattr(compat, "HOOKS", (hook,))
    monkeypatch.setattr(spec_registry, "_REGISTRY", {})
    register()
    assert spec_registry._REGISTRY == {}
    message = caplog.text
    assert "does not know SGLang 0.5." in message
    assert hook.path in message
    assert found in message
    assert "pip install" in message


def test_registration_is_idempotent_and_complete():
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    register()
    algorithm = SpeculativeAlgorithm.from_string("fastmtp")
    register()
    assert SpeculativeAlgorithm.from_string("FASTMTP") is algorithm
    assert algorithm.is_eagle()
    public = {n for n, v in vars(SpeculativeAlgorithm).items() if callable(v) and n[0] != "_"}
    builtin = set(dir(SpeculativeAlgorithm.EAGLE)) & public
    assert builtin - set(dir(algorithm)) <= {"from_string", "register"}


def test_defaults(mimo):
    args = resolve(mimo)
    assert resolved(args, "speculative_num_steps") == 3
    assert resolved(args, "speculative_eagle_topk") == 1
    assert resolved(args, "speculative_num_draft_tokens") == 4
    assert resolved(args, "speculative_draft_model_path") == str(mimo / "mimo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speculative_num_steps": 0}, "--speculative-num-steps 0 must be at least 1"),
        ({"speculative_eagle_topk": 4}, "--speculative-eagle-topk 4 must be 1"),
        (
            {"speculative_num_steps": 3, "speculative_num_draft_tokens": 8},
            "--speculative-num-draft-tokens 8 does not follow",
        ),
        ({"speculative_token_map": "ids.pt"}, "ids.pt: no such file. It is a local path"),
        (
            {"speculative_adaptive": True, "tp_size": 2},
            "--speculative-adaptive does not work with --tp-size 2",
        ),
        (
            {"speculative_dflash_block_size": 16},
            "--speculative-dflash-block-size 16 is an argument of DFLASH",
        ),
        (
            {"speculative_accept_threshold_single": 0.5},
            "--speculative-accept-threshold-single 0.5 would accept tokens",
        ),
    ],
)
def test_refused_argument(mimo, arguments, message):
    with pytest.raises(FastMTPError, match=message):
        resolve(mimo, **arguments)


@pytest.mark.parametrize(
    "flags",
    [{"enable_dp_attention": True, "tp_size": 2, "dp_size": 2}, {"attn_dp_size": 2, "tp_size": 2}],
    ids=["old spelling", "new spelling"],
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speculative_token_map": "ids.pt"}, "ids.pt does not work with --attn-dp-size 2"),
        ({"speculative_adaptive": True}, "--speculative-adaptive does not work with --"),
    ],
)
def test_dp_attention_by_either_name(monkeypatch, mimo, flags, arguments, message):
    """SGLang turns the old flag into the new one before it asks us."""
    monkeypatch.setattr(limits, "ON_A_CPU", ())  # which refuses it without speculation too
    with pytest.raises(FastMTPError, match=message):
        resolve(mimo, **flags, **arguments)


def test_every_limit_names_a_real_argument():
    fields = set(ServerArgs.__struct_fields__)
    every = (*limits.LIMITS, *limits.ON_A_CPU)
    assert {limit.field for limit in every} <= fields
    assert {field for field, _ in limits.NOT_ADAPTIVE} <= fields
    assert not any(limit.applies(limits._defaults()[limit.field]) for limit in every)


def test_target_without_head_needs_a_draft(mimo):
    with pytest.raises(FastMTPError, match="has no MTP layer of its own"):
        resolve(mimo, "plain")


def test_missing_head_tensors(mimo):
    with pytest.raises(FastMTPError, match="--speculative-draft-model-path is missing"):
        resolve(mimo, "plain")
    (mimo / "stripped").mkdir()
    for file in (mimo / "mimo").iterdir():
        source = mimo / "plain" if file.suffix == ".safetensors" else mimo / "mimo"
        (mimo / "stripped" / file.name).write_bytes((source / file.name).read_bytes())
    with pytest.raises(FastMTPError, match=r"lacks the head's tensors model\.mtp_layers\.0"):
        resolve(mimo, "stripped")


def test_head_of_another_target(mimo, tmp_path):
    import json
    import shutil

    for field, value, message in (
        ("hidden_size", 128, "has hidden size 128, its target"),
        ("vocab_size", 1000, "has vocabulary size 1000, its target"),
        ("tokenizer_fingerprint", "sha256:0", "was made for a tokenizer with fingerprint"),
    ):
        copy = tmp_path / field
        shutil.copytree(mimo / "head", copy)
        config = json.loads((copy / "config.json").read_text()) | {field: value}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(FastMTPError, match=message):
            resolve(mimo, "plain", speculative_draft_model_path=str(copy))
