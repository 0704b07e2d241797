"""What is refused at start-up and how it is said; what SGLang's own resolution makes of the rest.

Alone: pytest tests/contract/test_limits.py
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import tiny_models as models
from sglang.srt.arg_groups.overrides import resolution_result
from sglang.srt.server_args import ServerArgs

from fastmtp_sglang.contract import limits
from fastmtp_sglang.contract.limits import LIMITS, Limit
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import plugin

FIELDS = {field.name: field for field in msgspec.structs.fields(ServerArgs)}
DEFAULTS = {name: field.default for name, field in FIELDS.items()}
# Arguments of speculation in general that SGLang reads for our worker as for its own.
HONOURED = {
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_adaptive",
    "speculative_algorithm",
    "speculative_adaptive_config",
    "speculative_attention_mode",
    "speculative_boundary_reduction",
    "speculative_draft_attention_backend",
    "speculative_draft_kv_cache_dtype",
    "speculative_draft_load_format",
    "speculative_draft_model_path",
    "speculative_draft_model_quantization",
    "speculative_draft_model_revision",
    "speculative_draft_sink_size",
    "speculative_draft_window_size",
    "speculative_dsa_topk_backend",
    "speculative_token_map",
    "speculative_use_block_verification",
    "speculative_use_rejection_sampling",
    "speculative_enable_w4a4_mxfp4_megamoe",
    "speculative_moe_a2a_backend",
    "speculative_moe_runner_backend",
    "speculative_num_draft_tokens",
}


def arguments(**changes: Any) -> SimpleNamespace:
    """SGLang's defaults with some changes."""
    return SimpleNamespace(**{**DEFAULTS, **changes})


def refused_value(limit: Limit) -> Any:
    """A value that a user might give and that is not the default."""
    default = DEFAULTS[limit.field]
    if limit.field == "speculative_num_steps":
        return 0
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return 2 if limit.refused else "something"


def by_field(limit: Limit) -> str:
    return limit.field


@pytest.fixture(scope="module")
def flags() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser._option_string_actions


def test_a_limit_has_a_flag_that_sglang_knows(flags):
    known = {limit.flag: flags[limit.flag].dest for limit in LIMITS if limit.flag in flags}
    assert known == {limit.flag: limit.field for limit in LIMITS}


def test_no_argument_is_limited_twice():
    fields = [limit.field for limit in LIMITS]
    assert len(set(fields)) == len(fields)


def test_every_argument_of_speculation_is_honoured_or_refused():
    """A new one in SGLang must be put into one of the two sets before it can be ignored."""
    fields = {name for name in FIELDS if name.startswith("speculative_")}
    refused = {limit.field for limit in LIMITS}
    assert fields - refused == HONOURED


@pytest.mark.parametrize("limit", LIMITS, ids=by_field)
def test_a_refusal_says_flag_value_reason_and_remedy(limit):
    value = refused_value(limit)
    with pytest.raises(FastMTPError) as caught:
        limits.refuse(arguments(**{limit.field: value}))
    assert str(caught.value) == f"{limit.flag} {value} {limit.reason}. {limit.remedy}"
    assert limit.remedy.endswith(".")
    assert not limit.reason.endswith(".")


def test_a_default_is_never_refused():
    refused = [x.flag for x in LIMITS if x.applies(DEFAULTS[x.field]) or x.applies(None)]
    assert refused == []


def test_sglangs_defaults_pass():
    limits.refuse(arguments())


@pytest.mark.parametrize(
    "changes",
    [
        {"speculative_num_steps": 1},
        {"speculative_num_steps": 7},
        {"speculative_num_steps": 1, "speculative_num_draft_tokens": 2},
        {"speculative_eagle_topk": 1},
        {"speculative_eagle_topk": 8},
        {"speculative_eagle_topk": 8, "speculative_num_draft_tokens": 64},
        {"speculative_accept_threshold_single": 1.0},
        {"pp_size": 1},
    ],
    ids=str,
)
def test_what_fits_passes(changes):
    limits.refuse(arguments(**changes))


