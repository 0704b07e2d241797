"""Requests to a served SGLang and the comparison of two servers' answers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

TIMEOUT = httpx.Timeout(600)
# One for all: making one costs 20 ms of a core. The server closes idle connections after 5 s.
_CLIENT = httpx.Client(
    timeout=TIMEOUT,
    limits=httpx.Limits(max_connections=None, keepalive_expiry=2),
    trust_env=False,
)


@dataclass(frozen=True)
class Answer:
    """What a client gets: token ids, text, why it ended, and SGLang's counters."""

    ids: tuple[int, ...]
    text: str
    finish_reason: dict
    meta: dict

    @property
    def visible(self) -> tuple:
        """What must not depend on speculation."""
        return self.ids, self.text, json.dumps(self.finish_reason, sort_keys=True)


def generate(
    url: str,
    prompt,
    *,
    stream: bool = False,
    priority: int | None = None,
    processor: str | None = None,
    lora: str | None = None,
    **sampling,
) -> Answer:
    """Send one native /generate request; a stream is put together from its chunks.

    `processor` is a custom logit processor as SGLang writes it, `lora` the name of an adapter.
    """
    key = "text" if isinstance(prompt, str) else "input_ids"
    body = {key: prompt, "sampling_params": {"temperature": 0, **sampling}, "stream": stream}
    others = {"priority": priority, "custom_logit_processor": processor, "lora_path": lora}
    body |= {name: value for name, value in others.items() if value is not None}
    if not stream:
        response = _CLIENT.post(f"{url}/generate", json=body)
        response.raise_for_status()
        return _answer(response.json())
    last = None
    with _CLIENT.stream("POST", f"{url}/generate", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk = json.loads(line[6:])
                # Text is cumulative and must only grow.
                assert last is None or chunk["text"].startswith(last["text"].rstrip("�"))
                last = chunk
    assert last is not None
    return _answer(last)


def generate_batch(
    url: str, prompts: list, *, params: list[dict] | None = None, **sampling
) -> list[Answer]:
    """Send prompts, all texts or all token ids, in one request, which SGLang answers together.

    `params` are the sampling parameters of each; without them, those of `sampling` are of all.
    """
    key = "text" if isinstance(prompts[0], str) else "input_ids"
    body = {key: prompts, "sampling_params": params or {"temperature": 0, **sampling}}
    response = _CLIENT.post(f"{url}/generate", json=body)
    response.raise_for_status()
    return [_answer(answer) for answer in response.json()]


def _answer(body: dict) -> Answer:
    meta = body["meta_info"]
    return Answer(tuple(body["output_ids"]), body["text"], meta["finish_reason"], meta)


def generate_all(url: str, cases: list[tuple], *, concurrency: int, **options) -> list[Answer]:
    """Answer (prompt, max_new_tokens) cases with at most `concurrency` in flight, in order."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [
            pool.submit(generate, url, prompt, max_new_tokens=tokens, **options)
            for prompt, tokens in cases
        ]
        return [future.result() for future in futures]


def generate_kinds(url: str, kinds: tuple[dict, ...], count: int, concurrency: int) -> list[Answer]:
    """Answer `count` requests, longer from one to the next, with the fields of each kind by turns.

    Every third one is streamed.
    """

    def one(i: int) -> Answer:
        prompt, fields = [5 + i, 7, *range(40, 40 + i % 9)], kinds[i % len(kinds)]
        return generate(url, prompt, stream=i % 3 == 0, max_new_tokens=8 + i, **fields)

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(count)))


def assert_equal(fast: list[Answer], base: list[Answer]) -> None:
    """Compare what the clients of two servers got, and show the first that differ."""
    differing = [
        i for i, (a, b) in enumerate(zip(fast, base, strict=True)) if a.visible != b.visible
    ]
    assert not differing, [(i, fast[i].visible, base[i].visible) for i in differing[:3]]


def acceptance_length(answers: list[Answer]) -> float:
    """1 + accepted drafts per verification, from raw counts."""
    correct = sum(a.meta.get("spec_num_correct_drafts", 0) for a in answers)
    verified = sum(a.meta.get("spec_verify_ct", 0) for a in answers)
    return 1 + correct / verified


def flush(url: str) -> None:
    """Empty the prefix cache; SGLang refuses while a request or a lost slot holds pages."""
    for _ in range(50):
        if httpx.post(f"{url}/flush_cache", timeout=TIMEOUT).status_code == 200:
            return
        time.sleep(0.2)
    raise AssertionError("the cache cannot be flushed: something still holds pages")
