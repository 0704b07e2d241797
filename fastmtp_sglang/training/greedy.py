"""The target's own greedy continuation of held-out prompts: what a lossless draft has to match."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.files.atomic import write_atomically
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.target import FrozenTarget

_PROMPTS_PER_BATCH = 16


def greedy_continuations(
    target: FrozenTarget,
    prompts: list[list[int]],
    stop_ids: list[int],
    max_new_tokens: int,
    cache: Path,
) -> list[Document]:
    """Continue prompts greedily, once: the result is kept in `cache` (one JSON file).

    It is written after every batch, so that a killed run goes on behind the last one.

    Args:
        target: the frozen target.
        prompts: token ids.
        stop_ids: generation ends with one of these; the continuation includes it.
        max_new_tokens: tokens of a continuation, at most.
        cache: read if it holds these prompts, and written.

    Returns:
        A document for each prompt, in which the continuation counts.
    """
    request = [target.digest, str(target.dtype), prompts, sorted(stop_ids), max_new_tokens]
    key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
    answers = _cached(cache, key)
    cache.parent.mkdir(parents=True, exist_ok=True)
    while len(answers) < len(prompts):
        batch = prompts[len(answers) : len(answers) + _PROMPTS_PER_BATCH]
        answers += _generate(target, batch, stop_ids, max_new_tokens)
        write_atomically(cache, json.dumps({"key": key, "answers": answers}).encode())
    documents = []
    for prompt, answer in zip(prompts, answers, strict=True):
        counted = torch.arange(len(prompt) + len(answer)) >= len(prompt)
        documents.append(Document(torch.tensor(prompt + answer), counted))
    return documents


def _generate(
    target: FrozenTarget, prompts: list[list[int]], stop_ids: list[int], max_new_tokens: int
) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    generated: Any = target.model.generate(
        ids.to(target.device),
        attention_mask=mask.to(target.device),
        do_sample=False,
        # The checkpoint's own sampling defaults would only cause warnings.
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
    )
    answers = []
    for row in generated[:, width:].tolist():
        stops = [position for position, token in enumerate(row) if token in stop_ids]
        answers.append(row[: stops[0] + 1] if stops else row)
    return answers


def _cached(cache: Path, key: str) -> list[list[int]]:
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):
        return []
    return content["answers"] if content.get("key") == key else []
