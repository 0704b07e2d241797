"""Tiny models served by `sglang.Engine` with every call of the draft model on record.

`run_all` starts a script for six engines, one after the other: FASTMTP with a head for Llama
("llama", in an interpreter of its own), for Qwen3 ("qwen3"), for Gemma 3 ("gemma3_text", with a
window that the prompts exceed) and as MiMo's native layer ("mimo"), each with another K and
scheduling; "varying" and "shapes" are "llama" with K, and with the shape of a tree, changed under
it, as the server might. What the targets say by themselves is known from transformers
(`test_hidden_states`). Norm weights are not 1.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models as models
import torch
from warm_python import WarmPython

from fastmtp_sglang.head.config import GEMMA
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
    is_gemma = module.config.family == GEMMA
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("block.") and is_gemma:
                continue  # the target's, all of it in use
            if "norm" in name and name != "final_layernorm.weight":
                parameter.uniform_(0.5, 1.5)
            elif name.startswith("block."):
                small = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(std=0.05 if small else 0.1)
        # The token's norm is undone, so that the drafts stay good.
        of_token = module.input_proj.weight[:, module.config.hidden_size :]
        of_token.copy_(of_token / (module.token_layernorm.weight + is_gemma))
    module.save_pretrained(directory)
    return directory


def run_all(root: Path, warm: WarmPython) -> dict[str, EngineRun]:
    """Build the models in the new directory `root`, serve them, and return the runs by name."""
    root.mkdir()
    targets, heads = {}, {}
    for family in ("llama", "qwen3", "qwen2", GEMMA):
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
        GEMMA: (targets[GEMMA], GEMMA, 3, {}),
        "varying": (targets["llama"], "llama", 2, {"speculative_adaptive": True}),
        "shapes": (targets["llama"], "llama", 3, {"speculative_adaptive": True, **_TREE}),
    }
    asked = batches()
    found = {}
    for name, (model, family, num_steps, flags) in served.items():
        speculation = {"speculative_algorithm": "fastmtp", "speculative_num_steps": num_steps}
        if name != "mimo":
            speculation["speculative_draft_model_path"] = str(heads[family])
        records = root / f"{name}.pickles"
        answers = run_script(
            root / name,
            flags={"model_path": str(model), **FLAGS, **flags, **speculation},
            batches=asked,
            records=records,
            shapes=SCHEDULES.get(name, ()),
            warm=None if name == "llama" else warm,
        )
        prompts = {rid: ids for batch in asked for rid, ids in batch.items()}
        found[name] = EngineRun(
            targets[family], heads[family], num_steps, prompts, answers, _read(records)
        )
    return found


def run_script(
    files: Path,
    *,
    flags: dict[str, Any],
    batches: list[dict[str, list[int]]],
    records: Path | None = None,
    shapes: Sequence[str] = (),
    warm: WarmPython | None,
) -> dict[str, list[int]]:
    """Run `record_drafts.py`, forked from `warm` or by itself, and return the answers by request.

    `files` is the path without suffix of what goes in and comes out.
    """
    plan, answers, log = (files.with_suffix(f".{kind}") for kind in ("run.json", "json", "log"))
    run = {
        "flags": flags,
        "batches": batches,
        "max_new_tokens": MAX_NEW_TOKENS,
        "answers": str(answers),
        "records": records and str(records),
        "shapes": shapes,
    }
    plan.write_text(json.dumps(run))
    command = [str(_SCRIPT), str(plan)]
    with log.open("wb") as output:
        result = subprocess.run(
            warm.command(*command) if warm else [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=900,  # a busy machine starts an engine in minutes
        )
    assert result.returncode == 0, log.read_text()[-3000:]
    return json.loads(answers.read_text())


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    with path.open("rb") as stream:
        while True:
            try:
                records.append(pickle.load(stream))
            except EOFError:
                return records