def test_a_pipeline_needs_sglangs_switch(monkeypatch):
    with pytest.raises(FastMTPError, match=r"--pp-size 2 needs .* SGLANG_ENABLE_PP_SPEC=1"):
        limits.refuse(arguments(pp_size=2))
    monkeypatch.setenv("SGLANG_ENABLE_PP_SPEC", "1")
    limits.refuse(arguments(pp_size=2))
    for others in ({"speculative_adaptive": True}, {"disaggregation_mode": "prefill"}):
        with pytest.raises(FastMTPError, match="does not work with"):
            limits.refuse(arguments(pp_size=2, **others))


@pytest.mark.parametrize("value", [0, -1])
def test_no_steps_are_refused(value):
    with pytest.raises(FastMTPError, match=f"--speculative-num-steps {value} must be at least 1"):
        limits.refuse(arguments(speculative_num_steps=value))


@pytest.mark.parametrize(("steps", "tokens"), [(3, 3), (3, 5), (1, 4)])
def test_draft_tokens_must_follow_from_the_steps(steps, tokens):
    given = arguments(speculative_num_steps=steps, speculative_num_draft_tokens=tokens)
    with pytest.raises(FastMTPError, match=r"K steps verifies K \+ 1 tokens") as caught:
        limits.refuse(given)
    assert str(caught.value).startswith(f"--speculative-num-draft-tokens {tokens} does not follow")
    assert "Leave it out, or draft a tree" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 9, None), "--speculative-eagle-topk 9 must be 1 .a chain. to 8"),
        ((3, 0, None), "--speculative-eagle-topk 0 must be 1"),
        ((3, 4, 3), "--speculative-num-draft-tokens 3 is too small for --speculative-num-steps 3"),
        ((2, 2, 8), "8 is too large: more than the 6 tokens that 2 steps .* Give at most 7"),
        ((5, 8, 65), "65 is too large: more rows than a tree's mask has bits. Give at most 64"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(shape, message):
    steps, topk, rows = shape
    given = arguments(
        speculative_num_steps=steps,
        speculative_eagle_topk=topk,
        speculative_num_draft_tokens=rows,
    )
    with pytest.raises(FastMTPError, match=message):
        limits.refuse(given)


@pytest.mark.parametrize(
    "drawn", ["speculative_use_rejection_sampling", "speculative_use_block_verification"]
)
def test_drawn_drafts_are_those_of_a_chain_of_fixed_length(drawn):
    limits.refuse(arguments(**{drawn: True}))
    for other in ({"speculative_eagle_topk": 4}, {"speculative_adaptive": True}):
        limits.refuse(arguments(**other))
        with pytest.raises(FastMTPError, match=f"does not work with {limits.flag_of(drawn)}"):
            limits.refuse(arguments(**{drawn: True}, **other))


@pytest.mark.parametrize(
    ("field", "value"),
    [("enable_dp_attention", True), ("enable_two_batch_overlap", True), ("enable_pdmux", True)],
)
def test_adaptive_shapes_refuse_what_it_cannot_follow(field, value):
    limits.refuse(arguments(**{field: value}))
    limits.refuse(arguments(speculative_adaptive=True))
    flag = "--" + field.replace("_", "-")
    with pytest.raises(FastMTPError, match=f"--speculative-adaptive .* {flag} {value} yet"):
        limits.refuse(arguments(speculative_adaptive=True, **{field: value}))


# --- SGLang's resolution, up to where it would read weights ---


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """plain: a Qwen2 target; head: one for it; mimo: both in one checkpoint."""
    root = tmp_path_factory.mktemp("limits")
    plain = models.target(root / "plain", "qwen2")
    models.as_mimo(plain, models.random_head(plain, root / "head"), root / "mimo")
    return root


def resolve(*command_line: str) -> ServerArgs:
    """As `sglang serve` does before it starts a process; what it logs goes to pytest."""
    plugin.register()
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = ("--dtype", "float32", "--speculative-algorithm", "fastmtp", *command_line)
    args = ServerArgs.from_cli_args(parser.parse_args(flags))
    args.resolve_once()
    return args


def resolved(args: ServerArgs, *fields: str) -> list[Any]:
    return [resolution_result(args, f"speculative_{field}") for field in fields]


@pytest.mark.heavy
def test_defaults_for_a_native_head(directory):
    args = resolve("--model-path", str(directory / "mimo"), "--revision", "main")
    assert resolved(args, "num_steps", "eagle_topk", "num_draft_tokens") == [3, 1, 4]
    paths = resolved(args, "draft_model_path", "draft_model_revision")
    assert paths == [str(directory / "mimo"), "main"]
    assert resolution_result(args, "max_running_requests") == 48


def test_given_values_stay(directory):
    args = resolve(
        *("--model-path", str(directory / "plain")),
        *("--speculative-draft-model-path", str(directory / "head")),
        *("--speculative-num-steps", "2", "--speculative-num-draft-tokens", "3"),
        *("--max-running-requests", "5"),
    )
    assert resolved(args, "num_steps", "eagle_topk", "num_draft_tokens") == [2, 1, 3]
    assert resolved(args, "draft_model_path") == [str(directory / "head")]
    assert resolution_result(args, "max_running_requests") == 5


def test_trees(directory):
    tree = ("--speculative-eagle-topk", "4", "--model-path", str(directory / "mimo"))
    args = resolve(*tree)
    assert resolved(args, "num_steps", "eagle_topk", "num_draft_tokens") == [3, 4, 16]
    rows = ("--speculative-num-steps", "2", "--speculative-num-draft-tokens", "9")
    args = resolve(*tree, *rows, "--page-size", "16")
    assert resolved(args, "num_steps", "eagle_topk", "num_draft_tokens") == [2, 4, 9]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_adaptive_k_starts_at_the_largest(directory, caplog, steps):
    """SGLang's own policy would have wanted 0, 1, 3, 5 or 7, and warns that it is off."""
    flags = ("--speculative-adaptive", "--speculative-num-steps", str(steps))
    args = resolve("--model-path", str(directory / "mimo"), *flags)
    assert resolved(args, "adaptive", "num_steps", "num_draft_tokens") == [True, steps, steps + 1]
    assert "speculative_adaptive disabled" not in caplog.text
    fixed = resolve("--model-path", str(directory / "mimo"))
    assert not resolution_result(fixed, "speculative_adaptive")


@pytest.mark.heavy
def test_a_head_of_its_own_for_a_target_with_a_native_one(directory):
    """The given head wins over the target's layer."""
    args = resolve(
        *("--model-path", str(directory / "mimo")),
        *("--speculative-draft-model-path", str(directory / "head")),
    )
    assert resolved(args, "draft_model_path") == [str(directory / "head")]


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("mimo", ["--speculative-num-steps", "0"], "--speculative-num-steps 0 must be at least 1"),
        ("mimo", ["--speculative-eagle-topk", "9"], "--speculative-eagle-topk 9 must be 1"),
        ("mimo", ["--is-embedding"], "--is-embedding True makes a server that generates no"),
        (
            "mimo",
            ["--speculative-ngram-capacity", "7"],
            "--speculative-ngram-capacity 7 is an argument of NGRAM and would be ignored",
        ),
        ("plain", [], "--speculative-draft-model-path is missing and .*/plain .Qwen2ForCausalLM"),
        (
            "mimo",
            ["--speculative-draft-model-path", "{}/plain"],
            "--speculative-draft-model-path .*/plain holds Qwen2ForCausalLM, which is no MTP head",
        ),
    ],
    ids=["no steps", "tree", "embedding", "other algorithm", "no head", "no MTP head"],
)
def test_our_refusals_end_the_resolution(directory, model, flags, message):
    flags = [flag.format(directory) for flag in flags]
    with pytest.raises(FastMTPError, match=message):
        resolve("--model-path", str(directory / model), *flags)


@pytest.mark.parametrize(
    ("backend", "page_size", "device", "refused"),
    [
        ("trtllm_mha", 1, "cuda", True),
        ("fa3", 64, "cuda", False),
        ("flashmla", 64, "cuda", True),
        ("flashmla", 1, "cuda", False),
        ("torch_native", 16, "cpu", False),
    ],
)
def test_attention_that_knows_chains_only(backend, page_size, device, refused):
    given = arguments(attention_backend=backend, page_size=page_size, device=device)
    limits.refuse_attention(given, limits.TreeShape.of(3))
    if not refused:
        limits.refuse_attention(given, limits.TreeShape.of(3, 4))
        return
    with pytest.raises(FastMTPError, match=f"--attention-backend {backend} .* chains only"):
        limits.refuse_attention(given, limits.TreeShape.of(3, 4))
