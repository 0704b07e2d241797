"""What SGLang learns from us at its start, and what we refuse before any weight is read.

Alone: pytest tests/serving/test_algorithm.py
"""

import ast
import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import sglang
import tiny_models as models
import torch
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from fastmtp_sglang.contract import limits
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import algorithm as algorithm_module
from fastmtp_sglang.serving.plugin import register

pytestmark = pytest.mark.heavy

SGLANG = Path(sglang.__file__).parent


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
        ({"speculative_eagle_topk": 9}, "--speculative-eagle-topk 9 must be 1 .* to 8"),
        (
            {"speculative_eagle_topk": 8, "speculative_num_steps": 9},
            "--speculative-eagle-topk 8 with --speculative-num-steps 9 drafts into 72 cache slots",
        ),
        (
            {"speculative_num_steps": 3, "speculative_num_draft_tokens": 8},
            "--speculative-num-draft-tokens 8 does not follow",
        ),
        ({"speculative_token_map": "ids.pt"}, "ids.pt: no such file. It is a local path"),
        (
            {"speculative_adaptive": True, "enable_pdmux": True},
            "--speculative-adaptive does not work with --enable-pdmux True",
        ),
        (
            {"speculative_adaptive": True, "speculative_adaptive_config": "none.json"},
            "--speculative-adaptive-config none.json: .* No such file",
        ),
        (
            {"speculative_adaptive_config": "table.json"},
            "table.json says what --speculative-adaptive chooses among",
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
def test_dp_attention_by_either_name(monkeypatch, mimo, flags):
    """SGLang turns the old flag into the new one before it asks us."""
    monkeypatch.setattr(limits, "ON_A_CPU", ())  # which refuses it without speculation too
    with pytest.raises(FastMTPError, match="--speculative-adaptive does not work with --"):
        resolve(mimo, **flags, speculative_adaptive=True)


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


@pytest.mark.parametrize("name", ["fastmtp", "FASTMTP", "FastMTP"])
def test_any_spelling_of_the_name(name):
    register()
    assert SpeculativeAlgorithm.from_string(name) is SpeculativeAlgorithm.from_string("fastmtp")


def test_a_member_of_the_eagle_family():
    """Each predicate of SGLang's enum: as EAGLE answers, since it is served the same way."""
    ours = algorithm_module.FastMTPAlgorithm("FASTMTP", lambda server_args: None)
    predicates = [
        name
        for name, value in vars(SpeculativeAlgorithm).items()
        if inspect.isfunction(value)
        and name.startswith(("is_", "supports_", "has_", "need_", "carries_"))
    ]
    assert len(predicates) >= 18
    answers = {name: getattr(ours, name)() for name in predicates}
    assert answers == {name: getattr(SpeculativeAlgorithm.EAGLE, name)() for name in predicates}


def test_nothing_of_the_builtin_algorithms_is_missing():
    """`CustomSpecAlgo` itself lacks four of these methods in 0.5.23."""
    members = {name for name, value in vars(SpeculativeAlgorithm).items() if callable(value)}
    methods = {name for name in members if not name.startswith("_")} - {"from_string", "register"}
    assert {"create_future_map", "need_topk", "is_eagle"} <= methods
    assert not methods - set(dir(algorithm_module.FastMTPAlgorithm))
    assert methods - set(dir(CustomSpecAlgo)), "the base class has become complete"


# What holds an algorithm in SGLang's code.
_HOLDERS = {"spec_algorithm", "spec_algo", "speculative_algorithm"}


def called_on_an_algorithm() -> set[str]:
    """Names of the methods that SGLang calls on `x.spec_algorithm` and the like."""
    names = set()
    for path in (SGLANG / "srt").rglob("*.py"):
        source = path.read_text()
        if not any(holder in source for holder in _HOLDERS):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = getattr(owner, "attr", None) or getattr(owner, "id", None)
                if name in _HOLDERS:
                    names.add(node.func.attr)
    # `server_args.speculative_algorithm` is a string.
    return names - set(dir(str))


def test_whatever_sglang_calls_on_an_algorithm_exists():
    called = called_on_an_algorithm()
    assert {"is_eagle", "create_worker", "create_future_map", "need_topk"} <= called
    assert not called - set(dir(algorithm_module.FastMTPAlgorithm))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(algorithm_module.FastMTPAlgorithm).items()
        if inspect.isfunction(value) and name in vars(SpeculativeAlgorithm)
    ],
)
def test_methods_take_what_the_builtin_ones_take(name):
    ours = inspect.signature(getattr(algorithm_module.FastMTPAlgorithm, name)).parameters
    theirs = inspect.signature(getattr(SpeculativeAlgorithm, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_the_future_map_relays_draft_state():
    from sglang.srt.managers.overlap_utils import FutureMap

    ours = algorithm_module.FastMTPAlgorithm("FASTMTP", lambda server_args: None)
    pool = SimpleNamespace(size=4, req_to_token=torch.zeros(5, 8, dtype=torch.int32))
    relay = ours.create_future_map("cpu", pool, needs_cpu_seq_lens=False)
    assert type(relay) is FutureMap
    assert relay.spec_algo is ours


def test_the_factory_registers_models_and_gives_our_worker(monkeypatch):
    from sglang.srt.models.registry import ModelRegistry

    from fastmtp_sglang.serving.cpu import ops
    from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
    from fastmtp_sglang.serving.drafting.native_head import MiMoMTP
    from fastmtp_sglang.serving.worker import FastMTPDraftWorker, FastMTPWorker

    installed = []
    once = algorithm_module.install_in_scheduler
    monkeypatch.setattr(algorithm_module, "install_in_scheduler", once.__wrapped__)
    monkeypatch.setattr(ops, "install", lambda: installed.append(True))
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    assert algorithm_module.worker_class(None) is FastMTPWorker
    assert ModelRegistry.models["FastMTPHead"] is FastMTPHead
    assert ModelRegistry.models["MiMoMTP"] is MiMoMTP
    assert installed == ([] if torch.accelerator.is_available() else [True])

    # The base class takes its draft worker from a global: ours, and SGLang's again afterwards.
    from sglang.srt.speculative import eagle_worker_v2

    stock = eagle_worker_v2.EagleDraftWorker
    seen = []

    def construct(self, **kwargs):
        seen.append((eagle_worker_v2.EagleDraftWorker, kwargs))
        raise OSError("no weights here")

    monkeypatch.setattr(eagle_worker_v2.EAGLEWorkerV2, "__init__", construct)
    with pytest.raises(OSError, match="no weights"):
        FastMTPWorker(gpu_id=0)
    assert seen == [(FastMTPDraftWorker, {"gpu_id": 0})]
    assert eagle_worker_v2.EagleDraftWorker is stock
