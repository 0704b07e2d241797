"""Families of models on the CPU platform: SGLang's greedy tokens are those of transformers.

Each one's layers are the native operators, recorded and swept, in float32. MiMo has no class in
transformers; without its MTP layer it is a Qwen2.
Alone: pytest tests/served/test_families.py
"""

from pathlib import Path

import engine_runs
import pytest
import tiny_models as models
import torch
from transformers import AutoModelForCausalLM

from fastmtp_sglang.head.config import GEMMA

# Five engines, one after the other.
pytestmark = pytest.mark.slow

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    # A window that the prompts exceed.
    GEMMA: models.GEMMA_FIELDS,
}


def prompts() -> dict[str, list[int]]:
    """Of 1 to 40 tokens; the chunks of a prefill hold 16."""
    source = torch.Generator().manual_seed(models.SEED)
    return {
        str(length): torch.randint(3, 49152, (length,), generator=source).tolist()
        for length in (1, 9, 40)
    }


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {family: models.target(root / family, family, **f) for family, f in FAMILIES.items()}
    head = models.random_head(made["qwen2"], root / "head")
    return made | {"mimo": models.as_mimo(made["qwen2"], head, root / "mimo")}


@pytest.fixture(scope="module")
def answers(targets, warm, tmp_path_factory) -> dict[str, dict[str, list[int]]]:
    """What the engines answered, by family and prompt."""
    root = tmp_path_factory.mktemp("answers")
    return {
        family: engine_runs.run_script(
            root / family,
            flags={"model_path": str(path), **engine_runs.FLAGS},
            batches=[prompts()],
            warm=warm,
        )
        for family, path in targets.items()
    }


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(engine_runs.MAX_NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", [*FAMILIES, "mimo"])
def test_greedy_tokens_are_those_of_transformers(targets, answers, family):
    path = targets["qwen2" if family == "mimo" else family]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert answers[family] == {name: greedy(model, ids) for name, ids in prompts().items()}
