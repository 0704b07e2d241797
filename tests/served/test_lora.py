"""LoRA adapters: each one's answers are those without speculation, and of the merged target.

Three adapters and none share batches and two slots, so that they move in and out; the head drafts
for all of them and wears none.
Run alone: pytest tests/served/test_lora.py (starts two servers).
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import adapters
import httpx
import pytest
import torch
from client import Answer, acceptance_length, assert_equal, generate
from transformers import AutoModelForCausalLM

WORN = (None, "deep", "outer", "small")
FIELDS = (
    {},
    {"temperature": 1.0, "sampling_seed": 11},
    {"frequency_penalty": 0.7},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 50, "sampling_seed": 12},
)
PROMPTS = [[5 + i, 7, *range(40, 40 + i % 9)] for i in range(12)]
REQUESTS = len(WORN) * len(PROMPTS)


def ask(url: str, concurrency: int) -> list[Answer]:
    """Every prompt with each adapter, and with fields of its own; every third one is streamed."""

    def one(i: int) -> Answer:
        at, worn = divmod(i, len(WORN))
        given = {"lora": WORN[worn], "stream": i % 3 == 0, "max_new_tokens": 24}
        return generate(url, PROMPTS[at], **given, **FIELDS[at % len(FIELDS)])

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(REQUESTS)))


@pytest.mark.parametrize("concurrency", [1, 12])
def test_equal(servers, concurrency):
    base = ask(servers("qwen3-adapters"), 12)
    fast = ask(servers("qwen3-adapters-listed"), concurrency)
    assert_equal(fast, base)
    for i in range(len(WORN)):
        assert acceptance_length(fast[i :: len(WORN)]) > 1.2
    # Each adapter makes another model.
    said = [[answer.ids for answer in base[worn :: len(WORN)]] for worn in range(len(WORN))]
    for one, other in itertools.combinations(said, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > len(PROMPTS) / 2


@pytest.mark.parametrize("name", ["deep", "outer"])
@torch.no_grad()
def test_greedy_tokens_are_those_of_the_merged_target(servers, checkpoints, tmp_path, name):
    """In transformers, in float32."""
    directory = adapters.merged(checkpoints.qwen3, checkpoints.adapters / name, tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for prompt in PROMPTS[:3]:
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answer = generate(
            servers("qwen3-adapters-listed"), prompt, lora=name, max_new_tokens=12, ignore_eos=True
        )
        assert list(answer.ids) == ids[len(prompt) :]


def test_adapters_come_and_go(servers, checkpoints):
    """One is unloaded, and another one takes its name: answers are those of the new weights."""
    url, root = servers("qwen3-adapters-listed"), checkpoints.adapters
    prompt = PROMPTS[0]

    def answer(name: str) -> tuple[int, ...]:
        return generate(url, prompt, lora=name, max_new_tokens=12, ignore_eos=True).ids

    def post(route: str, **body: str) -> None:
        response = httpx.post(f"{url}/{route}", json=body, timeout=60)
        assert response.json()["success"], response.text

    small, deep = answer("small"), answer("deep")
    assert small != deep
    for directory in ("deep", "small"):
        post("unload_lora_adapter", lora_name="small")
        post("load_lora_adapter", lora_name="small", lora_path=str(root / directory))
        assert answer("small") == (deep if directory == "deep" else small)
