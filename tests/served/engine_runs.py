"""Tiny models served by `sglang.Engine` with every call of the draft model on record.

`run_all` starts one script that runs five engines, one after the other: FASTMTP with a head for
Llama ("llama"), for Qwen3 ("qwen3") and as MiMo's native layer ("mimo"), each with another K and
scheduling; "varying" and "shapes" are "llama" with K, and with the shape of a tree, changed under
it, as the server might. What the targets say by themselves is known from transformers
(`test_hidden_states`). Norm weights are not 1.
"""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tiny_models as models
import torch

from fastmtp_sglang.head.module import FastMTPHead

MAX_NEW_TOKENS = 24
_SCRIPT = Path(__file__).with_name("record_drafts.py")
FLAGS = {
    "dtype": "float32",
    "max_total_tokens": 4096,
    "context_length": 512,
    # The longest prompt is prefilled in three pieces, the last beside other requests.
    "chunked_prefill_size": 16,
    "log_level": "warning",
}
# What the runs draft whose shapes change, step by step.
SCHEDULES = {
    "varying": [*["plain"] * 5, *["2x1"] * 3],
    "shapes": [
        *("3x4x12", "2x4x6", "3x1", "plain", "2x4x12", "3x4x12", "1x1", "plain", "plain"),
        *("2x4x3", "2x4x12", "2x1", "plain", "1x4x5", "2x4x3", "1x4x5"),
    ],
}


_TREE = {"speculative_eagle_topk": 4, "speculative_num_draft_tokens": 12}


@dataclass(frozen=True)
class EngineRun:
    """What one engine was asked and answered, and what its draft model saw."""

    target: Path
    head: Path
    num_steps: int
    prompts: dict[str, list[int]]
    answers: dict[str, list[int]]
    records: list[dict[str, Any]]

    def sequence(self, rid: str) -> list[int]:
        """Prompt and answer of a request."""
        return self.prompts[rid] + self.answers[rid]


def batches() -> list[dict[str, list[int]]]:
    """Prompts of 1 to 40 tokens together, two that share a prefix with the longest, and one."""
    generator = torch.Generator().manual_seed(models.SEED)
    tokens = torch.randint(3, 49152, (100,), generator=generator).tolist()
    long = tokens[:40]
    first = {"1 token": tokens[40:41], "2 tokens": tokens[41:43], "9": tokens[43:52], "40": long}
    second = {"30 shared": long[:30] + tokens[52:54], "40 shared": long + tokens[54:57]}
    return [first, second, {"alone": tokens[57:80]}]


def head(target: Path, directory: Path) -> Path:
    """A head of which every part matters and that drafts well: norms in 0.5..1.5, a live block."""
    module = models.agreeing_head(target, directory, noise=0.1)
    torch.manual_seed(models.SEED + 3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name != "final_layernorm.weight":
                parameter.uniform_(0.5, 1.5)
            elif name.startswith("block."):
                small = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(std=0.05 if small else 0.1)
        # The token's norm is undone, so that the drafts stay good.
        module.input_proj.weight[:, module.config.hidden_size :] = torch.diag(
            1 / module.token_layernorm.weight
        )
    module.save_pretrained(directory)
    return directory


@cache
def run_all(root: Path) -> dict[str, EngineRun]:
    """Build the models in the new directory `root`, serve them, and return the runs by name.

    Cached: a test session runs them once.
    """
    root.mkdir()
    targets, heads = {}, {}
    for family in ("llama", "qwen3", "qwen2"):
        targets[family] = models.target(root / family, family, output_scale=0.1)
        heads[family] = head(targets[family], root / f"{family}-head")
    mimo = models.as_mimo(
        targets["qwen2"], FastMTPHead.from_pretrained(heads["qwen2"]), root / "mimo"
    )
    # Name -> served model, family, K, flags. Without a draft path MiMo's own layer drafts.
    served = {
        "llama": (targets["llama"], "llama", 3, {}),
        "qwen3": (targets["qwen3"], "qwen3", 4, {"disable_overlap_schedule": True}),
        "mimo": (mimo, "qwen2", 2, {"page_size": 8}),
        "varying": (targets["llama"], "llama", 2, {"speculative_adaptive": True}),
        "shapes": (targets["llama"], "llama", 3, {"speculative_adaptive": True, **_TREE}),
    }
    plan = []
    for name, (model, family, num_steps, flags) in served.items():
        speculation = {"speculative_algorithm": "fastmtp", "speculative_num_steps": num_steps}
        if name != "mimo":
            speculation["speculative_draft_model_path"] = str(heads[family])
        plan.append(
            {
                "flags": {"model_path": str(model), **FLAGS, **flags, **speculation},
                "batches": batches(),
                "max_new_tokens": MAX_NEW_TOKENS,
                "answers": str(root / f"{name}.json"),
                "records": str(root / f"{name}.pickles"),
                "shapes": SCHEDULES.get(name, []),
            }
        )
    run_script(root, plan)
    prompts = {rid: ids for batch in batches() for rid, ids in batch.items()}
    return {
        name: EngineRun(
            targets[family],
            heads[family],
            num_steps,
            prompts,
            json.loads((root / f"{name}.json").read_text()),
            _read(root / f"{name}.pickles"),
        )
        for name, (_, family, num_steps, _) in served.items()
    }


def run_script(root: Path, plan: list[dict[str, Any]]) -> None:
    (root / "plan.json").write_text(json.dumps(plan))
    log = root / "engines.log"
    with log.open("wb") as output:
        result = subprocess.run(
            [sys.executable, str(_SCRIPT), str(root / "plan.json")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=1800,  # a busy machine starts an engine in minutes
        )
    assert result.returncode == 0, log.read_text()[-3000:]


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    with path.open("rb") as stream:
        while True:
            try:
                records.append(pickle.load(stream))
            except EOFError:
                return records
