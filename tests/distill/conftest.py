"""An endpoint in a thread, the real chat template, settings for a run, and a run."""

import asyncio
import json

import pytest
from cleaning import clean, make
from fake_endpoint import endpoint, endpoints, read_lines, target
from vocabulary_targets import texts, tiny, tiny_folder

from fastmtp_sglang.distill.chat import ChatTemplate
from fastmtp_sglang.distill.prompts import open_prompts
from fastmtp_sglang.distill.records import Sampling
from fastmtp_sglang.distill.session import Job, Link, hold
from fastmtp_sglang.distill.settings import Settings
from fastmtp_sglang.distill.store import Store


@pytest.fixture(scope="session")
def chat(target) -> ChatTemplate:
    return ChatTemplate(target.tokenizer, "smollm2")


@pytest.fixture
def settings(target) -> Settings:
    sampling = Sampling(temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=64)
    return Settings(
        model="smollm2",
        tokenizer_fingerprint=target.fingerprint,
        chat_template_sha256="0",
        prompts=[],
        sampling=sampling,
        prompt_sampling=sampling.model_copy(update={"temperature": 1.0}),
        turns=None,
        samples=1,
        system=None,
        keep_truncated=True,
        seed=0,
    )


@pytest.fixture
def run(tmp_path, settings, target, chat):
    """Run against endpoints into tmp_path/out; returns the last progress and the store's counts."""

    def run(*urls: str, prompts=(), self_prompt=None, limit=None, concurrency=4, **changes):
        if self_prompt is not None:
            changes = {"turns": 1, **changes}
        now = settings.model_copy(update=changes)
        sources = open_prompts(list(prompts))
        job = Job(now, target, chat, sources, self_prompt, limit)
        link = Link(urls, None, 1, 10, concurrency)
        seen = []
        with Store(tmp_path / "out", now, 4, self_prompt or limit) as store:
            asyncio.run(hold(job, store, link, seen.append, seen.append))
            store.complete()
            return seen[-1], store.counts

    return run


@pytest.fixture
def prompts(tmp_path):
    def write(*rows: dict) -> str:
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
