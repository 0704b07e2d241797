"""64 clients ask at random, a tenth of them give up: 400 requests, `make soak` for 10,000.

Every answer is compared with SGLang alone, which answers each of the distinct requests once: plain
and streamed, stops, penalties, biases, minimum lengths, grammars. Among them are requests and calls
that no client should send, which must disturb nobody. At the end nothing may hold a page or a slot.
`make soak` writes what it found to benchmarks/results/soak.json.

Run alone: pytest tests/served/test_soak.py (starts two tiny servers).
"""

import itertools
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from client import TIMEOUT, Answer, acceptance_length, flush, generate
from features import GRAMMARS, PENALTIES
from odd import JSON, encoded, odd_requests
from prompts import requests

from fastmtp_benchmarks.environment import save

SEED = 20251125
RESULT = os.environ.get("SOAK_RESULT")
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "400"))
CLIENTS = 64
# Calls that are refused while nothing was started or released before them.
REFUSED_CALLS = (
    ("/resume_memory_occupation", {}),
    ("/release_memory_occupation", {"tags": ["x"]}),
    ("/start_profile", {"activities": ["MEM"]}),
    ("/stop_profile", {}),
    ("/end_weight_update", {}),
    ("/start_expert_distribution_record", {}),
)


def distinct() -> list[tuple[str, dict]]:
    """Prompts with sampling parameters, greedy."""
    features = (
        {},
        {"stop": [" the", "\n\n", "e s"]},
        {"min_new_tokens": 6, "stop_token_ids": [1500, 1503, 1507]},
        *PENALTIES,
        *GRAMMARS,
    )
    chosen = zip([*requests(), *requests()], itertools.cycle(features), strict=False)
    # Past the end of a grammar, which EOS is, SGLang alone adds a token of no grammar.
    return [
        (
            f"{prompt} ({i})",
            {
                "max_new_tokens": min(max(tokens, 6), 48),
                "ignore_eos": i % 3 > 0 and feature not in GRAMMARS[:3],
                **feature,
            },
        )
        for i, ((prompt, tokens), feature) in enumerate(chosen)
    ]


def test_soak(servers):
    cases = distinct()
    alone, url = servers("mimo-synchronous"), servers("mimo-native")
    with ThreadPoolExecutor(16) as pool:
        base = list(pool.map(lambda case: generate(alone, case[0], **case[1]), cases))
    generator = random.Random(SEED)
    plan = [
        (generator.randrange(len(cases)), generator.random(), generator.uniform(0, 0.4))
        for _ in range(REQUESTS)
    ]

    schemas = httpx.get(f"{url}/openapi.json", timeout=TIMEOUT).json()
    odd = [
        *REFUSED_CALLS,
        *(("/generate", body) for body in odd_requests(schemas, "/generate", generator)),
    ]

    def one(number: int) -> Answer | None:
        index, kind, patience = plan[number]
        prompt, options = cases[index]
        if kind > 0.95:
            _ask_oddly(url, *odd[int(patience * 2.5 * len(odd))])
        if kind < 0.1:
            _give_up(url, prompt, f"soak-{number}", patience)
            return None
        return generate(url, prompt, stream=kind < 0.4, **options)

    memory = _resident_bytes(url)
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one, range(REQUESTS)))
    seconds = time.monotonic() - began
    compared = [(i, answer) for i, answer in enumerate(answers) if answer]
    length = acceptance_length([answer for _, answer in compared])
    differing = [i for i, answer in compared if answer.visible != base[plan[i][0]].visible]
    flush(url)
    assert httpx.get(f"{url}/health_generate", timeout=TIMEOUT).status_code == 200
    if RESULT:
        save(
            {
                "requests": REQUESTS,
                "distinct": len(cases),
                "clients": CLIENTS,
                "compared": len(compared),
                "odd": sum(kind > 0.95 for _, kind, _ in plan),
                "given_up": REQUESTS - len(compared),
                "differing": len(differing),
                "acceptance_length": round(length, 3),
                "tokens": sum(len(answer.ids) for _, answer in compared),
                "seconds": round(seconds, 1),
                "server_mib_more": round((_resident_bytes(url) - memory) / 2**20, 1),
            },
            Path(RESULT),
            "make soak",
        )
    shown = [
        (cases[plan[i][0]], answers[i].visible, base[plan[i][0]].visible) for i in differing[:4]
    ]
    assert not differing, json.dumps(shown, indent=1)


def _give_up(url: str, prompt: str, identifier: str, patience: float) -> None:
    """Ask for more than there is time for, and abort, or hang up in the middle of the stream."""
    body = {
        "text": prompt,
        "rid": identifier,
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": 300, "ignore_eos": True},
    }
    deadline = time.monotonic() + patience
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=TIMEOUT) as response:
        for line in response.iter_lines():
            if time.monotonic() > deadline:
                if patience < 0.2:
                    return
                httpx.post(f"{url}/abort_request", json={"rid": identifier}, timeout=TIMEOUT)
                deadline = float("inf")
            assert not line.startswith("data: ") or line == "data: [DONE]" or json.loads(line[6:])


def _ask_oddly(url: str, path: str, body: dict | bytes) -> None:
    response = httpx.post(f"{url}{path}", content=encoded(body), headers=JSON, timeout=TIMEOUT)
    assert response.status_code < 500, (path, body, response.text)
    assert response.status_code == 400 or path == "/generate", (path, body)


def _resident_bytes(url: str) -> int:
    """Memory of the server's processes; the port tells which they are."""
    port = f"--port {url.rpartition(':')[2]}"
    roots = [
        p for p in psutil.process_iter(["cmdline"]) if port in " ".join(p.info["cmdline"] or ())
    ]
    family = {p for root in roots for p in (root, *root.children(recursive=True))}
    return sum(p.memory_info().rss for p in family)
