"""An endpoint in a thread, the real chat template, and settings for a run."""

import pytest
from fake_endpoint import endpoint, endpoints, read_lines, target

from fastmtp_sglang.distill.chat import ChatTemplate
from fastmtp_sglang.distill.records import Sampling
from fastmtp_sglang.distill.settings import Settings


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
