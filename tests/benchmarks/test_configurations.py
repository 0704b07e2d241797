"""Names of configurations to server commands, and what is refused before a server starts.

Alone: pytest tests/benchmarks/test_configurations.py
"""

from pathlib import Path

import pytest
import torch

from fastmtp_benchmarks.configurations import (
    Model,
    make_configurations,
    parse_endpoints,
    redacted,
    vocabulary_size,
)
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "model").mkdir()
    return str(tmp_path / "model")


@pytest.fixture
def head(tmp_path) -> Path:
    path = tmp_path / "head"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def vocabulary(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    DraftVocabulary(
        vocab_size=100,
        tokenizer_fingerprint="f",
        ids={"en": torch.arange(10), "zh": torch.arange(30, 60)},
        token_scripts=torch.zeros(100, dtype=torch.int8),
        routes={},
    ).save(path)
    return path


def arguments(names, model, tmp_path):
    found = make_configurations(names, model, tmp_path / "out")
    return {configuration.name: configuration.served for configuration in found}


def test_presets(model, head, tmp_path):
    file = vocabulary(tmp_path / "v" / "list.safetensors")
    served = Model(model, str(head), 2, file, ("--dtype", "float32"))
    path = f"--model-path {model}"
    speculate = f"--speculative-algorithm FASTMTP --speculative-draft-model-path {head}"
    names = ["baseline", "nextn", "fastmtp", "fastmtp+vocab", "mine=--page-size 16"]
    assert arguments(names, served, tmp_path) == {
        "baseline": f"{path} --dtype float32",
        "nextn": f"{path} --dtype float32 --speculative-algorithm NEXTN --speculative-num-steps 2 "
        "--speculative-eagle-topk 1 --speculative-num-draft-tokens 3",
        "fastmtp": f"{path} {speculate} --speculative-num-steps 2 --dtype float32",
        "fastmtp+vocab": f"{path} {speculate} --speculative-num-steps 2 "
        f"--speculative-token-map {file} --dtype float32",
        "mine": f"{path} --dtype float32 --page-size 16",
    }


def test_the_embedded_model_brings_its_head(monkeypatch, head, tmp_path):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda progress: Path("/cache/smollm2"))
    made = DraftHead(head, trained=False)
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda *_, **__: made)
    served = arguments(["baseline", "fastmtp"], Model("smollm2"), tmp_path)
    assert served["baseline"].startswith("--model-path /cache/smollm2 --dtype bfloat16")
    assert f"--speculative-draft-model-path {head}" in served["fastmtp"]


def test_a_vocabulary_beside_the_head_is_used_only_where_it_is_asked_for(model, head, tmp_path):
    beside = vocabulary(head / FILE_NAME)
    served = arguments(["fastmtp", "fastmtp+vocab"], Model(model, str(head)), tmp_path)
    links = tmp_path / "out" / "heads" / "head"
    assert f"--speculative-draft-model-path {links}" in served["fastmtp"]
    assert (links / "config.json").read_text() == "{}"
    assert not (links / FILE_NAME).exists()
    assert f"--speculative-token-map {beside}" in served["fastmtp+vocab"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["fast"], {}, "--configuration fast: unknown; give one of baseline"),
        (["fastmtp+vocab"], {}, r"--configuration fastmtp\+vocab: needs --vocabulary"),
        (["baseline", "baseline"], {}, "the name baseline is given twice"),
        (["a/b=--page-size 1"], {}, "the name 'a/b' must be of letters"),
        (["a='"], {}, "quotes do not close"),
        (["baseline"], {"num_steps": 3}, "--num-steps 3: has no effect without"),
        (["fastmtp"], {"vocabulary": Path("v")}, "--vocabulary v: has no effect without"),
        (["fastmtp"], {"draft": "/nowhere"}, "--draft /nowhere is not a directory"),
        (["a=--model-path x"], {}, "--model-path after -- repeats"),
    ],
)
def test_bad_configurations(model, tmp_path, names, options, message):
    with pytest.raises(FastMTPError, match=message):
        make_configurations(names, Model(model, **options), tmp_path)


def test_endpoints():
    found = parse_endpoints(["baseline=http://a:1/", "https://b:2", "http://c/x?y=1"][:2])
    assert [(c.name, c.url) for c in found] == [("baseline", "http://a:1"), ("b-2", "https://b:2")]
    for text, message in (("a:1", "give NAME=URL"), ("x=ftp://a", "give NAME=URL")):
        with pytest.raises(FastMTPError, match=f"--endpoint {text}: {message}"):
            parse_endpoints([text])
    with pytest.raises(FastMTPError, match="given twice"):
        parse_endpoints(["a=http://x", "a=http://y"])


def test_the_size_of_a_vocabulary_is_its_largest_list(tmp_path):
    assert vocabulary_size(str(vocabulary(tmp_path / "v.safetensors"))) == 30
    assert vocabulary_size(None) is None
    assert vocabulary_size("/on/another/machine") is None
    torch.save(torch.arange(5), tmp_path / "map.pt")
    assert vocabulary_size(str(tmp_path / "map.pt")) is None


def test_keys_do_not_reach_a_report():
    command = "fastmtp bench --api-key k1 --sglang-flags '--admin-api-key=k2 --api-key k3'"
    assert redacted(command) == (
        "fastmtp bench --api-key ... --sglang-flags '--admin-api-key=... --api-key ...'"
    )
