"""Records with a real tokenizer's ids, and `fastmtp data clean` run on them."""

import json
import random

import pytest
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.models.catalog import SMOLLM2

WORDS = ("river", "stone", "winter", "garden", "engine", "letter", "mountain", "coffee", "paper")


def sentence(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}"


@pytest.fixture
def make(target):
    """A record whose answer is this text."""

    def make(index: int, answer: str, **fields) -> dict:
        source = fields.pop("source", "p")
        turn = fields.pop("turn", 0)
        return {
            "id": f"{source}/{index}/0/{turn}",
            "conversation": f"{source}/{index}/0",
            "turn": turn,
            "source": source,
            "messages": [{"role": "user", "content": fields.pop("said", f"question {index}")}],
            "prompt_ids": [1, 4093, 198],
            "answer_ids": [*target.encode(answer), 2],
            "answer": answer,
            "finish_reason": "stop",
            "sampling": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 64},
            "model": str(SMOLLM2.checkpoint()),
        } | fields

    return make


@pytest.fixture
def clean(tmp_path):
    """Run `fastmtp data clean` on records; returns the kept ones, the report, the output."""

    def clean(records: list[dict] | dict[str, list[dict]], *flags: str):
        files = records if isinstance(records, dict) else {"in.jsonl": records}
        for name, lines in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        inputs = [str(tmp_path / name) for name in files]
        out = tmp_path / "out.jsonl"
        result = CliRunner().invoke(app, ["data", "clean", *inputs, "--output", str(out), *flags])
        if result.exception:
            raise result.exception
        kept = [json.loads(line) for line in out.read_text().splitlines()]
        return kept, json.loads((tmp_path / "out.report.json").read_text()), result.output

    return clean
