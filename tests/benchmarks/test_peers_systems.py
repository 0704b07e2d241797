"""Each system on a tiny model or against a stand-in: exact tokens, and errors that say what failed.

Alone: pytest tests/benchmarks/test_peers_systems.py
"""

import json
import sys
from pathlib import Path

import pytest
import tiny_models as models
import torch
from transformers import AutoModelForCausalLM

from fastmtp_benchmarks import peers_systems
from fastmtp_benchmarks.peers_systems import LlamaCpp, PromptLookup, Server, Transformers
from fastmtp_sglang.errors import FastMTPError

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
# llama_cpp as far as the child uses it. The token after x at position p of sequence s is
# x + 10 p + 100 s, known only for rows whose logits were asked for.
FAKE_LLAMA = """
import ctypes
from types import SimpleNamespace as Some

__version__ = "fake"
VOCAB = 10_000

def llama_backend_init(): ...
def llama_model_default_params(): return Some()
def llama_context_default_params(): return Some()
def llama_model_load_from_file(path, parameters): return b"missing" not in path and "model"
def llama_model_get_vocab(model): return model
def llama_vocab_n_tokens(vocabulary): return VOCAB
def llama_get_memory(context): return context
def llama_memory_clear(memory, data): memory.seen.clear()
def llama_batch_free(batch): ...

def llama_init_from_model(model, parameters):
    return Some(seen={}, room=parameters.n_ctx // parameters.n_seq_max, parameters=parameters)

def llama_batch_init(rows, embeddings, sequences):
    lists = {name: [None] * rows for name in ("token", "pos", "n_seq_id", "logits")}
    return Some(seq_id=[[None] for _ in range(rows)], **lists)

def llama_decode(context, batch):
    context.next = {}
    for row in range(batch.n_tokens):
        sequence, position = batch.seq_id[row][0], batch.pos[row]
        assert position == context.seen.get(sequence, 0) < context.room
        context.seen[sequence] = position + 1
        if batch.logits[row]:
            context.next[row] = batch.token[row] + 10 * position + 100 * sequence
    return 0

def llama_get_logits_ith(context, row):
    logits = (ctypes.c_float * VOCAB)()
    logits[context.next[row]] = 1.0
    return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.target(tmp_path_factory.mktemp("peers") / "llama", "llama")


def greedy(model: Path, prompt: list[int], tokens: int) -> list[int]:
    """Decode without `generate`, a cache or padding."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = list(prompt)
    for _ in range(tokens):
        with torch.inference_mode():
            ids.append(int(loaded(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def ends_early(model):
    """The model, whose end of sequence is the second token of the first answer."""
    for name in ("config.json", "generation_config.json"):
        path = model / name
        path.write_text(
            json.dumps(
                json.loads(path.read_text()) | {"eos_token_id": greedy(model, PROMPTS[0], 2)[1]}
            )
        )
    return model


def test_transformers_answers_a_padded_batch(ends_early):
    """The end of sequence ends nothing."""
    with Transformers(ends_early, "float32", 1) as system:
        answers = system.answer(PROMPTS, 6).ids
    assert answers == [greedy(ends_early, prompt, 6) for prompt in PROMPTS]


def test_prompt_lookup_answers_the_same(ends_early):
    with PromptLookup(ends_early, "float32", 1) as system:
        assert (system.name, system.largest_batch) == ("transformers-prompt-lookup", 1)
        answers = [system.answer([prompt], 6).ids[0] for prompt in PROMPTS]
    assert answers == [greedy(ends_early, prompt, 6) for prompt in PROMPTS]


@pytest.fixture
def llama(monkeypatch, tmp_path):
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(peers_systems, "write_gguf", lambda model, file, kind: file.touch())
    return lambda python=sys.executable: LlamaCpp(Path("m"), "Q8_0", 2, python)


def test_llama_cpp_decodes_a_batch(llama):
    def expected(sequence: int, prompt: list[int], tokens: int) -> list[int]:
        ids = list(prompt)
        for _ in range(tokens):
            ids.append(ids[-1] + 10 * (len(ids) - 1) + 100 * sequence)
        return ids[len(prompt) :]

    with llama() as system:
        assert (system.version, system.label) == ("fake", "llama.cpp Q8_0")
        for prompts, tokens in ((PROMPTS, 5), (PROMPTS[:1], 1), (PROMPTS, 3)):
            answers = system.answer(prompts, tokens).ids
            assert answers == [expected(i, ids, tokens) for i, ids in enumerate(prompts)]
        child = system._child
    assert child.poll() is not None


def test_llama_cpp_that_fails_says_why(llama, tmp_path):
    with llama() as system, pytest.raises(FastMTPError, match=r"exit code 1: .*index out of range"):
        system.answer([[]], 3)
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no libllama.so')")
    with pytest.raises(FastMTPError, match=r"llama.cpp Q8_0 ended with exit code 1: .*no libllama"):
        llama().__enter__()


@pytest.fixture
def served(monkeypatch, server):
    """A `Server` whose process is the fake one; `alive` False makes it dead."""

    class Process:
        url, alive = server.url, True

        def __init__(self, model, arguments, env):
            self.command, self.env = [model, *arguments], env

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def check_alive(self):
            if not self.alive:
                raise FastMTPError("the server ended with exit code 9")

    monkeypatch.setattr(peers_systems, "ServerProcess", Process)
    return Server("fastmtp", "float32", "m", ["--flag"], 2), Process


def test_a_server_gets_all_prompts_at_once(served, server):
    def answers(body):
        meta = {"spec_verify_ct": 2, "spec_num_correct_drafts": 1}
        while server.most_in_flight < len(PROMPTS):
            yield 0.01  # all must be there before the first is answered
        yield json.dumps({"output_ids": body["input_ids"][:2], "meta_info": meta}).encode()

    server.answers = answers
    with served[0] as system:
        found = system.answer(PROMPTS, 2)
        assert system._server.env == {"OMP_NUM_THREADS": "2"}
    assert found.ids == [prompt[:2] for prompt in PROMPTS]
    assert (found.verifications, found.accepted_drafts) == (6, 3)
    sampling = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True}
    assert all(body["sampling_params"] == sampling for body in server.requests)


def test_a_server_that_refuses_or_dies_says_why(served, server):
    system, process = served
    server.first = [(400, {"error": "too long"})]
    with system, pytest.raises(FastMTPError, match=r"fastmtp float32 answered 400: .*too long"):
        system.answer(PROMPTS[:1], 2)
    server.first = [[None]]
    with system, pytest.raises(FastMTPError, match="broke off while answering"):
        system.answer(PROMPTS[:1], 2)
    server.first, process.alive = [[None]], False
    with system, pytest.raises(FastMTPError, match="ended with exit code 9"):
        system.answer(PROMPTS[:1], 2)
